"""`run.py` as typed, in a fork of this process: a new one imports torch and more for 8 s of CPU."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import sklearn.feature_extraction.text  # noqa: F401  # which every fork would import
import torch
from tqdm import tqdm

import larosa.experiment.pipeline  # noqa: F401  # the same
from conftest import ROOT

TIMEOUT_S = 60  # a tiny run takes 3


def _run(words: Sequence[str], said: Path, cwd: Path | None, env: Mapping[str, str], module: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what is in the background ignore it
    logging.root.handlers.clear()
    torch.set_num_threads(1)  # the threads of the parent's pool are not in a fork
    tqdm.set_lock(threading.RLock())  # the lock of before is shared by all forks: one that is killed would keep it
    os.environ.update(env)
    os.chdir(cwd or Path.cwd())
    sys.argv = [str(ROOT / "run.py"), *words]
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def start(
    *words: str, said: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, module: str = ""
) -> ForkProcess:
    """A running `run.py`, or `python -m MODULE`; what it says goes to `out` and `err` in the folder `said`."""
    said.mkdir(exist_ok=True)
    for name in ("out", "err"):
        (said / name).write_text("")
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, said, cwd, env or {}, module))
    process.start()
    return process


def until(process: ForkProcess, condition: Callable[[], object], what: str) -> None:
    """Wait for what a running `run.py` does; fails where it ends first, or does not within `TIMEOUT_S`."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if not process.is_alive() or time.monotonic() > end:
            process.kill()
            pytest.fail(f"run.py ended, or ran {TIMEOUT_S} s, without {what}")
        time.sleep(0.01)


def typed(
    *words: str, said: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, module: str = ""
) -> subprocess.CompletedProcess[str]:
    """`run.py` to its end, within `TIMEOUT_S`."""
    process = start(*words, said=said, cwd=cwd, env=env, module=module)
    process.join(TIMEOUT_S)
    hangs = process.is_alive()
    process.kill()
    process.join()
    out, err = ((said / name).read_text() for name in ("out", "err"))
    assert not hangs, f"run.py had not ended after {TIMEOUT_S} s; it said: {out[-1000:]} {err[-2000:]}"
    assert process.exitcode is not None
    return subprocess.CompletedProcess(words, process.exitcode, out, err)
