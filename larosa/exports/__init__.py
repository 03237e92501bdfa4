"""A sparse model as a folder that can be moved and loaded again without calibration. See docs/export.md."""
