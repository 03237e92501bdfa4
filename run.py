"""Run one experiment: `python run.py model=llama2-7b sparsity=0.4`; `python run.py --help` lists the settings."""

from __future__ import annotations

from larosa.__main__ import main

if __name__ == "__main__":
    main()
