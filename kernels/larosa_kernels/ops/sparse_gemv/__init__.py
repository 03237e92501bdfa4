"""The op `sparse_gemv`: reference, kernel and api."""
