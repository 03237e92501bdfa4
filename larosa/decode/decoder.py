"""One token at a time: the sparse step, its static KV cache, and the CUDA graph that holds the whole of it.

Per layer: [adapter] norm, select h1, q k v, attention, select h2, o + residual, [adapter] norm, select h3, gate up,
SwiGLU, select h4, down + residual; then the final norm, the dense head, and argmax with all bookkeeping
(`greedy_sample`). Nothing waits for the host. With Triton a site is one launch: norm, selection, product and SwiGLU or
residual (`fused_sparse_gemv`). A watched step runs them one by one instead, which gives the same bits and shows what
lies between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from larosa_kernels.common.gemv import GemvConfig
from torch import Tensor
from torch.nn import functional

from larosa.decode import ops
from larosa.decode.errors import DecodeError
from larosa.decode.matrix import PackedMatrix
from larosa.decode.selectors import Selectors, SiteSelector
from larosa.decode.weights import DecodeWeights, LayerWeights

_WARM_UPS = 3


@dataclass(frozen=True)
class SiteEvent:
    """What happened at one site in a step."""

    layer: int
    site: str
    before: Tensor
    """What the site was made from, see Decoder.enter."""
    x: Tensor
    keep: Tensor
    residual: Tensor | None
    after: Tensor
    """The product, bias and residual added."""


Watcher = Callable[[SiteEvent], None]


class Decoder:
    """A model that decodes: `weights` under `selectors`, for `batch` sequences of equal length up to `max_len`.

    `graph`: one CUDA graph a step (GPUs only). Batches above 1 are correct, but not what this is made for.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        selectors: Selectors,
        max_len: int,
        batch: int = 1,
        backend: str = "auto",
        graph: bool = True,
    ) -> None:
        weights.check_length(max_len)
        self.weights, self.selectors, self.max_len, self.batch = weights, selectors, max_len, batch
        self.backend = ops.resolve(backend, weights.device, weights.dtype)
        self.length = 0
        shape, device = weights.shape, weights.device
        size = (shape.layers, 2, batch, weights.kv_heads, max_len, weights.head_dim)
        self.cache = torch.zeros(size, dtype=weights.dtype, device=device)
        self.cos, self.sin = weights.rotary(max_len)
        self.token = torch.zeros(batch, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(batch, max_len + 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(batch, weights.vocabulary, dtype=weights.dtype, device=device)
        self._constants: dict[tuple[int, int, int], Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph and self.backend == "triton" and device.type == "cuda":  # the references wait for the host
            self._capture()

    @property
    def graphed(self) -> bool:
        """Whether a step is one CUDA graph."""
        return self._graph is not None

    def place(self, length: int) -> None:
        """Go on after `length` tokens; what the cache holds up to there stays as it is."""
        if not 0 <= length <= self.max_len:
            raise DecodeError(f"position {length} is outside of max_len={self.max_len}")
        self.length = length
        self.position.fill_(length)

    def step(self, token: int | Tensor) -> Tensor:
        """Read one token ([B] or an integer for all); returns logits [B, vocabulary], overwritten by the next step."""
        if isinstance(token, Tensor):
            self.token.copy_(token.reshape(-1))
        else:
            self.token.fill_(token)
        return self.advance()

    @torch.no_grad()
    def advance(self) -> Tensor:
        """A step on the token that the last one found most likely."""
        if self.length >= self.max_len:
            raise DecodeError(f"the cache of {self.max_len} tokens is full")
        self.length += 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self._advance()
        return self.logits

    @torch.no_grad()
    def watched(self, token: Tensor, watch: Watcher) -> Tensor:
        """A step outside of the graph, seen by `watch`, on token [B]; logits [B, vocabulary]."""
        if self.length >= self.max_len:
            raise DecodeError(f"the cache of {self.max_len} tokens is full")
        logits = self._forward(token, watch)
        self.place(self.length + 1)
        return logits

    def _advance(self) -> None:
        self.logits = self._forward(self.token)  # of a graph, the memory that every replay writes
        ops.greedy_sample(self.logits, self.token, self.tokens, self.position, backend=self.backend)

    @torch.no_grad()
    def _capture(self) -> None:
        """Record the step. The tries before it compile kernels; what they write is overwritten before it is read."""
        side = torch.cuda.Stream(self.weights.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._advance()
                self.place(0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self._graph = graph
        self.place(0)

    def _forward(self, token: Tensor, watch: Watcher | None = None) -> Tensor:
        h = functional.embedding(token, self.weights.embedding)
        for layer in range(len(self.weights.layers)):
            h = self._layer(layer, h, watch)
        return self.head(h, self.backend)

    def head(self, h: Tensor, backend: str) -> Tensor:
        """Final norm and head. h: [B, D]; returns [B, vocabulary]."""
        eps, width = float(self.weights.config.rms_norm_eps), h.shape[1]
        matrix = self.weights.head
        if isinstance(matrix, PackedMatrix) and self.fused and backend == self.backend:
            return ops.fused_sparse_gemv(h, matrix, norm=self.weights.final_norm, eps=eps, backend=backend)
        z, _ = ops.rmsnorm_topk(h, self.weights.final_norm, eps, width, backend=backend)
        if isinstance(matrix, PackedMatrix):
            return z @ matrix.dense(z.dtype)
        return functional.linear(z, matrix)

    @property
    def fused(self) -> bool:
        """Whether a site is one launch."""
        return self.backend == "triton"

    def _layer(self, layer: int, h: Tensor, watch: Watcher | None) -> Tensor:
        if self.fused and watch is None:
            h = self.adapt(layer, "h1", h, self.backend)
            qkv = self._site(layer, "h1", h)
            mixed = self._attention(layer, qkv, self.weights.packed)
            h = self._site(layer, "h2", mixed, h)
            activated = self._site(layer, "h3", self.adapt(layer, "h3", h, self.backend))
            return self._site(layer, "h4", activated, h)
        h = self.adapt(layer, "h1", h, self.backend)
        qkv = self._read(layer, "h1", h, None, watch)
        mixed = self._attention(layer, qkv, False)
        h = self._read(layer, "h2", mixed, h, watch)
        gate_up = self._read(layer, "h3", self.adapt(layer, "h3", h, self.backend), None, watch)
        return self._read(layer, "h4", gate_up, h, watch)

    def _attention(self, layer: int, qkv: Tensor, overlap: bool) -> Tensor:
        """Attention of the new tokens [B, (H + 2 KV) hd] -> [B, H hd]; the layer's cache is appended."""
        norms, eps = self.weights.layers[layer].head_norms, float(self.weights.config.rms_norm_eps)
        how: dict[str, Any] = {"overlap": overlap, "backend": self.backend, "norms": norms, "eps": eps}
        k_cache, v_cache = self.cache[layer]
        mixed: Tensor = ops.decode_attention(qkv, self.cos, self.sin, k_cache, v_cache, self.position, **how)
        return mixed

    def _site(self, layer: int, site: str, before: Tensor, residual: Tensor | None = None) -> Tensor:
        """One site in one launch, or two with a transform; h3 goes on to what h4 ranks."""
        layer_weights, selector = self.weights.layers[layer], self.selectors[site][layer]
        threshold = None if selector.threshold is None else self._threshold(selector, before.dtype)
        more: dict[str, Any] = {
            "ties": selector.ties,
            "search_range": self._pair(*selector.search_range) if selector.search_range else None,
        }
        if site in ("h1", "h3") and site in layer_weights.transforms:
            before = self._transformed(layer_weights, site, before, self.backend)
        elif site in ("h1", "h3"):
            more |= {"norm": layer_weights.norms[site], "eps": float(self.weights.config.rms_norm_eps)}
        elif site == "h2" and layer_weights.scale is not None:
            before = before * layer_weights.scale
        if site == "h3":
            after = self.selectors["h4"][layer]
            more |= {"swiglu": True, "gate_threshold": self._threshold(after, before.dtype) if after.gated else None}
        if selector.gated:
            threshold = self._pair(0, -1)  # what did not pass its gate is zero by now
        more |= {"bias": layer_weights.biases.get(site), "residual": residual, "overlap": True, "backend": self.backend}
        k, shape = selector.k if threshold is None else None, self._launch_shape(layer, site)
        return ops.fused_sparse_gemv(before, layer_weights.matrices[site], k, threshold=threshold, config=shape, **more)

    def _launch_shape(self, layer: int, site: str) -> GemvConfig:
        """The same for a site's fused and single product, whose sums then have one order."""
        matrix = self.weights.layers[layer].matrices[site]
        width, columns = matrix.shape
        kept = self.selectors[site][layer].expected(width)
        return ops.launch_shape(matrix, columns // 2 if site == "h3" else columns, kept)

    def _threshold(self, selector: SiteSelector, dtype: torch.dtype) -> Tensor:
        return self._pair(ops.threshold_bits(float(selector.threshold or 0.0), dtype), -1)

    def _read(self, layer: int, site: str, before: Tensor, residual: Tensor | None, watch: Watcher | None) -> Tensor:
        x, keep = self.enter(layer, site, before, self.backend)
        after = self.product(layer, site, x, keep, residual)
        if watch is not None:
            watch(SiteEvent(layer, site, before, x, keep, residual, after))
        return after

    def adapt(self, layer: int, site: str, h: Tensor, backend: str) -> Tensor:
        """h [B, D] in the basis of the site, by its residual adapter if there is one."""
        matrix = self.weights.layers[layer].adapters.get(site)
        return h if matrix is None else ops.fused_sparse_gemv(h, matrix, backend=backend)

    def enter(
        self, layer: int, site: str, before: Tensor, backend: str, selector: SiteSelector | None = None
    ) -> tuple[Tensor, Tensor]:
        """From a site's raw material [B, ...] to its vector x [B, width] and what stays of it.

        h1, h3: the residual stream; h2: the attention's output; h4: gate and up side by side.
        `selector` takes the place of the decoder's own.
        """
        layer_weights, selector = self.weights.layers[layer], selector or self.selectors[site][layer]
        search_range = self._pair(*selector.search_range) if selector.search_range else None
        threshold = None if selector.threshold is None else self._threshold(selector, before.dtype)
        if site in ("h1", "h3"):
            if site not in layer_weights.transforms:
                eps = float(self.weights.config.rms_norm_eps)
                return ops.rmsnorm_topk(
                    before, layer_weights.norms[site], eps, selector.k, selector.ties, search_range, threshold, backend
                )
            x = self._transformed(layer_weights, site, before, backend)
            return x, self._selected(x, selector, search_range, threshold, backend)
        if site == "h2":
            x = before if layer_weights.scale is None else before * layer_weights.scale
            return x, self._selected(x, selector, search_range, threshold, backend)
        plain, gate = (None, threshold) if selector.gated else (threshold, None)
        return ops.swiglu_topk(before, selector.k, selector.ties, search_range, plain, gate, backend)

    def product(self, layer: int, site: str, x: Tensor, keep: Tensor, residual: Tensor | None) -> Tensor:
        """The kept entries of x [B, width] times what reads the site, plus bias and residual."""
        layer_weights, shape = self.weights.layers[layer], self._launch_shape(layer, site)
        matrix, bias = layer_weights.matrices[site], layer_weights.biases.get(site)
        return ops.sparse_gemv(x, keep, matrix, bias, residual, backend=self.backend, config=shape)

    def _transformed(self, layer_weights: LayerWeights, site: str, before: Tensor, backend: str) -> Tensor:
        """norm(before) behind the site's transform."""
        transform, eps = layer_weights.transforms[site], float(self.weights.config.rms_norm_eps)
        if transform.matrix.dim() == 2:
            return ops.fused_sparse_gemv(
                before,
                transform.matrix,
                norm=layer_weights.norms[site],
                eps=eps,
                scale=transform.scale,
                backend=backend,
            )
        x, _ = ops.rmsnorm_topk(before, layer_weights.norms[site], eps, before.shape[1], backend=backend)
        blocks = x.view(len(x), len(transform.matrix), -1).transpose(0, 1)
        return torch.bmm(blocks, transform.matrix).transpose(0, 1).reshape(x.shape)

    def _selected(
        self, x: Tensor, selector: SiteSelector, search_range: Tensor | None, threshold: Tensor | None, backend: str
    ) -> Tensor:
        if threshold is not None:
            return threshold.repeat(len(x), 1) if len(x) > 1 else threshold[None]
        if selector.k >= x.shape[1]:
            return self._pair(0, x.shape[1], rows=len(x))
        return ops.topk_select(x, selector.k, selector.ties, search_range, backend)

    def _pair(self, first: int, second: int, rows: int = 0) -> Tensor:
        """A constant [2], or [rows, 2], made once: a graph replays no copy from the host."""
        key = (first, second, rows)
        if key not in self._constants:
            pair = torch.tensor([first, second], dtype=torch.int32, device=self.weights.device)
            self._constants[key] = pair.repeat(rows, 1) if rows else pair
        return self._constants[key]
