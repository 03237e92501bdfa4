"""Bases tuned with Top-K in the loop: gradient steps on calibration tokens, with frozen weights.

Two families can be tuned. Both are exact at level 0 after any step:

* :class:`TunedBases`: orthogonal Q = Q0 cayley(A), A skew, to be absorbed (per model, group, layer or sublayer);
* :class:`TunedTransforms`: online T' = (I + E) T'0, full or block-diagonal, rounded as it will be stored.

The model is sparse at all four sites during tuning, so each layer sees the sparsity of the layers before it. Two
losses: `kl`, the divergence of the next-token distribution from the dense one, in nats per token; `output_error`, the
relative squared error of the consumers of h1 and h3, mean over sites. Masks and roundings are constants in the
gradient (straight through). Adam, ten steps of warm-up, then a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.config.run import TuningConfig
from larosa.data.tokens import TokenBlock
from larosa.errors import LarosaError
from larosa.models.architecture import ModelView
from larosa.models.precision import float32_matmul
from larosa.rotation.absorb import WeightSwaps, fold
from larosa.rotation.online import block_product, quantise, restored, split_gain
from larosa.rotation.rotation import Rotation
from larosa.sparsity.handle import Plan, SparsityHandle, apply
from larosa.sparsity.site import SparseSite
from larosa.sparsity.top_k import TopKSparsification

TUNING_VERSION = 2
"""Part of the identity of a tuned basis: raise it when a change of the code changes results. In version 1, steps saw a
transform rounded before its columns were scaled."""
_WARM_UP = 10
_BETAS = (0.9, 0.95)


class TuningError(LarosaError):
    """Tuning gave no usable basis."""


@dataclass
class StepRotation:
    """The rotation of a site at this step: z = rotate(x), y = unrotate(z); z is ranked by |z| * `importance`."""

    forward: Tensor
    back: Tensor
    importance: Tensor | None = None

    def rotate(self, x: Tensor) -> Tensor:
        """x: [..., D] -> z, by the blocks [n, b, b] of `forward`."""
        return block_product(x.to(self.forward.dtype), self.forward.to(x.device))

    def unrotate(self, z: Tensor) -> Tensor:
        """z: [..., D] -> the input of the consumers, by the blocks of `back`."""
        return block_product(z, self.back.to(z.device))


class TunedBases(nn.Module):
    """Orthogonal bases. `start` says which layers share one; grams [layers, 2, D, D] give column norms for the
    importance, to the power `exponent`."""

    def __init__(self, start: Rotation, grams: Tensor | None, device: torch.device, exponent: float = 1.0) -> None:
        super().__init__()
        self._exponent = exponent
        self._start = start.matrices.float().to(device)
        self._index, self._grams = start.index, None if grams is None else grams.float().to(device)
        self.skew = nn.Parameter(torch.zeros_like(self._start))

    def _rotated(self, start: Tensor, skew: Tensor) -> Tensor:
        A = skew - skew.transpose(-1, -2)
        one = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        rotated: Tensor = start @ torch.linalg.solve(one + A, one - A)
        return rotated

    def refresh(self) -> dict[tuple[int, str], StepRotation]:
        """The rotations of this step, by layer and site."""
        Q, rotations = self._rotated(self._start, self.skew), {}
        for layer, pair in enumerate(self._index):
            for i, site in enumerate(("h1", "h3")):
                rotation, importance = Q[pair[i]], None
                if self._grams is not None:
                    fixed = rotation.detach()
                    squares = (fixed * (self._grams[layer, i] @ fixed)).sum(0).clamp_min(0)
                    importance = squares.sqrt().pow(self._exponent)
                rotations[layer, site] = StepRotation(rotation.T[None], rotation[None], importance)
        return rotations

    def gains(self, _layer: int, _i: int) -> Tensor | None:
        """The gain of the norms: None, gamma is in the weights."""
        return None

    @torch.no_grad()
    def result(self) -> Tensor:
        """[M, D, D] float64, orthogonal to rounding."""
        return self._rotated(self._start.double(), self.skew.double()).cpu()


class TunedTransforms(nn.Module):
    """Online transforms. start [layers, 2, n, b, b] and gain [layers, 2, D]: T' and c, see rotation.online."""

    def __init__(self, start: Tensor, gain: Tensor, storage: str, device: torch.device) -> None:
        super().__init__()
        self._start, self._gain, self._storage = start.float().to(device), gain.to(device), storage
        self.change = nn.Parameter(torch.zeros_like(self._start))

    def _current(self) -> Tensor:
        one = torch.eye(self._start.shape[-1], device=self._start.device)
        return (one + self.change) @ self._start

    def refresh(self) -> dict[tuple[int, str], StepRotation]:
        """The rotations of this step, by layer and site."""
        T = self._current()
        if self._storage != "model":
            unit, lengths = split_gain(T.detach())  # rounded as it will be: columns of length 1, the rest in the norm
            rounded = restored(*quantise(unit, self._storage), T.dtype)
            T = T + (rounded * lengths.reshape(*T.shape[:-2], 1, -1) - T).detach()
        back = torch.linalg.inv(T.double()).float()
        return {
            (layer, site): StepRotation(T[layer, i], back[layer, i]) for layer in range(len(T)) for i, site in _SITES
        }

    def gains(self, layer: int, i: int) -> Tensor | None:
        """The gain of the norms."""
        return self._gain[layer, i]

    @torch.no_grad()
    def result(self) -> Tensor:
        """[layers, 2, n, b, b] float64, the gain in it."""
        n, b = self._start.shape[-3], self._start.shape[-1]
        gain = self._gain.reshape(*self._gain.shape[:-1], n, 1, b)
        blocks: Tensor = (self._current().double() * gain).cpu()
        return blocks


_SITES = ((0, "h1"), (1, "h3"))
Tuned = TunedBases | TunedTransforms


class _OutputErrors:
    """An observer that sums the relative squared output errors of h1 and h3, with gradient."""

    def __init__(self, grams: Tensor, device: torch.device) -> None:
        self._grams, self.total = grams.float().to(device), torch.zeros((), device=device)

    def observe(self, site: SparseSite, x: Tensor, y: Tensor, _z: Tensor, _z_sparse: Tensor) -> None:
        if site.site not in ("h1", "h3"):
            return
        G = self._grams[site.layer, 0 if site.site == "h1" else 1]
        gap = x - y
        self.total = self.total + ((gap @ G) * gap).sum() / ((x @ G) * x).sum().detach() / (2 * len(self._grams))


def tune(
    model: PreTrainedModel,
    tuned: Tuned,
    plan: Plan,
    tokens: TokenBlock,
    config: TuningConfig,
    grams: Tensor | None,
    seed: int,
) -> Tensor:
    """Take the steps and return `tuned.result()`.

    plan: plain Top-K at the sparsity to tune for; grams [layers, 2, D, D]: W^T W of the consumers with gamma folded in,
    for `output_error`.
    Raises TuningError where the loss is not finite.
    """
    if (grams is None) == (config.objective == "output_error"):
        raise ValueError("grams go with the objective output_error, and only with it")
    draw = torch.Generator().manual_seed(seed)
    parameters = list(tuned.parameters())
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, betas=_BETAS)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config.steps))
    with (
        float32_matmul("tf32"),  # steps only need a direction; nothing is measured here
        _folded(model, tuned),
        apply(model, plan) as handle,
        tqdm(total=config.steps, desc="tune", leave=False) as bar,
    ):
        for _ in range(config.steps):
            ids = tokens.ids[torch.randint(len(tokens.ids), (config.batch_size,), generator=draw)]
            with torch.enable_grad():
                loss = _loss(model, handle, tuned, ids, grams)
            if not bool(loss.isfinite()):
                raise TuningError(
                    "the loss is not finite: lower method.tuning.learning_rate, or set model.dtype=float32"
                )
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
            rate.step()
            bar.update()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return tuned.result()


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _loss(model: PreTrainedModel, handle: SparsityHandle, tuned: Tuned, ids: Tensor, grams: Tensor | None) -> Tensor:
    view = ModelView(model)
    ids = ids.to(view.embedding.weight.device)
    rotations = tuned.refresh()
    for site in handle.sites:
        if (site.layer, site.site) in rotations:
            rotation = rotations[site.layer, site.site]
            site.rotation = rotation
            if isinstance(site.selector, TopKSparsification):
                site.selector.importance = rotation.importance
    if grams is not None:
        # the folded norms give x without gamma, or with the gain; the grams must be of the same vector
        errors = _OutputErrors(_seen_grams(grams, tuned), view.embedding.weight.device)
        with handle.observed_by(errors):
            view.decoder(input_ids=ids, use_cache=False)
        return errors.total
    with torch.no_grad(), _dense(handle):
        dense = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
    sparse = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
    return nn.functional.kl_div(sparse, dense, reduction="batchmean", log_target=True)


def _seen_grams(grams: Tensor, tuned: Tuned) -> Tensor:
    if isinstance(tuned, TunedBases):
        return grams
    gain = torch.stack([torch.stack([torch.as_tensor(tuned.gains(i, j)) for j in range(2)]) for i in range(len(grams))])
    gain = gain.to(grams)
    return grams / gain[..., :, None] / gain[..., None, :]


@contextmanager
def _dense(handle: SparsityHandle) -> Iterator[None]:
    """Within: the sites pass their inputs unchanged."""
    with ExitStack() as stack:
        for site in handle.sites:
            stack.callback(setattr, site, "enabled", site.enabled)
            site.enabled = False
        yield


@contextmanager
def _folded(model: PreTrainedModel, tuned: Tuned) -> Iterator[None]:
    """Within: norms multiply by the gain only, so that a site sees the input that the tuned basis will see."""
    swaps, D = WeightSwaps(), model.config.hidden_size
    try:
        with torch.no_grad():
            for layer in ModelView(model).layers:
                one = torch.eye(D, dtype=torch.float64, device=layer.consumers("h1")[0].weight.device)
                for i, site in _SITES:
                    fold(layer.norm(site), layer.consumers(site), one, swaps, tuned.gains(layer.index, i))
        yield
    finally:
        swaps.restore()
