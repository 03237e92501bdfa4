"""Methods against magnitude Top-K: at equal weight sparsity, and at equal weight bytes read."""
