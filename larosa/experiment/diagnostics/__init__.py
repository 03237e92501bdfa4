"""What a model looks like inside, for figures that need more than a record: surfaces, thresholds, error curves."""
