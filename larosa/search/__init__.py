"""Searches on calibration tokens: levels per layer and site, tuned bases, low-rank ratios."""
