"""The op `select`: reference, kernel and functional."""
