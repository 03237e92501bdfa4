"""Texts and tokens: where they come from, that they are intact, and that evaluation is disjoint from calibration."""
