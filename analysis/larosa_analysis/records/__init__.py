"""Records as tables read them: compact lines, runs, failures, timings."""
