"""Rotary embedding, append to the KV cache and attention of one new token; see README.md."""
