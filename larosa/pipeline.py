"""The story of one run: check, read texts, load, calibrate, plan, apply, prove, measure, record.

run(config)
  cells = what to measure: the baselines, then the method; one whose record exists is done (no weights needed)
  bench = texts, tokens, model, calibrator (loaded once, if anything is missing)
  for each cell (one that another process measures is waited for):
    plan -> apply -> level-0 check [-> round] -> perplexity -> errors -> tasks [-> gate -> speed] -> record
  table and figures of all cells, W&B
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa import failures, models, report, results
from larosa.accounting import account, quantised_account
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.overlap import Overlap, overlap, require_disjoint
from larosa.calibration.texts import load_documents
from larosa.calibration.tokens import TokenBlock, calibration_block, check_ids, evaluation_block
from larosa.cells import Cell, plan_cells, require_unchanged
from larosa.config import RunConfig
from larosa.disk import claimed
from larosa.evaluation import invariance
from larosa.evaluation.error import probe
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.sparsity import SparsityMeter, over_texts
from larosa.evaluation.zero_shot import check_reader, zero_shot
from larosa.prepare import prepare
from larosa.provenance import Stages, git_state, hardware, versions
from larosa.results import Record
from larosa.sparsity.handle import SparsityHandle
from larosa.store import digest
from larosa.tracking import Tracker
from larosa_analysis.run_figures import draw

if TYPE_CHECKING:
    from larosa.workbench import Workbench

log = logging.getLogger(__name__)

CHECK_TOKENS = 128
BATCH_DEPENDENCE = (
    "Selection is discontinuous: where a magnitude is within rounding of the k-th or of the threshold, the order of sums "
    "decides whether it stays, and that order changes with batch size and padding. This happens at any site and token, "
    "under either rule for ties. On SmolLM2-135M in float32 at 50 %, 4 of 64 log-likelihoods differed between batch "
    "sizes 1 and 8, the most by 20 %; in float64 none did (3e-14). Batch size 1 makes a score independent of the texts "
    "beside it; the batch sizes of this record are in its config."
)


@dataclass(frozen=True)
class Documents:
    """The texts of a run, whole."""

    calibration: list[str]
    held_out: dict[str, list[str]]
    overlaps: dict[str, Overlap]
    stages: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Bench:
    """What all cells are measured on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: TokenBlock
    texts: dict[str, TokenBlock]
    overlaps: dict[str, Overlap]
    calibrator: Calibrator
    dense: invariance.DenseReference
    passages: list[str]
    """Of BoolQ, in the calibration text: the task leaves out what is asked about them."""
    stages: dict[str, dict[str, float]]


def run(config: RunConfig, command: str = "", workbench: Workbench | None = None) -> dict[str, Record]:
    """Measure the method of `config` and its baselines; returns their records by label, the method's last.

    `command`, which measures it again, is noted where a cell fails; `workbench` keeps the bench for the next run.
    Raises LarosaError before weights load wherever the reason can be known by then, CellsFailedError when all other
    cells are recorded.
    """
    cells = plan_cells(config)
    main = list(cells.values())[-1]
    records = {} if config.force else _stored(cells)
    missing = {name: cell for name, cell in cells.items() if name not in records}
    if missing:
        models.ensure_available(config.model)
        results.check_output(config)
    with Tracker(config, main.folder.name, measured=bool(missing)) as tracker:
        measured, failed = _measure_all(missing, config, command, workbench)
        records = {name: found for name in cells if (found := records.get(name) or measured.get(name))}
        rows = report.comparison(records)
        figures = []
        if records:
            report.show(records, rows)
            figures = _illustrate(records, rows, main.folder)
        tracker.log(records, rows, figures)
        if failed:
            raise failures.CellsFailedError(failed, len(records))
    return records


def _measure_all(
    cells: dict[str, Cell], config: RunConfig, command: str, workbench: Workbench | None
) -> tuple[dict[str, Record], dict[str, str]]:
    """Records and messages of failed cells, by label. Raises what keeps all of them from being measured."""
    from larosa.workbench import Workbench  # which imports this module

    workbench = workbench or Workbench()
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    for name, cell in cells.items():
        with claimed(cell.folder):
            found = None if config.force else results.load_record(cell.folder, cell.identity)
            if found is None:
                workbench.open(config)
                try:
                    found = results.read(results.save_record(cell.folder, measure(cell, workbench.open(config))))
                    log.info("recorded %s", cell.folder / "result.json")
                except Exception as error:
                    failed[name] = failures.message_of(error)
                    failures.write(cell.folder, name, error, command, failures.asked(cell.config))
                    failures.report(name, error)
            if found is None:
                workbench.clear()  # only now: the error held on to it
                continue
            failures.forget(cell.folder)
            records[name] = found
    return records, failed


def _illustrate(records: dict[str, Record], rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """The table and the figures as files; the records are safe already, so a full disk costs only these."""
    try:
        report.write(folder, rows)
        figures = draw(records, folder)
    except OSError as error:
        log.warning("table and figures could not be written (%s); the records are complete", error)
        return []
    log.info("record, table and figures are in %s", folder)
    return figures


def _stored(cells: dict[str, Cell]) -> dict[str, Record]:
    records = {}
    for name, cell in cells.items():
        record = results.load_record(cell.folder, cell.identity)
        if record is not None:
            records[name] = record
            failures.forget(cell.folder)
            commit = str(record["git"]["commit"])[:10]
            log.info("%s is done already (%s, commit %s); force=true measures it again", name, cell.folder, commit)
    return records


def read_documents(config: RunConfig) -> Documents:
    """All texts of the run, and the evidence that calibration and evaluation are disjoint."""
    stages = Stages()
    with stages("texts"):
        calibration = load_documents(config.calibration.text)
        held_out = {name: load_documents(text) for name, text in config.texts.items()}
        overlaps = {name: overlap(calibration, documents) for name, documents in held_out.items()}
    for name, found in overlaps.items():
        require_disjoint(found, name)
        log.info("%s against the calibration text: %s", name, found)
    return Documents(calibration, held_out, overlaps, stages.record)


def open_bench(config: RunConfig, documents: Documents) -> Bench:
    """Tokens, then the model: what is wrong with a text is known before weights load."""
    stages, size = Stages(), config.evaluation.perplexity
    with stages("tokenise"):
        tokenizer = models.load_tokenizer(config.model)
        longest = models.model_config(config.model).max_position_embeddings
        check_reader(config.evaluation.zero_shot, config.seed, results.left_out_by(config), tokenizer, longest)
        calibration = calibration_block(documents.calibration, tokenizer, config.calibration, config.seed)
        texts = {
            name: evaluation_block(
                documents.held_out[name], tokenizer, text, size.length, size.max_tokens, size.samples, config.seed
            )
            for name, text in config.texts.items()
        }
        for block in (calibration, *texts.values()):
            check_ids(block, tokenizer, models.model_config(config.model).vocab_size)
    with stages("load"):
        model = models.load_model(config.model, config.seed)
        calibrator = Calibrator(
            model, calibration, models.fingerprint(config.model), config.calibration.batch_size, config.seed
        )
        dense = invariance.reference(model, calibration.ids[:1, :CHECK_TOKENS])
    record = documents.stages | stages.record
    passages = documents.calibration if config.calibration.text.dataset == "boolq-passages" else []
    return Bench(model, tokenizer, calibration, texts, documents.overlaps, calibrator, dense, passages, record)


def measure(cell: Cell, bench: Bench) -> Record:
    """Plan, apply, prove and measure one cell; the model is dense again afterwards."""
    config, stages = cell.config, Stages()
    log.info("measuring %s", config.method.label)
    vocabulary = int(bench.model.config.vocab_size)
    handle, prepared = prepare(cell, bench, stages)
    with handle:
        metrics: dict[str, Any] = {"accounting": account(handle.plan, vocabulary), **prepared}
        if config.quantization.active:
            metrics["accounting"]["quantised"] = quantised_account(handle.plan, config.quantization, vocabulary)
        with stages("perplexity"):
            metrics |= _perplexities(cell, bench, handle)
        if config.method.name != "dense":
            with stages("errors"):
                probed = bench.calibration.ids[: config.calibration.probe_sequences]
                metrics["errors"] = probe(bench.model, handle, probed)
        with stages("zero_shot"):
            metrics["zero_shot"] = _scores(cell, bench)
        if config.method.name != "dense":
            metrics["batch_dependence"] = BATCH_DEPENDENCE
        if config.evaluation.speed is not None:
            from larosa.evaluation.speed import speed  # triton, which not every machine has

            with stages("speed"):
                asked, prompt = config.evaluation.speed, bench.calibration.ids[0]
                metrics["speed"] = speed(bench.model, handle, prompt, bench.dense.kappa, asked, config.backend)
    require_unchanged(cell)
    return _record(cell, bench, metrics, bench.stages | stages.record)


def _scores(cell: Cell, bench: Bench) -> dict[str, Any]:
    asked, avoided = cell.config.evaluation.zero_shot, results.left_out_by(cell.config)
    scores = zero_shot(bench.model, bench.tokenizer, asked, cell.config.seed, avoided, bench.passages)
    return {name: asdict(score) for name, score in scores.items()}


def _record(cell: Cell, bench: Bench, metrics: dict[str, Any], stages: dict[str, dict[str, float]]) -> Record:
    return {
        "schema": results.SCHEMA,
        "identity": digest(cell.identity),
        "label": cell.config.method.label,
        "shaped_by": cell.identity,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": cell.config.model_dump(mode="json"),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "device": str(bench.model.device),
        "backend": metrics["speed"]["backend"] if "speed" in metrics else "reference",
        "data": _data(bench, cell.config.method.name != "dense" or cell.config.quantization.calibrated),
        "metrics": metrics,
        "stages": stages,
        "wall_s": sum(stage["wall_s"] for stage in stages.values()),
        "units": results.UNITS,
    }


def _perplexities(cell: Cell, bench: Bench, handle: SparsityHandle) -> dict[str, Any]:
    meters = {name: SparsityMeter(handle.plan.shape, handle.plan.levels.skips) for name in bench.texts}
    found, size = {}, cell.config.evaluation.perplexity.batch_size
    for name, block in bench.texts.items():
        with handle.observed_by(meters[name]):
            found[name] = perplexity(bench.model, block.ids, size, f"{cell.config.method.label}: perplexity on {name}")
    measured = {name: meter.summary() for name, meter in meters.items()}
    return {"perplexity": found, "measured_sparsity": measured, "measured_over_texts": over_texts(measured)}


def _data(bench: Bench, calibrated: bool) -> dict[str, Any]:
    """Hashes and counts of the tokens; the dense model's record does not depend on a calibration."""

    def described(block: TokenBlock) -> dict[str, Any]:
        return {
            "text": block.text,
            "documents": block.documents,
            "tokens": block.ids.numel(),
            "blocks": list(block.ids.shape),
            "tokens_available": block.tokens_available,
            "sha256": block.sha256,
        }

    texts = {name: described(block) for name, block in bench.texts.items()}
    if not calibrated:
        return {"texts": texts}
    for name, text in texts.items():
        found = bench.overlaps[name]
        text["overlap_with_calibration"] = asdict(found) | {"share": found.share}
    return {"calibration": described(bench.calibration), "texts": texts}
