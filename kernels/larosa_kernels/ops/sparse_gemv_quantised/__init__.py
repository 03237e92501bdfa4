"""Sparse matrix-vector product of 8-bit and 4-bit weights: kernel, launch and packed layout; see README.md."""
