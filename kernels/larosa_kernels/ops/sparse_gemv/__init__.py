"""Matrix-vector product that reads the weight rows of selected entries only; see README.md."""
