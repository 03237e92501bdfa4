"""SwiGLU and the search, in two shapes.

One program a row does all, or many programs compute CHUNK entries each and the last to arrive searches the finished
vector. One streaming multiprocessor reads and activates 14336 gates in about 1 us; the counter costs about as much.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import magnitude_bits, round_to, search_row, stays


@triton.jit
def swiglu(gate_up, gate_limit, index, n, GATED: tl.constexpr, INTERPRETED: tl.constexpr):
    """silu(gate) * up of the entries at `index`, rounded twice; zero past n and where the gate does not pass."""
    inside = index < n
    gate = tl.load(gate_up + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + n + index, mask=inside, other=0.0).to(tl.float32)
    dtype = gate_up.dtype.element_ty
    activated = round_to(gate / (1 + tl.exp(-gate)), dtype, INTERPRETED)
    product = round_to(activated.to(tl.float32) * up, dtype, INTERPRETED)
    if GATED:
        passes = stays(magnitude_bits(activated), index, tl.load(gate_limit), tl.load(gate_limit + 1))
        product = round_to(tl.where(passes, product.to(tl.float32), 0.0), dtype, INTERPRETED)
    return product


@triton.jit
def _write_pair(keep, limit, GATED: tl.constexpr):
    """A pair that needs no search: what passed the gate is all that is not zero, else the calibrated limit."""
    if GATED:
        tl.store(keep, 0)
        tl.store(keep + 1, -1)
    else:
        tl.store(keep, tl.load(limit))
        tl.store(keep + 1, tl.load(limit + 1))


@triton.jit(do_not_specialize=["k"])
def swiglu_select_kernel(
    gate_up, bracket, limit, gate_limit, h, keep, counters, n, k,
    SEARCH: tl.constexpr, GATED: tl.constexpr, CHUNK: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, WAYS: tl.constexpr, PACKED: tl.constexpr,
    TOGETHER: tl.constexpr, BRACKETED: tl.constexpr,
):  # fmt: skip
    """gate_up: [B, 2n] -> h: [B, n], keep: [B, 2]; grid (cdiv(n, CHUNK), B). counters: [B] int32 zeros.

    CHUNK = BLOCK: one program a row. The last program resets the counter, so a graph can be replayed.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    product = swiglu(gate_up + row * 2 * n, gate_limit, index, n, GATED, INTERPRETED)
    tl.store(h + row * n + index, product, mask=index < n)
    out = keep + row * 2
    if not SEARCH:
        if chunk == 0:
            _write_pair(out, limit, GATED)
    elif CHUNK == BLOCK:
        bits = magnitude_bits(product)
        search_row(bits, n, k, bracket, out, BLOCK, STRICT, INFINITY, WAYS, PACKED, TOGETHER, BRACKETED)
    else:
        tl.debug_barrier()  # every thread's entries come before the release below
        arrived = tl.atomic_add(counters + row, 1, sem="acq_rel")
        if arrived == tl.num_programs(0) - 1:
            whole = tl.arange(0, BLOCK)
            finished = tl.load(h + row * n + whole, mask=whole < n, other=0.0, cache_modifier=".cg")
            bits = magnitude_bits(finished)
            search_row(bits, n, k, bracket, out, BLOCK, STRICT, INFINITY, WAYS, PACKED, TOGETHER, BRACKETED)
            tl.store(counters + row, 0)
