"""What is measured on a model: perplexity, zero-shot accuracy, output error, achieved sparsity, accounting, parity."""
