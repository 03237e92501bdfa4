"""Sums of a tile's columns where a thread holds many columns of a row: device functions of the sparse product.

A reduction passes every column through every stage between the lanes of a warp. Here lanes pair up: of two neighbouring
columns each lane keeps one and hands the other over, so that a stage passes half as many values as the one before.

The order of a sum: neighbouring rows, then neighbouring pairs and so on, as far as lanes and columns go; then the rest
of the warp and the warps, by Triton's own reduction. Where a row is shorter than a thread's load, a thread's rows come
first of all.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _exchange(sent):
    """fp32 [r, 2, d, c] with the two of dimension 1 in each other's place, exactly."""
    bits = sent.to(tl.int32, bitcast=True)
    # One shuffle a value: the sum of both less its own is the other's, which the compiler sees too.
    return (tl.sum(bits, 1, keep_dims=True) - bits).to(tl.float32, bitcast=True)


@triton.jit
def _pair_rows(part):
    """[r, d, c] -> [r / 2, 2 d, c / 2]: two rows' sum, their even columns in the first of two lanes, odd in the second.

    The columns' bits gather in the second dimension, the lowest first.
    """
    r: tl.constexpr = part.shape[0] // 2
    d: tl.constexpr = part.shape[1]
    c: tl.constexpr = part.shape[2] // 2
    even, odd = tl.split(tl.reshape(part, [r, 2, d, c, 2]))
    first = tl.arange(0, 2)[None, :, None, None] == 0
    both = tl.where(first, even, odd) + _exchange(tl.where(first, odd, even))
    return tl.reshape(both, [r, 2 * d, c])


@triton.jit
def _share_columns(total, HELD: tl.constexpr):
    """[rows, columns] -> [fewer rows, d, columns / d] of the same sums; column d i + j is at [:, j, i]."""
    ROWS: tl.constexpr = total.shape[0]
    COLUMNS: tl.constexpr = total.shape[1]
    OWN: tl.constexpr = min(HELD, COLUMNS)
    SETS: tl.constexpr = min(HELD // OWN, ROWS)  # rows of one thread, far apart
    LANES: tl.constexpr = 32 * OWN // COLUMNS  # that hold the same columns of neighbouring rows
    if SETS > 1:
        total = tl.sum(tl.reshape(total, [SETS, ROWS // SETS, COLUMNS]), 0)
    part = tl.reshape(total, [ROWS // SETS, 1, COLUMNS])
    for stage in tl.static_range(5):
        if 2 << stage <= min(LANES, OWN) and part.shape[0] > 1:
            part = _pair_rows(part)
    return part


@triton.jit
def _in_order(found):
    """[d, columns / d] -> [columns]."""
    return tl.reshape(tl.trans(found), [found.shape[0] * found.shape[1]])


@triton.jit
def sum_columns(total, HELD: tl.constexpr):
    """fp32 [rows, columns] -> [columns]. HELD: the columns at most that a thread holds of a row, as a load of it has.

    A warp's lanes are taken to lie along the columns first, then along the rows; where they do not, this is slower.
    """
    return _in_order(tl.sum(_share_columns(total, HELD), 0))


@triton.jit
def sum_both_columns(total, total_up, HELD: tl.constexpr):
    """`sum_columns` of two tiles, whose warps meet at once."""
    out, up = tl.reduce((_share_columns(total, HELD), _share_columns(total_up, HELD)), 0, _add_two)
    return _in_order(out), _in_order(up)
