"""Codes in whole numbers without a GPU: the tensor cores' operands and the warps' meeting, by a warp in numpy.

The interpreter runs the product of codes code by code (`add_codes_plainly`). What a GPU runs in its place is held here
against whole numbers: the strings that go to the assembler are read, and the layouts that Triton chooses for them.
What `add_codes` gives the tensor cores, an entry's bytes and a lane's words, is written here again: only a GPU tests
its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from larosa_kernels.sparse_gemv import codes
from larosa_kernels.sparse_gemv.meeting import meeting, operands
from larosa_kernels.sparse_gemv.packing import pack_codes

ZERO = 0x4B400000
Registers = dict[str, np.ndarray]


def run_ptx(text: str, inputs: list[np.ndarray], threads: int) -> list[np.ndarray]:
    """The four int64 outputs of `meeting` for all threads at once; inputs are its register operands from $4 on."""
    memory: dict[int, int] = {}
    r: Registers = {f"${4 + i}": value for i, value in enumerate(inputs)} | {"%tid.x": np.arange(threads)}
    r["larosa_meeting"] = np.zeros(threads, dtype=np.int64)
    alive = np.ones(threads, dtype=bool)

    def value(name: str) -> np.ndarray:
        return r[name] if name in r else np.full(threads, int(name, 0), dtype=np.int64)

    def put(name: str, found: np.ndarray) -> None:
        r[name] = np.where(alive, found, r.get(name, np.zeros(threads, dtype=np.int64)))

    def address(operand: str) -> np.ndarray:
        base, offset = re.fullmatch(r"\[(\w+)\+(\d+)\]", operand).groups()  # type: ignore[union-attr]
        return value(base) + int(offset)

    for statement in re.split(r"[;:]", text.strip("{ }")):
        words = statement.split(None, 1)
        if not words or words[0] in (".reg", ".shared", "bar.sync", "larosa_met"):
            continue
        name, given = words[0], [each.strip(" {}") for each in words[1].split(",")]
        if name == "@far":
            alive = alive & ~r["far"].astype(bool)
        elif name.startswith("mov"):
            put(given[0], value(given[1]))
        elif name == "and.b32":
            put(given[0], value(given[1]) & value(given[2]))
        elif name == "shr.u32":
            put(given[0], value(given[1]) >> value(given[2]))
        elif name == "setp.ge.u32":
            put(given[0], value(given[1]) >= value(given[2]))
        elif name in ("mad.lo.u32", "mad.wide.s32"):
            put(given[0], value(given[1]) * value(given[2]) + value(given[3]))
        elif name == "selp.b32":
            put(given[0], np.where(r[given[3]].astype(bool), value(given[1]), value(given[2])))
        elif name == "shfl.sync.bfly.b32":
            put(given[0], value(given[1])[np.arange(threads) ^ int(given[2])])
        elif name == "cvt.s64.s32":
            put(given[0], value(given[1]))
        elif name == "sub.s32":
            put(given[0], value(given[1]) - value(given[2]))
        elif name == "add.s64":
            put(given[0], value(given[1]) + value(given[2]))
        elif name == "st.shared.v2.b64":
            for at, first, second in zip(address(given[0]), value(given[1]), value(given[2]), strict=True):
                assert at % 16 == 0
                assert not {int(at), int(at) + 8} & memory.keys(), "two lanes write one place"
                memory |= {int(at): int(first), int(at) + 8: int(second)}
        elif name == "ld.shared.b64":
            put(given[0], np.array([memory.get(int(at), 0) for at in address(given[1])], dtype=np.int64))
        else:
            raise AssertionError(f"unknown instruction {statement}")
    return [r[f"${i}"] for i in range(4)]


def signed_bytes(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32)[..., None].view(np.int8).astype(np.int64)


def unsigned_bytes(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32)[..., None].view(np.uint8).astype(np.int64)


def mma(text: str, registers: list[np.ndarray]) -> list[np.ndarray]:
    """`mma.m16n8k32` of one warp by the fragments of the PTX manual; registers [32] each, those of $0 to $3 unused."""
    groups = [[int(n) for n in re.findall(r"\$(\d+)", part)] for part in re.findall(r"\{([^}]*)\}", text)]
    assert groups[0] == [0, 1, 2, 3]
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    A, B, C = (np.zeros(shape, dtype=np.int64) for shape in ((16, 32), (32, 8), (16, 8)))
    for i, register in enumerate(groups[1]):
        A[(g + 8 * (i % 2))[:, None], (4 * t + 16 * (i // 2))[:, None] + np.arange(4)] = signed_bytes(
            registers[register]
        )
    for i, register in enumerate(groups[2]):
        B[(4 * t + 16 * i)[:, None] + np.arange(4), g[:, None]] = unsigned_bytes(registers[register])
    for i, register in enumerate(groups[3]):
        C[g + 8 * (i // 2), 2 * t + i % 2] = registers[register]
    D = A @ B + C
    return [D[g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)]


def picked(bits: np.ndarray, high: bool) -> np.ndarray:
    """The entry of a lane's row in column n = g: a byte of it (or 64) at k = g % 4, zeros elsewhere."""
    g = np.arange(32) // 4
    byte = unsigned_bytes(bits)[np.arange(32), (2 if high else 0) + np.where(high, 0, g // 4)]
    byte = np.where((g >= 4) & high, 64, byte)
    return (byte << (8 * (g % 4))).astype(np.int64)


def sums_of(kind: str, words: np.ndarray, v: np.ndarray, warps: int) -> list[np.ndarray]:
    """The sums that `add_codes` has in lanes after its loop. words [rows, 32] of a piece, v [rows, 4] whole numbers."""
    rows = len(words)
    products = 4 if kind == "w4" else 2
    sums = [[np.zeros(32 * warps, dtype=np.int64) for _ in range(4)] for _ in range(2 * products)]
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    for first in range(0, rows, 8 * warps):
        for warp in range(warps):
            own = slice(32 * warp, 32 * warp + 32)
            pair = [first + 4 * warps * j + 4 * warp + t for j in (0, 1)]
            loaded = [[words[row, 4 * g + i] for i in range(4)] for row in pair]
            bits = [[v[row, c] + ZERO for c in range(4)] for row in pair]
            for product in range(products):
                for low, high in ((0, True), (1, False)):
                    at = sums[2 * product + low]
                    entries = [[picked(each, high) for each in own_bits] for own_bits in bits]
                    if kind == "w8":
                        registers = [*loaded[0], *loaded[1], *entries[0], *entries[1]]
                        text = codes._PAIRS.value[product]
                    else:
                        upper = [[(word ^ 0x80808080) & 0xF0F0F0F0 for word in each] for each in loaded]
                        lower = [[((word << 4) ^ 0x80808080) & 0xF0F0F0F0 for word in each] for each in loaded]
                        registers = [*lower[0], *upper[0], *lower[1], *upper[1], *entries[0], *entries[1]]
                        text = codes._GROUPS.value[product]
                    registers = [np.zeros(32)] * 4 + registers + [each[own] for each in at]
                    for i, found in enumerate(mma(text, registers)):
                        at[i][own] = found
    return [register for each in sums for register in each]


@pytest.mark.parametrize("swiglu", [False, True], ids=["plain", "swiglu"])
@pytest.mark.parametrize("warps", [4, 8, 16])
@pytest.mark.parametrize("kind", ["w4", "w8"])
def test_tensor_cores_and_meeting_give_whole_sums(kind: str, warps: int, swiglu: bool) -> None:
    """Rows of codes times whole entries, of both signs and up to 2^22, are what int64 gives, in the outputs' order."""
    draw, rows, nibbles = np.random.default_rng(warps), 8 * warps, kind == "w4"
    piece, groups = (256, 4) if nibbles else (128, 1)
    code = draw.integers(-8 if nibbles else -128, 8 if nibbles else 128, (rows, piece))
    v = draw.integers(-(2**22), 2**22 + 1, (rows, groups)).repeat(4 // groups, 1)
    v[0] = 2**22
    v[1] = -(2**22)
    tensor = torch.from_numpy(code).to(torch.int8)
    packed = pack_codes(tensor).numpy() if nibbles else tensor.numpy()
    words = np.ascontiguousarray(packed).view(np.uint32).astype(np.int64)
    assert words.shape == (rows, 32)
    found = run_ptx(meeting(nibbles, warps, swiglu), sums_of(kind, words, v, warps), 32 * warps)
    exact = (code * v.repeat(piece // 4, 1) * (16 if nibbles else 1)).sum(0)
    threads = 32 * warps
    if swiglu:
        half = piece // 2
        assert np.array_equal(found[0][:half], exact[:half])
        assert np.array_equal(found[2][:half], exact[half:])
    elif piece > threads:
        assert np.array_equal(np.stack([found[0], found[2]], 1).reshape(-1), exact)
    else:
        assert np.array_equal(found[0][:piece], exact)
    assert operands(nibbles).count(",r") == len(sums_of(kind, words[:0], v[:0], 1))


COMPILE = """
import importlib, json, torch, triton
from triton.backends.compiler import GPUTarget

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

triton.runtime.driver.set_active(Driver())
launch = importlib.import_module("larosa_kernels.sparse_gemv.launch")

found = []
kernel = launch.code_gemv_kernel

class Compiled:
    def __getitem__(self, grid):
        return lambda *given, **more: found.append(kernel.warmup(*given, grid=grid, **more))

launch.code_gemv_kernel = Compiled()
x, n = torch.zeros(1, 512, dtype=torch.bfloat16), 512
none = dict(keep=None, strict=True, bracket=None, gate_limit=None, bias=None)
w4 = launch.Product(x=x, weight=torch.zeros(n, 256, dtype=torch.uint8), k=200, norm=x[0], eps=1e-5, swiglu=True,
                    scale=torch.zeros(2, n, 4, dtype=torch.bfloat16), residual=None, m=512, largest_scale=1.0,
                    paired=True, overlap=True, **none)
w8 = launch.Product(x=x, weight=torch.zeros(n, 256, dtype=torch.int8), k=n, norm=None, eps=0.0, swiglu=False,
                    scale=torch.zeros(256), residual=torch.zeros(1, 256, dtype=torch.bfloat16), m=256,
                    largest_scale=1.0, paired=False, overlap=False, **none)
launch.launch_codes(w4, launch.GemvConfig(unroll=2, num_warps=8))
launch.launch_codes(w8, launch.GemvConfig(unroll=2, num_warps=4, splits=2))
print(json.dumps([{"ttgir": each.asm["ttgir"], "ptx": each.asm["ptx"]} for each in found]))
"""


def test_triton_lays_words_out_as_the_tensor_cores_want_them() -> None:
    """Compiled for sm_90 without a GPU: a thread has four neighbouring words of a row, thread after thread."""
    paths = os.pathsep.join([str(Path(codes.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    quiet = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=quiet, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for compiled, products, waits in zip(json.loads(run.stdout), (8, 4), (1, 0), strict=True):
        layouts = dict(re.findall(r"^(#\w+) = (.*)$", compiled["ttgir"], re.M))
        used = [re.findall(r"x4xi32, (#\w+)>", line) for line in compiled["ttgir"].splitlines() if "mma.sync" in line]
        assert used
        names = {name for each in used for name in each}
        wanted = r"sizePerThread = \[1, 4\], threadsPerWarp = \[32, 1\], warpsPerCTA = \[\d, 1\], order = \[1, 0\]"
        assert len(names) == 1
        assert re.search(wanted, layouts[names.pop()])
        assert compiled["ptx"].count("mma.sync.aligned.m16n8k32") == 2 * products  # two halves of a turn
        assert compiled["ptx"].count("griddepcontrol.wait") == waits
        assert compiled["ptx"].count("griddepcontrol.launch_dependents") == waits
