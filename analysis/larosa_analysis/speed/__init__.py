"""Decode speed: rows, table and figure."""
