"""The op `attend`: reference, kernel and api."""
