"""Gathering half of a matrix's rows, by the width of the piece that a program owns: a floor of the sparse product.

    PYTHONPATH=kernels python -m larosa_kernels.benchmarks.gather_bandwidth --rows 14336 --row-bytes 2048

No selection and no product: words are read and added. Pieces times splits make as many programs as fit, two of 8 warps
or one of 16 a multiprocessor. Needs a CUDA GPU, torch and triton.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from larosa_kernels.common.timing import graph_latency

_BEYOND_L2 = 2.4e8
"""Bytes of matrices that take turns."""
_WARPS_A_MULTIPROCESSOR = 16


@triton.jit
def gather_kernel(
    rows, matrix, out, count, stride, pieces,
    WORDS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Sums of WORDS int32 columns over a SPLITS-th of the rows listed."""
    piece = tl.program_id(0) % pieces
    share = tl.cdiv(count, SPLITS)
    low = tl.program_id(0) // pieces * share
    high = tl.minimum(count, low + share)
    word = piece * WORDS + tl.arange(0, WORDS)
    total = tl.zeros([ROWS, WORDS], tl.int32)
    for first in tl.range(low, high, ROWS * UNROLL, num_stages=1):
        for j in tl.static_range(UNROLL):
            at = first + j * ROWS + tl.arange(0, ROWS)
            row = tl.load(rows + at, mask=at < high, other=0)
            cell = matrix + row[:, None] * stride + word[None, :]
            total += tl.load(cell, mask=(at < high)[:, None], other=0, eviction_policy="evict_first")
    tl.store(out + tl.program_id(0) * WORDS + tl.arange(0, WORDS), tl.sum(total, 0))


def gather(rows: Tensor, out: Tensor, piece: int, splits: int, warps: int, unroll: int, matrix: Tensor) -> None:
    """One launch over rows of `matrix` [n, words] int32 in pieces of `piece` bytes."""
    words = piece // 4
    pieces = matrix.shape[1] // words
    at_once = max(1, 32 * warps * 4 // words)
    gather_kernel[(pieces * splits,)](
        rows, matrix, out, len(rows), matrix.shape[1], pieces, words, at_once, unroll, splits, num_warps=warps,
        maxnreg=128,
    )  # fmt: skip


def main() -> int:
    """Time every piece width, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=14336)
    parser.add_argument("--row-bytes", type=int, default=2048)
    parser.add_argument("--share", type=float, default=0.5, help="of the rows, drawn at random")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU: this benchmark measures nothing without one", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    size = (options.rows, options.row_bytes // 4)
    copies = int(_BEYOND_L2 / options.rows / options.row_bytes) + 1
    matrices = [torch.randint(-9, 9, size, device="cuda", dtype=torch.int32) for _ in range(copies)]
    rows = (torch.rand(options.rows, device="cuda") < options.share).nonzero().flatten().int()
    out = torch.empty(1 << 21, dtype=torch.int32, device="cuda")
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    print(f"{torch.cuda.get_device_name()}: {options.rows} rows of {options.row_bytes} bytes, {len(rows)} read")
    print("piece splits warps loads     us   TB/s")
    for piece in (16, 32, 64, 128, 256, 512):
        for warps, unroll in ((8, 4), (8, 8), (16, 4), (16, 8)):
            pieces = options.row_bytes // piece
            splits = max(1, multiprocessors * _WARPS_A_MULTIPROCESSOR // warps // max(pieces, 1))
            if pieces * splits * piece // 4 > len(out):
                continue
            calls = [partial(gather, rows, out, piece, splits, warps, unroll, matrix) for matrix in matrices]
            us = graph_latency(calls, replays=9).p50_us
            rate = len(rows) * options.row_bytes / us / 1e6
            print(f"{piece:5d} {splits:6d} {warps:5d} {unroll:5d} {us:6.1f} {rate:6.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
