"""The op `attend`: reference, kernel and functional."""
