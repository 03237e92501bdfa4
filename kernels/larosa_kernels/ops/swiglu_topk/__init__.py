"""SwiGLU, and the selection of its largest outputs; see README.md."""
