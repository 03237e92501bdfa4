"""The op `select`: reference, kernel and api."""
