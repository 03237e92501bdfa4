"""Matrix-vector product over the selected entries of x, with norm, selection, SwiGLU and residual; see README.md.

Grid (column blocks, B): a program owns COLUMNS outputs and walks the weight's rows, so every sum has one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.compaction import list_by_bound, list_topk, no_ties, word_indices
from larosa_kernels.common.epilogue import load_scale_and_bias, scale_and_bias
from larosa_kernels.common.packed_half import load_words, norm_words, store_words, swiglu
from larosa_kernels.common.topk_search import find_bound, first_candidates, is_selected, kth_magnitude, round_to
from larosa_kernels.ops.sparse_gemv.rows import add_rows


@triton.jit
def mask_words(words, o_word, threshold, last_index):
    """Two entries per word, zero where they are not selected."""
    m_low = is_selected(words & 0x7FFF, 2 * o_word, threshold, last_index)
    m_high = is_selected((words >> 16) & 0x7FFF, 2 * o_word + 1, threshold, last_index)
    return tl.where(m_low, words & 0xFFFF, 0) | tl.where(m_high, words & -65536, 0)


@triton.jit(do_not_specialize=["k"])
def sparse_gemv_kernel(
    x, norm, search_range, bound, weight, scale, bias, gate_threshold, residual, y, scratch, one, n, width, k, eps,
    SELECTOR: tl.constexpr, NORM: tl.constexpr, SWIGLU: tl.constexpr, GATED: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BOUND_STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    HAS_RANGE: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """y [B, width] from x [B, n] and weight [n, width], or [n, 2 width] with SWIGLU. Tensors as in `GemvCall`.

    scratch: [blocks, B, n], a program's own line: int32 items with COMPACT, else entries in x's dtype.
    one: points to 1.0, see rows.py. width: the outputs, an argument of its own so that the compiler knows where it is
    a multiple of 16. SELECTOR: `all`, `topk` (the k largest), or `bound` (BOUND_STRIDE 2, or 0: one for all rows).
    ROWS, UNROLL: weight rows per load of all threads, and loads in flight. WIDE: the weight has 2^31 entries or more.
    BLOCK to VECTOR: common/search_config.py. COMPACT: walk a list of the selected rows.
    """
    i_block = tl.program_id(0)
    i_batch = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    o_col = i_block * COLUMNS + tl.arange(0, COLUMNS)
    m_col = o_col < width
    o_word = word_indices(BLOCK // 2, THREADS) if COMPACT else tl.arange(0, BLOCK // 2)
    if NORM:
        b_gamma = load_words(norm, o_word, n, EVEN)
    p_entries = x + i_batch * n
    if NORM or SELECTOR != "all":
        b_words = load_words(p_entries, o_word, n, EVEN)
    # Small things first, all of them: behind the weights they would wait for them.
    bound += i_batch * BOUND_STRIDE
    if SELECTOR == "topk":
        first_candidate, second_candidate = first_candidates(search_range, INFINITY, HAS_RANGE)
    elif SELECTOR == "bound":
        threshold, last_index = tl.load(bound), tl.load(bound + 1)
    b_scale, b_bias = load_scale_and_bias(scale, bias, o_col, m_col, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        b_scale_up, b_bias_up = load_scale_and_bias(scale, bias, o_col + width, m_col, HAS_SCALE, HAS_BIAS)
    if HAS_RESIDUAL:
        b_residual = tl.load(residual + i_batch * width + o_col, mask=m_col, other=0.0).to(tl.float32)
    count = n
    if NORM or SELECTOR != "all":
        if NORM:
            b_words = norm_words(b_words, b_gamma, n, eps, dtype, INTERPRETED)
            if COMPACT:  # padding times a scale that is NaN would be listed
                b_words = tl.where(2 * o_word + 1 < n, b_words, tl.where(2 * o_word < n, b_words & 0xFFFF, 0))
        if COMPACT:
            p_entries = scratch + (i_block * tl.num_programs(1) + i_batch) * n
            if SELECTOR == "topk":
                threshold, at_least, above = kth_magnitude(
                    b_words & 0x7FFF7FFF, n, k, first_candidate, second_candidate, INFINITY, PACKED, THREADS, VECTOR
                )
                room = (k if STRICT else at_least) - above
                count = list_topk(
                    p_entries, b_words, o_word, threshold, room, no_ties(THREADS), INFINITY, PACKED, THREADS
                )
            else:
                count = list_by_bound(p_entries, b_words, o_word, threshold, last_index, INFINITY, PACKED, THREADS)
        else:
            if SELECTOR == "topk":
                threshold, last_index = find_bound(
                    b_words & 0x7FFF7FFF, n, k, first_candidate, second_candidate,
                    STRICT, INFINITY, PACKED, THREADS, VECTOR,
                )  # fmt: skip
            if SELECTOR != "all":
                b_words = mask_words(b_words, o_word, threshold, last_index)
            p_entries = scratch + (i_block * tl.num_programs(1) + i_batch) * n
            store_words(p_entries, o_word, b_words, n, EVEN)
        tl.debug_barrier()  # the line is read by other threads than wrote it

    b_out, b_up = add_rows(
        p_entries, weight, one, count, 2 * width if SWIGLU else width, i_block, width,
        COLUMNS, ROWS, UNROLL, SWIGLU, SELECTOR == "all", COMPACT, dtype, WIDE,
    )  # fmt: skip
    b_out = scale_and_bias(b_out, b_scale, b_bias, HAS_SCALE, HAS_BIAS)
    if SWIGLU:
        b_up = scale_and_bias(b_up, b_scale_up, b_bias_up, HAS_SCALE, HAS_BIAS)
        b_gate = round_to(b_out, dtype, INTERPRETED).to(tl.float32)
        b_up = round_to(b_up, dtype, INTERPRETED).to(tl.float32)
        b_out = swiglu(b_gate, b_up, gate_threshold, dtype, GATED, INTERPRETED)
    if HAS_RESIDUAL:
        b_out += b_residual
    tl.store(y + i_batch * width + o_col, round_to(b_out, dtype, INTERPRETED), mask=m_col)
