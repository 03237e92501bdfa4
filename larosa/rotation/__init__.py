"""Orthogonal bases, and how a model is rotated into them."""
