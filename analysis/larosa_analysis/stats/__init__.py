"""Intervals and tests, paired over evaluation blocks or examples."""
