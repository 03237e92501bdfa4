"""The command lines: `run.py` and its sweeps, and the commands beside it. Nothing else imports from here."""
