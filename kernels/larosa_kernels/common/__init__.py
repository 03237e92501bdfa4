"""What the ops share: the top-k search, packed half precision, compaction, checks, launch shapes, timing, tests."""
