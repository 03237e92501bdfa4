"""From a level to a mask: Top-K, schedules, token policies, sparse sites."""
