"""Column sums of a tile where a thread holds many columns of a row: device functions of the sparse product.

Lanes pair up and share out the columns, so each shuffle stage passes half as many values; README.md has the order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _swap_neighbours(sent):
    """fp32 [r, 2, d, c] -> the same with the two elements of dimension 1 swapped, bit for bit."""
    bits = sent.to(tl.int32, bitcast=True)
    # One shuffle per value: the sum of both less one is the other, which the compiler sees too.
    return (tl.sum(bits, 1, keep_dims=True) - bits).to(tl.float32, bitcast=True)


@triton.jit
def _pair_rows(part):
    """[r, d, c] -> [r / 2, 2 d, c / 2]: sums of two rows, even columns in the first of two lanes, odd in the second.

    The columns' bits gather in the second dimension, the lowest first.
    """
    r: tl.constexpr = part.shape[0] // 2
    d: tl.constexpr = part.shape[1]
    c: tl.constexpr = part.shape[2] // 2
    even, odd = tl.split(tl.reshape(part, [r, 2, d, c, 2]))
    first = tl.arange(0, 2)[None, :, None, None] == 0
    both = tl.where(first, even, odd) + _swap_neighbours(tl.where(first, odd, even))
    return tl.reshape(both, [r, 2 * d, c])


@triton.jit
def _share_columns(total, PER_THREAD: tl.constexpr):
    """[rows, columns] -> [fewer rows, d, columns / d] of the same sums; column d i + j is at [:, j, i]."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = total.shape[1]
    CONTIGUOUS: tl.constexpr = min(PER_THREAD, COLUMNS)
    SETS: tl.constexpr = min(PER_THREAD // CONTIGUOUS, ROWS)  # rows of one thread, far apart
    LANES: tl.constexpr = 32 * CONTIGUOUS // COLUMNS  # that hold the same columns of neighbouring rows
    if SETS > 1:
        total = tl.sum(tl.reshape(total, [SETS, ROWS // SETS, COLUMNS]), 0)
    part = tl.reshape(total, [ROWS // SETS, 1, COLUMNS])
    for stage in tl.static_range(5):
        if 2 << stage <= min(LANES, CONTIGUOUS) and part.shape[0] > 1:
            part = _pair_rows(part)
    return part


@triton.jit
def _in_order(shared):
    """[d, columns / d] -> [columns]."""
    return tl.reshape(tl.trans(shared), [shared.shape[0] * shared.shape[1]])


@triton.jit
def sum_columns(total, PER_THREAD: tl.constexpr):
    """fp32 [rows, columns] -> [columns]. PER_THREAD: columns at most that a thread holds of a row, as a load has them.

    A warp's lanes are taken to lie along the columns first, then along the rows; where they do not, this is slower.
    """
    return _in_order(tl.sum(_share_columns(total, PER_THREAD), 0))


@triton.jit
def sum_both_columns(total, total_up, PER_THREAD: tl.constexpr):
    """`sum_columns` of two tiles in one reduction over the warps."""
    out, up = tl.reduce((_share_columns(total, PER_THREAD), _share_columns(total_up, PER_THREAD)), 0, _add_two)
    return _in_order(out), _in_order(up)
