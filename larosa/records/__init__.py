"""Files that outlive a run: checksums, whole writes, locks, labels. Needs neither torch nor Hydra nor pydantic."""
