"""Vectors of half precision as int32 words, two entries each: device functions of the ops that norm and rank."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.topk_search import is_selected, magnitude_bits, round_to


@triton.jit
def load_words(x, i, n, EVEN: tl.constexpr):
    """Entries 2i (low half) and 2i + 1 (high half) of x [n]; zero past its end. EVEN: x and n allow whole words."""
    if EVEN:
        words = tl.load(x.to(tl.pointer_type(tl.int32)) + i, mask=i < n // 2, other=0)
    else:
        low = tl.load(x + 2 * i, mask=2 * i < n, other=0.0)
        high = tl.load(x + 2 * i + 1, mask=2 * i + 1 < n, other=0.0)
        words = bits(low) | (bits(high) << 16)
    return words


@triton.jit
def store_words(x, i, words, n, EVEN: tl.constexpr):
    """Write entries 2i and 2i + 1 of x [n]."""
    if EVEN:
        tl.store(x.to(tl.pointer_type(tl.int32)) + i, words, mask=i < n // 2)
    else:
        dtype: tl.constexpr = x.dtype.element_ty
        tl.store(x + 2 * i, words.to(tl.int16).to(dtype, bitcast=True), mask=2 * i < n)
        tl.store(x + 2 * i + 1, (words >> 16).to(tl.int16).to(dtype, bitcast=True), mask=2 * i + 1 < n)


@triton.jit
def bits(x):
    """The 16 bits of an entry as int32."""
    return x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def low_half(words, dtype: tl.constexpr):
    """The even entries in fp32."""
    if dtype == tl.bfloat16:
        return (words << 16).to(tl.float32, bitcast=True)
    return words.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def high_half(words, dtype: tl.constexpr):
    """The odd entries in fp32."""
    if dtype == tl.bfloat16:
        return (words & -65536).to(tl.float32, bitcast=True)
    return (words >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def pack(low, high, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Words of two fp32 entries, each rounded to `dtype`: one instruction per word, for single conversions are slow."""
    if INTERPRETED:
        words = bits(round_to(low, dtype, INTERPRETED)) | (bits(round_to(high, dtype, INTERPRETED)) << 16)
    else:
        kind: tl.constexpr = "bf16" if dtype == tl.bfloat16 else "f16"
        words = tl.inline_asm_elementwise(
            "cvt.rn." + kind + "x2.f32 $0, $1, $2;", "=r,f,f", [high, low], dtype=tl.int32, is_pure=True, pack=1
        )
    return words


@triton.jit
def norm_scale(words, n, eps, dtype: tl.constexpr):
    """What RMSNorm multiplies n entries with, fp32.

    Squares are summed in float64, far finer than the float32 that the sum is rounded to: so its bits all but never
    depend on the order, which changes with warps and with the layout of the words.
    """
    low = low_half(words, dtype)
    high = high_half(words, dtype)
    squares = tl.sum((low * low + high * high).to(tl.float64), 0).to(tl.float32)
    return tl.rsqrt(squares / n + eps)


@triton.jit
def scale_words(words, gamma, scale, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Words times scale times gamma, rounded where transformers rounds: after the norm and after gamma."""
    inner = pack(low_half(words, dtype) * scale, high_half(words, dtype) * scale, dtype, INTERPRETED)
    low = low_half(gamma, dtype) * low_half(inner, dtype)
    high = high_half(gamma, dtype) * high_half(inner, dtype)
    return pack(low, high, dtype, INTERPRETED)


@triton.jit
def norm_words(words, gamma, n, eps, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """RMSNorm times gamma, both as words."""
    return scale_words(words, gamma, norm_scale(words, n, eps, dtype), dtype, INTERPRETED)


@triton.jit
def swiglu(gate, up, gate_threshold, dtype: tl.constexpr, GATED: tl.constexpr, INTERPRETED: tl.constexpr):
    """silu(gate) * up of fp32 that `dtype` holds: rounded after silu, the product not yet rounded.

    GATED: zero where the bound gate_threshold [2] does not select |silu(gate)| (CATS).
    """
    activated = round_to(gate / (1 + tl.exp(-gate)), dtype, INTERPRETED)
    product = activated.to(tl.float32) * up
    if GATED:
        m_gate = is_selected(magnitude_bits(activated), 0, tl.load(gate_threshold), tl.load(gate_threshold + 1))
        product = tl.where(m_gate, product, 0.0)
    return product


@triton.jit
def swiglu_words(gate, up, gate_threshold, dtype: tl.constexpr, GATED: tl.constexpr, INTERPRETED: tl.constexpr):
    """`swiglu` of words."""
    low = swiglu(low_half(gate, dtype), low_half(up, dtype), gate_threshold, dtype, GATED, INTERPRETED)
    high = swiglu(high_half(gate, dtype), high_half(up, dtype), gate_threshold, dtype, GATED, INTERPRETED)
    return pack(low, high, dtype, INTERPRETED)
