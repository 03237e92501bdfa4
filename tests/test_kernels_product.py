"""The PTX of the quantised product without a GPU: run by warps in numpy, it gives exact integer sums.

Triton's interpreter runs `accumulate_interpreted` in its place. What a GPU runs is held here against integers, as it
goes to the assembler.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import larosa_kernels
import numpy as np
import pytest
import torch
from larosa_kernels.ops.sparse_gemv_quantised.packing import pack_qweight
from larosa_kernels.ops.sparse_gemv_quantised.product import plan, product, sharers
from ptx import LANES, SHARED, Block, run_block


def laid_out(*arrays: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """One memory with all of them, and where each begins; nothing begins at 0."""
    starts, parts, at = [], [np.zeros(256, dtype=np.uint8)], 256
    for array in arrays:
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        data = np.concatenate([data, np.zeros(-len(data) % 16, dtype=np.uint8)])
        starts.append(at)
        parts.append(data)
        at += len(data)
    return np.concatenate(parts), starts


CASES = [
    (4, 16, 97), (4, 2, 5), (8, 8, 200), (8, 2, 0), (8, 4, 64), (16, 4, 129), (16, 2, 65),
]  # fmt: skip
"""(warps, stages, items): ends of turns, of stages and of warps, none at all."""


@pytest.mark.parametrize("source", ["shared", "listed", "all"])
@pytest.mark.parametrize(
    ("warps", "stages", "count", "swiglu"),  # each of both with every number of warps, and with every source
    [(*case, swiglu) for i, case in enumerate(CASES) for swiglu in ((False, True) if i == 0 else (i % 2 == 0,))],
)
@pytest.mark.parametrize("kind", ["w4", "w8"])
def test_the_ptx_gives_exact_integer_sums(
    kind: str, warps: int, stages: int, count: int, swiglu: bool, source: str
) -> None:
    """Rows of integers times entries rounded to integers, of both signs and up to 2^22, as int64 adds them."""
    draw, int4, bf16, listed = np.random.default_rng(count), kind == "w4", (count + warps) % 2 == 0, source != "all"
    n, lo, piece, groups = 256, 16 if listed else 20, 256 if int4 else 128, 4
    qweight = draw.integers(-8 if int4 else -128, 8 if int4 else 128, (n, 3 * piece))
    tensor = torch.from_numpy(qweight).to(torch.int8)
    weight = (pack_qweight(tensor) if int4 else tensor).numpy()
    stride, block = weight.shape[1], 1
    scales = torch.from_numpy(draw.normal(size=(n, groups)).astype(np.float32)).bfloat16()
    scales[3] = 0.0
    rows = np.sort(draw.choice(n, count, replace=False)) if listed else lo + np.arange(count)
    half = torch.bfloat16 if bf16 else torch.float16
    entries = torch.from_numpy(draw.normal(size=count).astype(np.float32)).to(half)
    bits = entries.view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    entries_of = (rows << 16 | bits).astype(np.uint32) if listed else bits.astype(np.uint16)
    memory, starts = laid_out(entries_of, weight, scales.view(torch.int16).numpy())
    thread = 16 * (LANES % 8)
    start = starts[1] + 128 * block + thread
    if swiglu and not int4:
        start = starts[1] + 64 * block + thread % 64 + thread // 64 * (stride // 2)
    up = np.float32(2.0**18)
    given = {"$2": starts[0], "$3": start, "$4": starts[2], "$5": count, "$6": lo, "$7": stride, "$8": up, "$9": 16}
    stages, begin, room = plan(int4, warps, stages, n if source == "shared" else 0)
    assert (begin > 0) == (source == "shared" and stages > 2)
    machine = Block(product(int4, warps, stages, listed, bf16, swiglu, True, begin), memory, room)
    if begin:
        data = entries_of.view(np.uint8)
        machine.shared[begin : begin + len(data)] = data
    found = run_block(machine, warps, {name: np.asarray(value) for name, value in given.items()}, 1, ["$0", "$1"])
    times = scales.float().numpy()[rows].repeat(piece // 4, 1) if int4 else np.float32(1)
    v = np.rint(entries.float().numpy().astype(np.float64)[:, None] * up * times).astype(np.int64)
    assert count == 0 or np.abs(v).max() < 2**22
    own = qweight[rows][:, block * piece : (block + 1) * piece]
    if swiglu and not int4:
        columns = block * 64 + np.arange(64)
        own = qweight[rows][:, np.concatenate([columns, columns + stride // 2])]
    exact = (own * v * (16 if int4 else 1)).sum(0)
    share, half_piece = sharers(int4, warps, swiglu), piece // 2
    if swiglu:
        assert np.array_equal(found[0][: half_piece * share : share], exact[:half_piece])
        assert np.array_equal(found[1][: half_piece * share : share], exact[half_piece:])
    elif share:
        assert np.array_equal(found[0][: piece * share : share], exact)
    else:
        assert np.array_equal(np.stack(found, 1).reshape(-1), exact)


def test_what_lies_behind_a_row_is_not_copied() -> None:
    """Lanes whose bytes a row does not have any more find zeros, and read nothing."""
    weight = np.full((8, 32), 3, dtype=np.int8)
    source = (np.arange(8) << 16 | 0x3F80).astype(np.uint32)
    memory, starts = laid_out(source, weight)
    reach = np.where(LANES % 8 < 2, 16, 0)
    given = {"$2": starts[0], "$3": starts[1] + 16 * (LANES % 8), "$4": 0, "$5": 8, "$6": 0, "$7": 32, "$9": reach}
    values = {name: np.asarray(value) for name, value in given.items()} | {"$8": np.asarray(np.float32(4.0))}
    machine = Block(product(False, 4, 2, True, True, False), memory, plan(False, 4, 2, 0)[2])
    found, _ = run_block(machine, 4, values, 1, ["$0", "$1"])
    assert found[:32].tolist() == [8 * 3 * 4] * 32
    assert not found[32:].any()


@pytest.mark.parametrize("items", [0, 820, 4096, 14336])
@pytest.mark.parametrize("warps", [4, 8, 16])
def test_shared_memory_suffices(warps: int, items: int) -> None:
    """Static shared memory ends at 48 KiB; a list that would leave no copies room stays in memory."""
    for int4, most in itertools.product((False, True), (1, 2, 4, 16, 64)):
        stages, begin, room = plan(int4, warps, most, items)
        assert 2 <= stages <= max(2, most)
        assert stages % 2 == 0
        assert room <= SHARED
        assert begin == 0 or (begin % 4 == 0 and begin + 4 * items == room)
        assert items == 0 or begin or most < 4 or 4 * items > SHARED // 4


COMPILE = """
import importlib, json, torch, triton
from triton.backends.compiler import GPUTarget

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

triton.runtime.driver.set_active(Driver())
launch = importlib.import_module("larosa_kernels.ops.sparse_gemv_quantised.launch")

found = []
kernel = launch.sparse_gemv_quantised_kernel

class Compiled:
    def __getitem__(self, grid):
        return lambda *given, **more: found.append(kernel.warmup(*given, grid=grid, **more))

launch.sparse_gemv_quantised_kernel = Compiled()
x, n = torch.zeros(1, 512, dtype=torch.bfloat16), 512
none = dict(bound=None, strict=True, search_range=None, gate_threshold=None, bias=None)
w4 = launch.GemvCall(x=x, weight=torch.zeros(n, 256, dtype=torch.uint8), k=200, norm=x[0], eps=1e-5, swiglu=True,
                    scale=torch.zeros(2, n, 4, dtype=torch.bfloat16), residual=None, out_features=512, max_scale=1.0,
                    paired=True, overlap=True, **none)
w8 = launch.GemvCall(x=x, weight=torch.zeros(n, 256, dtype=torch.int8), k=n, norm=None, eps=0.0, swiglu=False,
                    scale=torch.zeros(256), residual=torch.zeros(1, 256, dtype=torch.bfloat16), out_features=256,
                    max_scale=1.0, paired=False, overlap=False, **none)
launch.launch_quantised(w4, launch.GemvConfig(unroll=8, num_warps=8))
launch.launch_quantised(w8, launch.GemvConfig(unroll=2, num_warps=4, splits=2))
print(json.dumps([{"cubin": len(each.asm["cubin"]), "ptx": each.asm["ptx"], "stages": stages}
                  for each, stages in zip(found, (8, 2))]))
"""


def test_triton_compiles_the_ptx_for_hopper() -> None:
    """For sm_90 without a GPU: the assembler takes it, once a kernel, and no register is spilled."""
    paths = os.pathsep.join([str(Path(larosa_kernels.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    quiet = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=quiet, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for compiled, products, waits in zip(json.loads(run.stdout), (8, 4), (1, 0), strict=True):
        assert compiled["cubin"] > 0
        assert compiled["ptx"].count("mma.sync.aligned.m16n8k32") == products * compiled["stages"] // 2
        assert compiled["ptx"].count("griddepcontrol.wait") == waits
