"""Matrix-vector product over the kept entries of x, with what stands around it in a layer.

Grid (column blocks, B). A program owns COLUMNS outputs and walks all rows of the weight, or those that it lists, so
nothing is shared between programs and every sum has one order. What is small is done by every program again, which is
cheaper than a launch:
1. x is read as words of two entries, normed (NORM) and ranked (search.py); the kept entries, zeros elsewhere, go to a
   line of scratch that only this program reads; COMPACT: a list of them (kept.py) in the place of zeros elsewhere;
2. UNROLL rows a thread are loaded at once, those of dropped entries not at all, and summed in fp32;
3. the warps' sums meet; scale, bias, SwiGLU and its gate, residual; one rounding.
Codes of 8 and 4 bits have a kernel of their own, code_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.compaction import list_largest, list_limited, no_ties, word_indices
from larosa_kernels.common.epilogue import finish, load_around
from larosa_kernels.common.packed_half import load_words, norm_words, store_words, swiglu
from larosa_kernels.common.topk_search import find_limit, first_candidates, kth_magnitude, round_to, stays
from larosa_kernels.ops.sparse_gemv.rows import add_rows


@triton.jit
def mask_words(words, i, limit, last_index):
    """Two entries a word, zero where they do not stay."""
    low = stays(words & 0x7FFF, 2 * i, limit, last_index)
    high = stays((words >> 16) & 0x7FFF, 2 * i + 1, limit, last_index)
    return tl.where(low, words & 0xFFFF, 0) | tl.where(high, words & -65536, 0)


@triton.jit(do_not_specialize=["k"])
def sparse_gemv_kernel(
    x, norm, bracket, keep, weight, scale, bias, gate_limit, residual, y, line, one, n, width, k, eps,
    RULE: tl.constexpr, NORM: tl.constexpr, SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KEEP_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    BRACKETED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """RULE: `all`, `search` (the k largest), or `given` (the pairs at keep). Shapes in api.py.

    width: outputs, an argument of its own so that the compiler knows where it is a multiple of 16.
    line: [blocks, B, n] scratch, int32 where COMPACT is set, else of x's dtype; one: a pointer to 1.0, see the loop;
    WIDE: the weight has 2^31 entries or more; KEEP_STRIDE: 2, or 0 for one pair for all rows.
    """
    block = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    fit = column < width
    i = word_indices(BLOCK // 2, THREADS) if COMPACT else tl.arange(0, BLOCK // 2)
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
    count = n
    if NORM or RULE != "all":
        if NORM:
            words = norm_words(words, gamma, n, eps, dtype, INTERPRETED)
            if COMPACT:  # padding times a scale that is no number would be listed
                words = tl.where(2 * i + 1 < n, words, tl.where(2 * i < n, words & 0xFFFF, 0))
        if COMPACT:
            source = line + (block * tl.num_programs(1) + batch) * n
            if RULE == "search":
                limit, at_least, above = kth_magnitude(
                    words & 0x7FFF7FFF, n, k, first_candidate, second_candidate, INFINITY, PACKED, THREADS, VECTOR
                )
                room = (k if STRICT else at_least) - above
                count = list_largest(source, words, i, limit, room, no_ties(THREADS), INFINITY, PACKED, THREADS)
            else:
                count = list_limited(source, words, i, limit, last_index, INFINITY, PACKED, THREADS)
        else:
            if RULE == "search":
                limit, last_index = find_limit(
                    words & 0x7FFF7FFF, n, k, first_candidate, second_candidate,
                    STRICT, INFINITY, PACKED, THREADS, VECTOR,
                )  # fmt: skip
            if RULE != "all":
                words = mask_words(words, i, limit, last_index)
            source = line + (block * tl.num_programs(1) + batch) * n
            store_words(source, i, words, n, EVEN)
        tl.debug_barrier()  # the line is read by other threads than wrote it

    out, up = add_rows(
        source, weight, one, count, 2 * width if SWIGLU else width, block, width,
        COLUMNS, ROWS, UNROLL, SWIGLU, RULE == "all", COMPACT, dtype, WIDE,
    )  # fmt: skip
    out = finish(out, factor, summand, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        up = finish(up, factor_up, summand_up, HAS_SCALE, HAS_BIAS)
        gate = round_to(out, dtype, INTERPRETED).to(tl.float32)
        out = swiglu(gate, round_to(up, dtype, INTERPRETED).to(tl.float32), gate_limit, dtype, GATED, INTERPRETED)
    if HAS_RESIDUAL:
        out += old
    tl.store(y + batch * width + column, round_to(out, dtype, INTERPRETED), mask=fit)
