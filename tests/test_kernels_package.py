"""The package as a whole: it knows nothing of larosa, and what needs no Triton comes without it."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import larosa_kernels
import pytest
import torch
from larosa_kernels.common.commit import git_state
from larosa_kernels.common.environment import environment, write_record
from larosa_kernels.common.timing import peak_bytes_per_s

BLOCK = """
import sys
sys.meta_path = [each for each in sys.meta_path if "editable" not in f"{{each!r}}"]  # another checkout's modules
sys.modules.update(dict.fromkeys({blocked!r}))
import torch
"""
EVERY_MODULE = """
import importlib, pkgutil, larosa_kernels
for module in pkgutil.walk_packages(larosa_kernels.__path__, "larosa_kernels."):
    importlib.import_module(module.name)
"""


def ran(blocked: list[str], code: str) -> str:
    """Standard output of a fresh process in which `blocked` modules cannot be imported."""
    words = [sys.executable, "-c", BLOCK.format(blocked=blocked) + code]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(larosa_kernels.__path__[0])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_module_imports_where_only_torch_and_triton_are() -> None:
    """On the machine with the GPU there is nothing else, benchmarks included."""
    ran(["larosa", "larosa_analysis", "transformers", "yaml", "pydantic", "hydra", "psutil"], EVERY_MODULE)


def test_the_packed_layout_comes_without_triton() -> None:
    code = "from larosa_kernels.ops.sparse_gemv_quantised.packing import BLOCK; print(BLOCK)"
    assert ran(["triton"], code) == "256\n"


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert all(callable(getattr(larosa_kernels, name)) for name in larosa_kernels.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        larosa_kernels.nothing  # noqa: B018


def test_every_op_has_a_readme_and_an_interface() -> None:
    folders = [each.name for each in pkgutil.iter_modules([f"{larosa_kernels.__path__[0]}/ops"])]
    assert len(folders) == 7
    for folder in folders:
        held = os.listdir(f"{larosa_kernels.__path__[0]}/ops/{folder}")
        assert {"README.md", "kernel.py", "api.py", "reference.py"} <= set(held), folder


def test_a_record_names_the_commit_of_this_code_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a repository that the package only lies in; stated where a copy has no history."""
    monkeypatch.delenv("LAROSA_COMMIT", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "installed.py").touch()
    assert git_state(tmp_path / "installed.py", tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("LAROSA_COMMIT", "0123abc")
    found = environment(torch.device("cpu"))
    assert (found["commit"], found["dirty"], found["driver"]) == ("0123abc", None, None)
    assert found["versions"]["torch"] == torch.__version__


def test_a_gpu_is_known_by_a_part_of_its_name() -> None:
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "a toaster")
    assert [peak_bytes_per_s(name) for name in names] == [4.8e12, 3.35e12, 2.04e12, None]


def test_a_record_carries_the_checksum_that_larosa_reads(tmp_path: Path) -> None:
    """The rule is written twice, for kernels know nothing of larosa: so this holds the two together."""
    checksum = pytest.importorskip("larosa.records.checksum")
    record = {"device": "cpu", "rows": [{"p50_us": 1.5, "share_of_peak": None}], "dirty": False, "name": "\u00b5s"}
    write_record(tmp_path / "new" / "rows.json", record)
    assert checksum.read(tmp_path / "new" / "rows.json") == record
    with pytest.raises(ValueError, match="Out of range"):
        write_record(tmp_path / "nan.json", {"p50_us": float("nan")})
    assert not (tmp_path / "nan.json").exists()
