"""The sparse product of int8 and packed 4-bit weights on int8 tensor cores; see README.md."""
