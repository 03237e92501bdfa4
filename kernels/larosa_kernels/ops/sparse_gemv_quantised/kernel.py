"""Matrix-vector product of an int8 or packed 4-bit weight over the selected entries of x; see README.md.

Grid (column tiles times SPLITS, B): a program owns 128 bytes of each of its rows; splits are added up in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from larosa_kernels.common.compaction import list_by_bound, list_topk, no_ties, ties_before, word_indices
from larosa_kernels.common.epilogue import load_scale_and_bias, scale_and_bias
from larosa_kernels.common.packed_half import load_words, low_half, norm_scale, scale_words, store_words, swiglu
from larosa_kernels.common.topk_search import (
    first_candidates,
    kth_magnitude,
    kth_magnitude_and_largest,
    largest_of,
    round_to,
)
from larosa_kernels.ops.sparse_gemv_quantised.fixed_point import accumulate_interpreted, accumulate_rows, fixed_point
from larosa_kernels.ops.sparse_gemv_quantised.histogram import FOUND, WINDOW

_COUNTER_BIT = tl.constexpr(53)
"""From this bit on a partial sum counts the programs that have added to it; the sum is below 2^52 (launch.py)."""

_FOUND = tl.constexpr(FOUND)
_WINDOW = tl.constexpr(WINDOW)


@triton.jit
def _kth_and_largest(
    words, n, k, first, second,
    COUNTED: tl.constexpr, OPERANDS: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """`topk_search.kth_magnitude_and_largest` of words with signs, k below n, by histogram.py; counters are cleared."""
    base = first - (_WINDOW - (second - first)) // 2
    base = tl.minimum(tl.maximum(base, 1), INFINITY - _WINDOW)
    tl.inline_asm_elementwise(
        COUNTED, OPERANDS, [words, (base << 16) | k], dtype=tl.int32, is_pure=False, pack=words.shape[0] // THREADS
    )
    threshold, at_least, above, largest = tl.inline_asm_elementwise(
        _FOUND, "=r,=r,=r,=r,r", [k], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1
    )
    if threshold < 0:
        threshold, at_least, above = kth_magnitude(
            words & 0x7FFF7FFF, n, k, first, second, INFINITY, PACKED, THREADS, 1
        )
    return threshold, at_least, above, largest


@triton.jit
def _largest_magnitude(x, words, n, BLOCK: tl.constexpr, IN_REGISTERS: tl.constexpr, EVEN: tl.constexpr):
    """The largest pattern of n entries: of `words`, or of x where a program cannot hold it (not IN_REGISTERS)."""
    if IN_REGISTERS:
        top = largest_of(words)
    else:
        i = tl.arange(0, BLOCK // 2)
        top = tl.zeros((BLOCK // 2,), tl.int32)
        for first in tl.range(0, n // 2 + 1, BLOCK // 2):
            top = tl.maximum(top, largest_of(load_words(x, first + i, n, EVEN)))
    return tl.max(top, 0)


@triton.jit
def _store_outputs(
    y, total, total_up, b_scale, b_bias, b_scale_up, b_bias_up, b_residual, from_fixed, o_y, m_store, gate_threshold,
    SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Integer sums to outputs: scale, bias, SwiGLU, residual, one rounding."""
    b_out = scale_and_bias(total.to(tl.float32) * from_fixed, b_scale, b_bias, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        b_up = scale_and_bias(total_up.to(tl.float32) * from_fixed, b_scale_up, b_bias_up, HAS_SCALE, HAS_BIAS)
        b_gate = round_to(b_out, DTYPE, INTERPRETED).to(tl.float32)
        b_up = round_to(b_up, DTYPE, INTERPRETED).to(tl.float32)
        b_out = swiglu(b_gate, b_up, gate_threshold, DTYPE, GATED, INTERPRETED)
    if HAS_RESIDUAL:
        b_out += b_residual
    tl.store(y + o_y, round_to(b_out, DTYPE, INTERPRETED), mask=m_store)


@triton.jit(do_not_specialize=["k"])
def sparse_gemv_quantised_kernel(
    x, norm, search_range, bound, weight, scale, bias, gate_threshold, residual, y, scratch, partial_sums,
    n, split_width, width, stride, half, k, eps, max_scale,
    SELECTOR: tl.constexpr, NORM: tl.constexpr, SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BOUND_STRIDE: tl.constexpr, SPLITS: tl.constexpr, SHARERS: tl.constexpr,
    WARPS: tl.constexpr, INT4: tl.constexpr, PAIRED: tl.constexpr,
    INTERPRETED: tl.constexpr, PRODUCT: tl.constexpr, INPUTS: tl.constexpr, RESERVE: tl.constexpr,
    LIST: tl.constexpr, COUNTED: tl.constexpr, COUNTED_OPERANDS: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr, SPLIT_BLOCK: tl.constexpr, IN_REGISTERS: tl.constexpr, EVEN: tl.constexpr,
    STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, HAS_RANGE: tl.constexpr,
):  # fmt: skip
    """y [B, width] from x [B, n] and a quantised weight of `stride` 4-byte words per row. Tensors as in `GemvCall`.

    Tensors after the residual
      y: [B, width]. scratch: [programs, B, split_width], a program's own line: int32 items where rows are dropped,
      else entries in x's dtype. partial_sums: [B, tiles, TILE] int64 zeros, which every launch leaves as zeros.
    Sizes
      n: entries of x. split_width: entries per split, even. width: outputs. half: words from an int8 gate to its up,
      0 for 4 bits. k: entries to select. max_scale: bound of the 4-bit scales.
    What is computed
      SELECTOR: `all`, `topk` (the k largest), or `bound` (BOUND_STRIDE 2, or 0: one for all rows). NORM, SWIGLU,
      GATED, HAS_BIAS, HAS_RESIDUAL: as in `fused_sparse_gemv`. INT4: the weight is packed (packing.py), else int8;
      PAIRED: its blocks hold gates and ups. STRICT: ties beyond k are dropped.
    How it is computed
      SPLITS: programs per tile. WARPS: per program. SHARERS: threads that hold the same output, 0: two outputs per
      thread. OVERLAP: waits for the launch before it. LIST: offset of the list in shared memory, 0: it is in scratch.
      BLOCK, SPLIT_BLOCK: powers of two above n and split_width; IN_REGISTERS: a program holds all of x. INTERPRETED:
      Triton's interpreter runs `accumulate_interpreted` in the place of the PTX.
      EVEN, INFINITY, PACKED, HAS_RANGE: common/search_config.py.
    PTX with its constraints
      RESERVE: shared memory. PRODUCT, INPUTS: product.py. COUNTED, COUNTED_OPERANDS: histogram.py, or empty.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    THREADS: tl.constexpr = 32 * WARPS
    TILE: tl.constexpr = 256 if INT4 else 128
    num_tiles = tl.num_programs(0) // SPLITS
    i_tile = tl.program_id(0) % num_tiles
    i_split = tl.program_id(0) // num_tiles
    i_batch = tl.program_id(1).to(tl.int64)
    row_begin = i_split * split_width
    row_end = tl.minimum(row_begin + split_width, n)
    p_entries = x + i_batch * n
    o_word = word_indices(BLOCK // 2, THREADS)
    o_split_word = o_word
    if SPLITS > 1:
        o_split_word = word_indices(SPLIT_BLOCK // 2, THREADS) + row_begin // 2
    if NORM:
        b_gamma = load_words(norm, o_word, n, EVEN)
        b_split_gamma = b_gamma
        if SPLITS > 1:
            b_split_gamma = load_words(norm, o_split_word, row_end, EVEN)
    # Small things first, all of them: behind the weights they would wait for them.
    bound += i_batch * BOUND_STRIDE
    if SELECTOR == "topk":
        first_candidate, second_candidate = first_candidates(search_range, INFINITY, HAS_RANGE)
    elif SELECTOR == "bound":
        threshold, last_index = tl.load(bound), tl.load(bound + 1)
    # SHARERS threads hold the same output, the first one's is stored; or a thread holds two outputs (SHARERS 0).
    OUTPUTS: tl.constexpr = TILE // 2 if SWIGLU else TILE
    o_thread = tl.arange(0, THREADS if SHARERS > 0 else 2 * THREADS)
    o_out = o_thread // max(SHARERS, 1)
    m_out = (o_out < OUTPUTS) & (o_thread % max(SHARERS, 1) == 0)
    if PAIRED and not SWIGLU:
        o_col = i_tile * (TILE // 2) + o_out % (TILE // 2)
        m_store = m_out & (o_col < width // 2)
        o_col += o_out // (TILE // 2) * (width // 2)
    else:
        o_col = i_tile * OUTPUTS + o_out
        m_store = m_out & (o_col < width)
    HAS_SCALE: tl.constexpr = not INT4
    b_scale, b_bias = load_scale_and_bias(scale, bias, o_col, m_store, HAS_SCALE, HAS_BIAS)
    b_scale_up, b_bias_up = b_scale, b_bias
    if SWIGLU:
        b_scale_up, b_bias_up = load_scale_and_bias(scale, bias, o_col + width, m_store, HAS_SCALE, HAS_BIAS)
    b_residual = b_bias
    shared = 0
    if not INTERPRETED:
        shared = tl.inline_asm_elementwise(RESERVE, "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    if OVERLAP:
        gdc_wait()
    if IN_REGISTERS:
        b_words = load_words(p_entries, o_word, n, EVEN)
        b_split_words = b_words
    else:
        b_words = o_word
    if SPLITS > 1:
        if NORM or SELECTOR != "all":
            b_split_words = load_words(p_entries, o_split_word, row_end, EVEN)
    if HAS_RESIDUAL:
        b_residual = tl.load(residual + i_batch * width + o_col, mask=m_store, other=0.0).to(tl.float32)

    if NORM:
        norm_factor = norm_scale(b_words, n, eps, dtype)
        b_words = scale_words(b_words, b_gamma, norm_factor, dtype, INTERPRETED)
        if SPLITS > 1:
            b_split_words = scale_words(b_split_words, b_split_gamma, norm_factor, dtype, INTERPRETED)
        else:
            b_split_words = b_words
        # Padding times a scale that is NaN would be listed.
        b_split_words = tl.where(
            2 * o_split_word + 1 < row_end,
            b_split_words,
            tl.where(2 * o_split_word < row_end, b_split_words & 0xFFFF, 0),
        )
    count = row_end - row_begin
    if SELECTOR == "topk":
        if COUNTED == "":
            threshold, _, above, largest = kth_magnitude_and_largest(
                b_words & 0x7FFF7FFF, n, k, first_candidate, second_candidate, INFINITY, PACKED, THREADS, 1
            )
        else:
            threshold, _, above, largest = _kth_and_largest(
                b_words, n, k, first_candidate, second_candidate, COUNTED, COUNTED_OPERANDS, INFINITY, PACKED, THREADS
            )
    else:
        largest = _largest_magnitude(p_entries, b_words, n, BLOCK, IN_REGISTERS, EVEN)
    largest = low_half(largest, dtype)
    to_fixed, from_fixed = fixed_point(largest * max_scale if INT4 else largest)
    if INT4:
        from_fixed = from_fixed * 0.0625
    p_entries += row_begin
    if NORM or SELECTOR != "all":
        p_entries = scratch + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + i_batch) * split_width
        p_list = p_entries
        if LIST > 0:
            p_list = shared + LIST
        if SELECTOR == "topk":
            ties_in_front = no_ties(THREADS)
            if STRICT and SPLITS > 1:
                ties_in_front = ties_before(b_words, o_word, threshold, row_begin, INFINITY, PACKED, THREADS)
            room = (k if STRICT else n) - above
            count = list_topk(
                p_list, b_split_words, o_split_word, threshold, room, ties_in_front, INFINITY, PACKED, THREADS
            )
        elif SELECTOR == "bound":
            count = list_by_bound(
                p_list, b_split_words, o_split_word, threshold, last_index - row_begin, INFINITY, PACKED, THREADS
            )
        else:
            store_words(p_entries, o_split_word - row_begin // 2, b_split_words, count, EVEN)
        tl.debug_barrier()  # the line is read by other threads than wrote it

    if INTERPRETED:
        total = accumulate_interpreted(
            p_entries,
            weight,
            scale,
            n,
            row_begin,
            count,
            stride,
            half,
            i_tile,
            to_fixed,
            o_out,
            SWIGLU,
            INT4,
            SELECTOR != "all",
            dtype,
        )
        total_up = total
        if SWIGLU:
            total_up = accumulate_interpreted(
                p_entries, weight, scale, n, row_begin, count, stride, half, i_tile, to_fixed, o_out + OUTPUTS,
                SWIGLU, INT4, SELECTOR != "all", dtype,
            )  # fmt: skip
    else:
        total, total_up = accumulate_rows(
            p_entries, weight, scale, n, row_begin, count, stride, half, i_tile, to_fixed,
            PRODUCT, INPUTS, WARPS, SWIGLU, INT4, SHARERS == 0,
        )  # fmt: skip
    o_y = i_batch * width + o_col
    if SPLITS == 1:
        _store_outputs(
            y, total, total_up, b_scale, b_bias, b_scale_up, b_bias_up, b_residual, from_fixed, o_y, m_store,
            gate_threshold,
            SWIGLU, GATED, HAS_SCALE, HAS_BIAS, HAS_RESIDUAL, dtype, INTERPRETED,
        )  # fmt: skip
    else:
        # The bits above the sum count the programs that have added: so one addition tells who is last, and the sum.
        counted_one = tl.full([], 1, tl.int64) << _COUNTER_BIT
        p_partial = partial_sums + (i_batch * num_tiles + i_tile) * TILE + o_out
        if SWIGLU:
            tl.atomic_add(p_partial + OUTPUTS, total_up, mask=m_out, sem="relaxed")
            sum_all = total + counted_one + tl.atomic_add(p_partial, total + counted_one, mask=m_out, sem="acq_rel")
        else:
            sum_all = total + counted_one + tl.atomic_add(p_partial, total + counted_one, mask=m_out, sem="relaxed")
        last = m_out & ((sum_all + (counted_one >> 1)) >> _COUNTER_BIT == SPLITS)
        sum_all -= counted_one * SPLITS
        sum_up = sum_all
        if SWIGLU:
            sum_up = tl.load(p_partial + OUTPUTS, mask=last, other=0, cache_modifier=".cg")
            tl.store(p_partial + OUTPUTS, sum_all * 0, mask=last)
        tl.store(p_partial, sum_all * 0, mask=last)  # ready for the next launch, a graph's replay included
        _store_outputs(
            y, sum_all, sum_up, b_scale, b_bias, b_scale_up, b_bias_up, b_residual, from_fixed, o_y, m_store & last,
            gate_threshold,
            SWIGLU, GATED, HAS_SCALE, HAS_BIAS, HAS_RESIDUAL, dtype, INTERPRETED,
        )  # fmt: skip
