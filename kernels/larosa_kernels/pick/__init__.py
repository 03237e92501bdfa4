"""The op `pick`: reference, kernel and functional."""
