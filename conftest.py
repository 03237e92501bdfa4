"""What has to hold before any test is imported, and for the whole run: kernels, threads, workers, hangs.

Without a GPU, Triton's interpreter runs the kernels. It has to be chosen before transformers imports triton.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # so do the processes that they start
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_LIMIT_S = 300  # the longest test outside the markers below takes a tenth of it on two busy cores
_UNLIMITED = ("slow", "gpu", "hub")


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Neighbouring tests share fixtures and caches: a worker takes half of them in order, then of what is left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that hangs fails, with the stack of every thread on stderr."""

    def expired(*_: object) -> None:
        faulthandler.dump_traceback()
        pytest.fail(f"still running after {_LIMIT_S} s")

    if any(item.get_closest_marker(name) for name in _UNLIMITED):
        return (yield)
    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
