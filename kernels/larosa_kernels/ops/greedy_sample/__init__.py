"""The op `pick`: reference, kernel and api."""
