"""A measurement: runs are planned, a session is opened, and each run leaves a record or a failure on disk."""
