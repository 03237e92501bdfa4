"""The story of one run: check -> read texts -> load -> calibrate -> plan -> apply -> prove -> measure -> record.

run(config)
  cells = what to measure: the baselines, then the method          (no weights needed)
  a cell whose record exists is done
  bench = texts, tokens, model, calibrator                         (loaded once, if anything is missing)
  for each cell: plan -> apply -> level-0 check -> perplexity -> errors -> tasks -> result.json
  table and figures of all cells, W&B
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.run_figures import draw
from larosa import models, report, results
from larosa.accounting import account
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.overlap import Overlap, overlap
from larosa.calibration.texts import load_documents
from larosa.calibration.tokens import TokenBlock, calibration_block, evaluation_block
from larosa.config import RunConfig
from larosa.evaluation import invariance
from larosa.evaluation.error import probe
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.sparsity import SparsityMeter
from larosa.evaluation.zero_shot import check_tasks, zero_shot
from larosa.methods.registry import METHODS
from larosa.provenance import Stages, git_state, hardware, versions
from larosa.results import Record
from larosa.rotation import bases
from larosa.sites import ModelShape
from larosa.sparsity.handle import apply
from larosa.sparsity.schedule import Levels, byte_weighted, make_levels
from larosa.store import digest
from larosa.tracking import Tracker

log = logging.getLogger(__name__)

CHECK_TOKENS = 128


@dataclass(frozen=True)
class Cell:
    """One method at one level: what a record is made of."""

    config: RunConfig
    levels: Levels
    identity: dict[str, Any]
    folder: Path


@dataclass
class Bench:
    """What all cells are measured on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: TokenBlock
    texts: dict[str, TokenBlock]
    overlaps: dict[str, Overlap]
    calibrator: Calibrator
    dense: invariance.DenseReference
    stages: dict[str, dict[str, float]]


def run(config: RunConfig) -> dict[str, Record]:
    """Measure the method of `config` and its baselines; returns their records by method name.

    Raises LarosaError before weights load wherever the reason can be known by then.
    """
    cells = plan_cells(config)
    main = list(cells.values())[-1]
    records = {} if config.force else _stored(cells)
    missing = [name for name in cells if name not in records]
    for name in missing:
        results.prepare_folder(cells[name].folder)
    with Tracker(config, name=main.folder.name) as tracker:
        if missing:
            bench = open_bench(config, cells)
            for name in missing:
                path = results.save_record(cells[name].folder, measure(cells[name], bench))
                records[name] = results.read(path)
                log.info("recorded %s", path)
        ordered = {name: records[name] for name in cells}
        rows = report.comparison(ordered)
        report.write(main.folder, rows)
        figures = draw(ordered, main.folder)
        tracker.log(ordered, rows, figures)
    report.show(ordered, rows, main.folder, figures)
    return ordered


def plan_cells(config: RunConfig) -> dict[str, Cell]:
    """The baselines, then the method, each with its levels: all that can fail without weights."""
    models.resolve_device(config.model.device)
    check_tasks(config.evaluation.zero_shot)
    shape = ModelShape.of(models.model_config(config.model))
    if config.method.basis == "hadamard":
        bases.hadamard_factors(shape.hidden_size)
    levels = make_levels(shape, config.schedule, config.sparsity, config.model.name)
    planned = {s: tuple(levels.planned(s, i, shape) for i in range(shape.layers)) for s in levels.level}
    cells: dict[str, Cell] = {}
    for method in [*config.baseline.values(), config.method]:
        own = config.model_copy(update={"method": method, "baseline": {}})
        if method is not config.method and config.schedule.count == "nominal":
            # A baseline stands at the byte-weighted level that the method really reaches.
            schedule = config.schedule.model_copy(update={"count": "bytes"})
            level = round(byte_weighted(planned, shape), 6)
            own = own.model_copy(update={"schedule": schedule, "sparsity": level})
        cell = _cell(own, shape)
        cells.pop(method.label, None) if method is config.method else None
        cells[method.label] = cell
    return cells


def _cell(config: RunConfig, shape: ModelShape) -> Cell:
    levels = make_levels(shape, config.schedule, config.sparsity, config.model.name)
    device = models.resolve_device(config.model.device).type
    identity = results.identity(config, models.fingerprint(config.model), device)
    return Cell(config, levels, identity, results.record_folder(config, identity))


def _stored(cells: dict[str, Cell]) -> dict[str, Record]:
    records = {}
    for name, cell in cells.items():
        record = results.load_record(cell.folder, cell.identity)
        if record is not None:
            records[name] = record
            log.info(
                "%s is done already (%s, commit %s); force=true measures it again",
                name,
                cell.folder,
                str(record["git"]["commit"])[:10],
            )
    return records


def open_bench(config: RunConfig, cells: dict[str, Cell]) -> Bench:
    """Read the texts, then load the model: a text that is missing costs seconds, not minutes."""
    stages = Stages()
    models.ensure_available(config.model)
    with stages("texts"):
        documents = load_documents(config.calibration.text)
        held_out = {name: load_documents(text) for name, text in config.texts.items()}
        overlaps = {name: overlap(documents, other) for name, other in held_out.items()}
        _require_disjoint(overlaps)
        tokenizer = models.load_tokenizer(config.model)
        calibration = calibration_block(documents, tokenizer, config.calibration, config.seed)
        size = config.evaluation.perplexity
        texts = {
            name: evaluation_block(held_out[name], tokenizer, text, size.length, size.max_tokens)
            for name, text in config.texts.items()
        }
    with stages("load"):
        model = models.load_model(config.model, config.seed)
        fingerprint = models.fingerprint(config.model)
        calibrator = Calibrator(model, calibration, fingerprint, config.calibration.batch_size, config.seed)
        dense = invariance.reference(model, calibration.ids[:1, :CHECK_TOKENS])
    return Bench(model, tokenizer, calibration, texts, overlaps, calibrator, dense, stages.record)


def _require_disjoint(overlaps: dict[str, Overlap]) -> None:
    for name, found in overlaps.items():
        log.info(
            "%s against the calibration text: %d documents and %d of %d word %d-grams in common, largest cosine %s",
            name,
            found.shared_documents,
            found.shared_ngrams,
            found.evaluation_ngrams,
            found.n,
            "not computed" if found.max_cosine is None else f"{found.max_cosine:.3f}",
        )
        if found.shared_documents:
            log.warning(
                "%s shares %d documents with the calibration text: its perplexity is not held out",
                name,
                found.shared_documents,
            )


def measure(cell: Cell, bench: Bench) -> Record:
    """Plan, apply, prove and measure one cell; the model is dense again afterwards."""
    config, stages = cell.config, Stages()
    log.info("measuring %s", config.method.label)
    shape = ModelShape.of(bench.model.config)
    with stages("calibrate"):
        plan = METHODS[config.method.name](config.method, shape, cell.levels, config.tokens, bench.calibrator)
    with stages("apply"):
        handle = apply(bench.model, plan, config.model.keep_weights)
    metrics: dict[str, Any] = {"accounting": account(plan, bench.model.dtype.itemsize)}
    with handle:
        metrics["memory"] = {
            "kept_weights_bytes": handle.kept_bytes,
            "kept_weights_on": config.model.keep_weights,
            "adapter_bytes": handle.adapter_bytes,
        }
        with stages("invariance"):
            metrics["invariance"] = invariance.check(bench.model, handle, bench.dense)
        with stages("perplexity"):
            metrics |= _perplexities(cell, bench, handle)
        if config.method.name != "dense":
            with stages("errors"):
                ids = bench.calibration.ids[: config.calibration.probe_sequences]
                metrics["errors"] = probe(bench.model, handle, ids)
        with stages("zero_shot"):
            scores = zero_shot(bench.model, bench.tokenizer, config.evaluation.zero_shot, config.seed)
            metrics["zero_shot"] = {name: asdict(score) for name, score in scores.items()}
    return {
        "schema": results.SCHEMA,
        "identity": digest(cell.identity),
        "shaped_by": cell.identity,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "device": str(bench.model.device),
        "backend": "reference",
        "data": _data(bench),
        "metrics": metrics,
        "stages": bench.stages | stages.record,
        "units": UNITS,
    }


def _perplexities(cell: Cell, bench: Bench, handle: Any) -> dict[str, Any]:
    meters = {name: SparsityMeter(handle.plan.shape) for name in bench.texts}
    found = {}
    size = cell.config.evaluation.perplexity.batch_size
    for name, block in bench.texts.items():
        with handle.observed_by(meters[name]):
            label = f"{cell.config.method.label}: perplexity on {name}"
            found[name] = perplexity(bench.model, block.ids, size, label)
    measured = {name: meter.summary() for name, meter in meters.items()}
    return {"perplexity": found, "measured_sparsity": measured}


UNITS = {
    "level_*, *_share, byte_weighted_*": "fraction",
    "*_bytes, bytes": "bytes; per token where they are read",
    "wall_s": "seconds",
    "block_nll_nats": "nats, summed over a block",
    "thresholds": "magnitude of the activation in the site's basis",
    "site_error, layer_error, relative_logits_error": "relative, Euclidean norm",
    "zero_shot value": "fraction right",
}


def _data(bench: Bench) -> dict[str, Any]:
    def described(block: TokenBlock) -> dict[str, Any]:
        return {
            "text": block.text,
            "documents": block.documents,
            "tokens": block.ids.numel(),
            "blocks": list(block.ids.shape),
            "tokens_available": block.tokens_available,
            "sha256": block.sha256,
        }

    return {
        "calibration": described(bench.calibration),
        "texts": {
            name: described(block)
            | {"overlap_with_calibration": asdict(bench.overlaps[name]) | {"share": bench.overlaps[name].share}}
            for name, block in bench.texts.items()
        },
    }
