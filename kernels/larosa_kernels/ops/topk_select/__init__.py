"""The k largest magnitudes of each row, as a selection bound; see README.md."""
