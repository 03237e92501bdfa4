"""Matrix-vector product over the kept entries of x, with what stands around it in a layer.

Grid (column blocks, B). A program owns COLUMNS outputs and walks all rows of the weight, so nothing is shared between
programs and every sum has one order. What is small is done by every program again, which is cheaper than a launch:
1. x is read as words of two entries, normed (NORM) and ranked (search.py); the kept entries, zeros elsewhere, go to a
   line of scratch that only this program reads;
2. UNROLL rows a thread are loaded at once, those of dropped entries not at all, and summed in fp32;
3. the warps' sums meet; scale, bias, SwiGLU and its gate, residual; one rounding.
NIBBLES: the weight is packed 4-bit codes (packing.py) in words of 8; a row's entry meets the scale of its group, the
only one that a program's outputs have, before it meets the codes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import load_words, norm_words, store_words, swiglu
from larosa_kernels.search import find_limit, first_candidates, round_to, stays
from larosa_kernels.sparse_gemv.nibbles import place_factor, spread


@triton.jit
def mask_words(words, i, limit, last_index):
    """Two entries a word, zero where they do not stay."""
    low = stays(words & 0x7FFF, 2 * i, limit, last_index)
    high = stays((words >> 16) & 0x7FFF, 2 * i + 1, limit, last_index)
    return tl.where(low, words & 0xFFFF, 0) | tl.where(high, words & -65536, 0)


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def load_around(scale, bias, column, fit, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Factor and summand of the outputs; what is not there is never used."""
    factor = tl.full([column.shape[0]], 1.0, tl.float32)
    summand = tl.full([column.shape[0]], 0.0, tl.float32)
    if HAS_SCALE:
        factor = tl.load(scale + column, mask=fit, other=0.0)
    if HAS_BIAS:
        summand = tl.load(bias + column, mask=fit, other=0.0).to(tl.float32)
    return factor, summand


@triton.jit
def finish(total, factor, summand, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """fp32 sums with scale and bias."""
    if HAS_SCALE:
        total = total * factor
    if HAS_BIAS:
        total += summand
    return total


@triton.jit(do_not_specialize=["k"])
def sparse_gemv_kernel(
    x, norm, bracket, keep, weight, scale, bias, gate_limit, residual, y, line, one, n, m, k, eps,
    RULE: tl.constexpr, NORM: tl.constexpr, SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KEEP_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    BRACKETED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, NIBBLES: tl.constexpr = False,
):  # fmt: skip
    """RULE: `all`, `search` (the k largest), or `given` (the pairs at keep). Shapes in functional.py.

    line: [blocks, B, n] scratch; one: a pointer to 1.0, see the loop; WIDE: the weight has 2^31 entries or more;
    KEEP_STRIDE: 2, or 0 for one pair for all rows.
    """
    block = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    width = m // 2 if SWIGLU else m
    fit = column < width
    i = tl.arange(0, BLOCK // 2)
    if NORM:
        gamma = load_words(norm, i, n, EVEN)
    source = x + batch * n
    if NORM or RULE != "all":
        words = load_words(source, i, n, EVEN)
    # Small things first, all of them: behind the weights they would wait for them.
    keep += batch * KEEP_STRIDE
    if RULE == "search":
        first_candidate, second_candidate = first_candidates(bracket, INFINITY, BRACKETED)
    elif RULE == "given":
        limit, last_index = tl.load(keep), tl.load(keep + 1)
    factor, summand = load_around(scale, bias, column, fit, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        factor_up, summand_up = load_around(scale, bias, column + width, fit, HAS_SCALE, HAS_BIAS)
    if HAS_RESIDUAL:
        old = tl.load(residual + batch * width + column, mask=fit, other=0.0).to(tl.float32)
    if NORM or RULE != "all":
        if NORM:
            words = norm_words(words, gamma, n, eps, dtype, INTERPRETED)
        if RULE != "all":
            if RULE == "search":
                limit, last_index = find_limit(
                    words & 0x7FFF7FFF, n, k, first_candidate, second_candidate,
                    STRICT, INFINITY, PACKED, THREADS, VECTOR,
                )  # fmt: skip
            words = mask_words(words, i, limit, last_index)
        source = line + (block * tl.num_programs(1) + batch) * n
        store_words(source, i, words, n, EVEN)
        tl.debug_barrier()  # the line is read by other threads than wrote it

    row = tl.arange(0, ROWS)
    if NIBBLES:
        words_of = weight.to(tl.pointer_type(tl.int32))
        word = block * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        half = tl.cdiv(width, 64)  # groups before up's
        stride = half * 16 if SWIGLU else half * 8
        scale += (block * COLUMNS // 64).to(tl.int64) * n
        scale_up = scale + half.to(tl.int64) * n
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    if SWIGLU:
        total_up = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    entries = ()
    for j in tl.static_range(UNROLL):
        at = j * ROWS + row
        entries = entries + (tl.load(source + at, mask=at < n, other=0.0),)
    for first in tl.range(0, n, UNROLL * ROWS, num_stages=1):
        # The next turn's entries first: behind the weights they would wait for them.
        upcoming = ()
        for j in tl.static_range(UNROLL):
            at = first + (UNROLL + j) * ROWS + row
            upcoming = upcoming + (tl.load(source + at, mask=at < n, other=0.0),)
        tiles = ()
        tiles_up = ()
        scales = ()
        scales_up = ()
        for j in tl.static_range(UNROLL):
            at = first + j * ROWS + row
            if RULE == "all":
                taken = at < n
            else:
                taken = entries[j] != 0
            if NIBBLES:
                cell = words_of + (at.to(tl.int64) if WIDE else at)[:, None] * stride + word[None, :]
                mask = taken[:, None]
                up_there = half * 8
            else:
                cell = weight + (at.to(tl.int64) if WIDE else at)[:, None] * m + column[None, :]
                mask = taken[:, None] & fit[None, :]
                up_there = width
            tiles = tiles + (tl.load(cell, mask=mask, other=0, eviction_policy="evict_first"),)
            if SWIGLU:
                tiles_up = tiles_up + (tl.load(cell + up_there, mask=mask, other=0, eviction_policy="evict_first"),)
            if NIBBLES:
                scales = scales + (tl.load(scale + at, mask=taken, other=0.0),)
                if SWIGLU:
                    scales_up = scales_up + (tl.load(scale_up + at, mask=taken, other=0.0),)
        # A factor of 1 that is loaded behind the barrier keeps the compiler from waiting for a tile between two loads.
        tl.debug_barrier()
        unit = tl.load(one, volatile=True)
        for j in tl.static_range(UNROLL):
            if NIBBLES:
                value = entries[j].to(tl.float32) * unit
                total += spread(tiles[j]) * (value * scales[j].to(tl.float32))[:, None]
                if SWIGLU:
                    total_up += spread(tiles_up[j]) * (value * scales_up[j].to(tl.float32))[:, None]
            else:
                value = (entries[j].to(tl.float32) * unit)[:, None]
                total += tiles[j].to(tl.float32) * value
                if SWIGLU:
                    total_up += tiles_up[j].to(tl.float32) * value
        entries = upcoming
    if SWIGLU:
        out, up = tl.reduce((total, total_up), 0, _add_two)
    else:
        out = tl.sum(total, 0)
    if NIBBLES:
        out = out * place_factor(column)
        if SWIGLU:
            up = up * place_factor(column)
    out = finish(out, factor, summand, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        up = finish(up, factor_up, summand_up, HAS_SCALE, HAS_BIAS)
        gate = round_to(out, dtype, INTERPRETED).to(tl.float32)
        out = swiglu(gate, round_to(up, dtype, INTERPRETED).to(tl.float32), gate_limit, dtype, GATED, INTERPRETED)
    if HAS_RESIDUAL:
        out += old
    tl.store(y + batch * width + column, round_to(out, dtype, INTERPRETED), mask=fit)
