"""The end of a greedy decode step: argmax, history, position; see README.md."""
