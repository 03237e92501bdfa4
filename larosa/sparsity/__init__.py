"""From a level to a mask: Top-K, thresholds, schedules, token policies, sparse sites."""
