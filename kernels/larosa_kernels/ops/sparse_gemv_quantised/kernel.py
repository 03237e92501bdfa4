"""Matrix-vector product of 8-bit or 4-bit codes over the kept entries of x, with what stands around it in a layer.

Grid (blocks of columns times SPLITS, B). A program owns 128 bytes of each row, of the rows from `lo` to `hi`, a
SPLITS-th of all; what the programs of a column block have is added up in memory, in whole numbers (codes.py).
What is small is done by every program again, which is cheaper than a launch:
1. x is read as words of two entries, normed (NORM) and ranked (histogram.py, search.py); its largest entry sets the
   fixed point;
2. the kept entries of the program's own rows go to a list (kept.py) that only this program reads;
3. their rows are multiplied and summed (product.py), and the sums become fp32: scale, bias, SwiGLU and its gate,
   residual; one rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from larosa_kernels.common.compaction import list_largest, list_limited, no_ties, ties_before, word_indices
from larosa_kernels.common.epilogue import finish, load_around
from larosa_kernels.common.packed_half import load_words, low_half, norm_scale, scale_words, store_words, swiglu
from larosa_kernels.common.topk_search import (
    first_candidates,
    kth_magnitude,
    kth_magnitude_and_largest,
    largest_of,
    round_to,
)
from larosa_kernels.ops.sparse_gemv_quantised.codes import add_codes, add_codes_plainly, fixed_point
from larosa_kernels.ops.sparse_gemv_quantised.histogram import FOUND, WINDOW

_COUNT = tl.constexpr(53)
"""The bit from which on a sum of parts holds how many there are; the sum itself is below 2^52 (launch.py)."""

_FOUND = tl.constexpr(FOUND)
_WINDOW = tl.constexpr(WINDOW)


@triton.jit
def _kth_and_largest(
    words, n, k, first, second,
    COUNTED: tl.constexpr, OPERANDS: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """`search.kth_magnitude_and_largest` of words with signs, k below n, for counters that are `cleared`."""
    base = first - (_WINDOW - (second - first)) // 2
    base = tl.minimum(tl.maximum(base, 1), INFINITY - _WINDOW)
    tl.inline_asm_elementwise(
        COUNTED, OPERANDS, [words, (base << 16) | k], dtype=tl.int32, is_pure=False, pack=words.shape[0] // THREADS
    )
    limit, at_least, above, largest = tl.inline_asm_elementwise(
        _FOUND, "=r,=r,=r,=r,r", [k], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1
    )
    if limit < 0:
        limit, at_least, above = kth_magnitude(words & 0x7FFF7FFF, n, k, first, second, INFINITY, PACKED, THREADS, 1)
    return limit, at_least, above, largest


@triton.jit
def _largest(x, words, n, BLOCK: tl.constexpr, HELD: tl.constexpr, EVEN: tl.constexpr):
    """The largest pattern of n entries: of `words`, or of x where a program cannot hold it (not HELD)."""
    if HELD:
        top = largest_of(words)
    else:
        i = tl.arange(0, BLOCK // 2)
        top = tl.zeros((BLOCK // 2,), tl.int32)
        for first in tl.range(0, n // 2 + 1, BLOCK // 2):
            top = tl.maximum(top, largest_of(load_words(x, first + i, n, EVEN)))
    return tl.max(top, 0)


@triton.jit
def _leave(
    y, total, total_up, factor, summand, factor_up, summand_up, old, down, at, fit, gate_limit,
    SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Whole sums to outputs."""
    out = finish(total.to(tl.float32) * down, factor, summand, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        up = finish(total_up.to(tl.float32) * down, factor_up, summand_up, HAS_SCALE, HAS_BIAS)
        gate = round_to(out, DTYPE, INTERPRETED).to(tl.float32)
        out = swiglu(gate, round_to(up, DTYPE, INTERPRETED).to(tl.float32), gate_limit, DTYPE, GATED, INTERPRETED)
    if HAS_RESIDUAL:
        out += old
    tl.store(y + at, round_to(out, DTYPE, INTERPRETED), mask=fit)


@triton.jit(do_not_specialize=["k"])
def code_gemv_kernel(
    x, norm, bracket, keep, weight, scale, bias, gate_limit, residual, y, line, parts,
    n, own, width, stride, half, k, eps, largest_scale,
    RULE: tl.constexpr, NORM: tl.constexpr, SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, KEEP_STRIDE: tl.constexpr, SPLITS: tl.constexpr, SHARERS: tl.constexpr,
    WARPS: tl.constexpr, NIBBLES: tl.constexpr, PAIRED: tl.constexpr,
    INTERPRETED: tl.constexpr, PRODUCT: tl.constexpr, INPUTS: tl.constexpr, RESERVE: tl.constexpr,
    LIST: tl.constexpr, COUNTED: tl.constexpr, COUNTED_OPERANDS: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr, OWN: tl.constexpr, HELD: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, BRACKETED: tl.constexpr,
):  # fmt: skip
    """RULE: `all`, `search` (the k largest), or `given` (the pairs at keep). Shapes in api.py.

    own: entries a program owns, even; OWN: a power of two above it; stride, half: words of 4 bytes a row and, of 8
    bits, up to up's; line: [programs, B, own] scratch, int32 where rows are dropped, else of x's dtype; parts: [B,
    blocks, 128 or 256] int64 zeros.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    THREADS: tl.constexpr = 32 * WARPS
    PIECE: tl.constexpr = 256 if NIBBLES else 128
    blocks = tl.num_programs(0) // SPLITS
    block = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks
    batch = tl.program_id(1).to(tl.int64)
    lo = split * own
    hi = tl.minimum(lo + own, n)
    source = x + batch * n
    i = word_indices(BLOCK // 2, THREADS)
    own_i = i
    if SPLITS > 1:
        own_i = word_indices(OWN // 2, THREADS) + lo // 2
    if NORM:
        gamma = load_words(norm, i, n, EVEN)
        own_gamma = gamma
        if SPLITS > 1:
            own_gamma = load_words(norm, own_i, hi, EVEN)
    # Small things first, all of them: behind the weights they would wait for them.
    keep += batch * KEEP_STRIDE
    if RULE == "search":
        first_candidate, second_candidate = first_candidates(bracket, INFINITY, BRACKETED)
    elif RULE == "given":
        limit, last_index = tl.load(keep), tl.load(keep + 1)
    # One output of SHARERS threads, or two of one (SHARERS 0): what the others have nobody wants.
    OUTPUTS: tl.constexpr = PIECE // 2 if SWIGLU else PIECE
    own_place = tl.arange(0, THREADS if SHARERS > 0 else 2 * THREADS)
    place = own_place // max(SHARERS, 1)
    part = (place < OUTPUTS) & (own_place % max(SHARERS, 1) == 0)
    if PAIRED and not SWIGLU:
        column = block * (PIECE // 2) + place % (PIECE // 2)
        fit = part & (column < width // 2)
        column += place // (PIECE // 2) * (width // 2)
    else:
        column = block * OUTPUTS + place
        fit = part & (column < width)
    HAS_SCALE: tl.constexpr = not NIBBLES
    factor, summand = load_around(scale, bias, column, fit, HAS_SCALE, HAS_BIAS)
    factor_up, summand_up = factor, summand
    if SWIGLU:
        factor_up, summand_up = load_around(scale, bias, column + width, fit, HAS_SCALE, HAS_BIAS)
    old = summand
    shared = 0
    if not INTERPRETED:
        shared = tl.inline_asm_elementwise(RESERVE, "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    if OVERLAP:
        gdc_wait()
    if HELD:
        words = load_words(source, i, n, EVEN)
        own_words = words
    else:
        words = i
    if SPLITS > 1:
        if NORM or RULE != "all":
            own_words = load_words(source, own_i, hi, EVEN)
    if HAS_RESIDUAL:
        old = tl.load(residual + batch * width + column, mask=fit, other=0.0).to(tl.float32)

    if NORM:
        factor_of_norm = norm_scale(words, n, eps, dtype)
        words = scale_words(words, gamma, factor_of_norm, dtype, INTERPRETED)
        if SPLITS > 1:
            own_words = scale_words(own_words, own_gamma, factor_of_norm, dtype, INTERPRETED)
        else:
            own_words = words
        # Padding times a scale that is no number would be listed.
        own_words = tl.where(2 * own_i + 1 < hi, own_words, tl.where(2 * own_i < hi, own_words & 0xFFFF, 0))
    count = hi - lo
    if RULE == "search":
        if COUNTED == "":
            limit, _, above, largest = kth_magnitude_and_largest(
                words & 0x7FFF7FFF, n, k, first_candidate, second_candidate, INFINITY, PACKED, THREADS, 1
            )
        else:
            limit, _, above, largest = _kth_and_largest(
                words, n, k, first_candidate, second_candidate, COUNTED, COUNTED_OPERANDS, INFINITY, PACKED, THREADS
            )
    else:
        largest = _largest(source, words, n, BLOCK, HELD, EVEN)
    largest = low_half(largest, dtype)
    up, down = fixed_point(largest * largest_scale if NIBBLES else largest)
    if NIBBLES:
        down = down * 0.0625
    source += lo
    if NORM or RULE != "all":
        source = line + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + batch) * own
        listing = source
        if LIST > 0:
            listing = shared + LIST
        if RULE == "search":
            before = no_ties(THREADS)
            if STRICT and SPLITS > 1:
                before = ties_before(words, i, limit, lo, INFINITY, PACKED, THREADS)
            room = (k if STRICT else n) - above
            count = list_largest(listing, own_words, own_i, limit, room, before, INFINITY, PACKED, THREADS)
        elif RULE == "given":
            count = list_limited(listing, own_words, own_i, limit, last_index - lo, INFINITY, PACKED, THREADS)
        else:
            store_words(source, own_i - lo // 2, own_words, count, EVEN)
        tl.debug_barrier()  # the line is read by other threads than wrote it

    if INTERPRETED:
        total = add_codes_plainly(
            source, weight, scale, n, lo, count, stride, half, block, up, place, SWIGLU, NIBBLES, RULE != "all", dtype
        )
        total_up = total
        if SWIGLU:
            total_up = add_codes_plainly(
                source, weight, scale, n, lo, count, stride, half, block, up, place + OUTPUTS,
                SWIGLU, NIBBLES, RULE != "all", dtype,
            )  # fmt: skip
    else:
        total, total_up = add_codes(
            source, weight, scale, n, lo, count, stride, half, block, up,
            PRODUCT, INPUTS, WARPS, SWIGLU, NIBBLES, SHARERS == 0,
        )  # fmt: skip
    at = batch * width + column
    if SPLITS == 1:
        _leave(
            y, total, total_up, factor, summand, factor_up, summand_up, old, down, at, fit, gate_limit,
            SWIGLU, GATED, HAS_SCALE, HAS_BIAS, HAS_RESIDUAL, dtype, INTERPRETED,
        )  # fmt: skip
    else:
        # The number of parts so far stands above the sum of parts, so an addition tells who is last and what it leaves.
        one = tl.full([], 1, tl.int64) << _COUNT
        mine = parts + (batch * blocks + block) * PIECE + place
        if SWIGLU:
            tl.atomic_add(mine + OUTPUTS, total_up, mask=part, sem="relaxed")
            whole = total + one + tl.atomic_add(mine, total + one, mask=part, sem="acq_rel")
        else:
            whole = total + one + tl.atomic_add(mine, total + one, mask=part, sem="relaxed")
        last = part & ((whole + (one >> 1)) >> _COUNT == SPLITS)
        whole -= one * SPLITS
        whole_up = whole
        if SWIGLU:
            whole_up = tl.load(mine + OUTPUTS, mask=last, other=0, cache_modifier=".cg")
            tl.store(mine + OUTPUTS, whole * 0, mask=last)
        tl.store(mine, whole * 0, mask=last)  # ready for the next launch, a graph's replay included
        _leave(
            y, whole, whole_up, factor, summand, factor_up, summand_up, old, down, at, fit & last, gate_limit,
            SWIGLU, GATED, HAS_SCALE, HAS_BIAS, HAS_RESIDUAL, dtype, INTERPRETED,
        )  # fmt: skip
