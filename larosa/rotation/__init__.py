"""Orthogonal bases, and how a model is put into them."""
