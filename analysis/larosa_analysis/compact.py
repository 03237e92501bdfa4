"""Compact records: what tables need of every `result.json`, one line each, small enough to commit.

    python -m larosa_analysis.compact RUNS_DIR OUT.jsonl

Lists per layer become means over layers, outcomes of examples one character each
(:mod:`larosa_analysis.records.outcomes`); paths of the machine are cut to the file's name. Every line has a checksum,
as the records have; a record that does not match its own is named and excluded. Of one identity the newest record is
kept, those of OUT.jsonl included. RUNS_DIR may be a `.jsonl` file of compact records. Beside OUT.jsonl stand the
diagnostics of RUNS_DIR (`inspect-*.json`), and `failed-OUT.json` with the runs that could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from larosa.records import checksum
from larosa.records.checksum import sealed
from larosa.records.disk import write_atomically
from larosa.records.scrub import scrub
from larosa_analysis.records import failures
from larosa_analysis.records.entry import Record, RecordsError, read_lines
from larosa_analysis.records.outcomes import compact_score
from larosa_analysis.records.store import newest

LIMIT_BYTES = 2**20
_KEPT = ("schema", "identity", "label", "created", "git", "versions", "hardware", "device", "data")
_NOT_SHAPING = ("output", "tracking", "force")
"""Settings that shape no result: where records go, and whose account sees them."""


def compact(record: Record) -> Record:
    """The compact form of a record; of a compact one, itself. Raises RecordsError where something is missing."""
    try:
        shaped = record.get("identity_inputs", record)
        kept = {key: record[key] for key in _KEPT}
        kept["semantics_version"], kept["model"] = shaped["semantics_version"], shaped["model"]
        if version := record.get("tuning_version", shaped.get("method", {}).get("tuning_version")):
            kept["tuning_version"] = version
        kept["config"] = {key: value for key, value in record["config"].items() if key not in _NOT_SHAPING}
        kept["metrics"] = _metrics(record["metrics"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordsError(
            f"record {record.get('identity')} lacks {error}: it was made by an older larosa; measure it again with "
            "force=true"
        ) from error
    scrubbed: Record = scrub(kept)
    return scrubbed


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    accounting = metrics["accounting"]
    errors = metrics.get("errors") or {}
    layer_error = errors.get("layer_error", errors.get("layer_error_mean"))
    return {
        "perplexity": {
            text: score | {"block_nll_nats": [round(nats, 6) for nats in score["block_nll_nats"]]}
            for text, score in metrics["perplexity"].items()
        },
        "achieved_sparsity": {text: _measured(measured) for text, measured in metrics["achieved_sparsity"].items()},
        "accounting": accounting | {"planned_sparsity": _over_layers(accounting["planned_sparsity"])},
        "parity": metrics["parity"],
        "errors": {} if layer_error is None else {"layer_error_mean": _mean(layer_error)},
        "zero_shot": {task: compact_score(score) for task, score in metrics["zero_shot"].items()},
        **{key: metrics[key] for key in ("speed", "quantization") if key in metrics},
    }


def _measured(measured: dict[str, Any]) -> dict[str, Any]:
    kept = {k: value for k, value in measured.items() if k.startswith("weight_sparsity_") or k == "sparse_tokens"}
    levels = (key for key in ("site_mean", "site_std_over_tokens") if key in measured)
    return kept | {key: _over_layers(measured[key]) for key in levels}


def _over_layers(sites: dict[str, Any]) -> dict[str, float]:
    return {site: _mean(values) for site, values in sites.items()}


def _mean(values: Any) -> float:
    """Of a list, rounded; a number is a mean already."""
    return round(sum(values) / len(values), 9) if isinstance(values, list) else values


def gather(source: Path) -> list[Record]:
    """All intact records below a folder, or of a `.jsonl` file, compact. Raises RecordsError for a damaged line."""
    if source.is_file():
        return [compact(record) for record in read_lines(source)]
    return list(_intact(source.rglob("result.json"), compact).values())


def _intact(paths: Iterable[Path], form: Callable[[Record], Record]) -> dict[Path, Record]:
    """The files' records in another form. What does not match its checksum or lacks something is named and excluded."""
    records = {}
    for path in sorted(paths):
        try:
            records[path] = form(checksum.read(path))
        except (checksum.DamagedError, RecordsError, OSError) as error:
            print(f"warning: {path} is excluded: {error}. Its command measures it again", file=sys.stderr)
    return records


def _failures(source: Path) -> list[Record]:
    """What was asked of each run below a folder that could not be measured, and why. Raises RecordsError."""
    if source.is_file():
        return failures.read(failures.beside(source)) if failures.beside(source).exists() else []
    short = _intact(
        source.rglob(failures.FILE), lambda note: {} if failures.of_diagnostics(note) else failures.short(note)
    )
    return [scrub(note) for note in short.values() if note]


def _diagnostics(source: Path) -> dict[str, Record]:
    """Name of the file -> each intact record of diagnostics in a folder, without the machine's paths."""
    paths = [] if source.is_file() else source.glob("inspect-*.json")
    return {path.name: scrub(record) for path, record in _intact(paths, dict).items()}


def _line(record: Record) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write(source: Path, out: Path) -> tuple[int, int]:
    """Merge the records of `source` into `out`, failures and diagnostics beside it. Returns records and bytes written.

    Raises RecordsError where there is nothing.
    """
    runs, failed, diagnostics = gather(source), _failures(source), _diagnostics(source)
    if not (runs or failed or diagnostics):
        raise RecordsError(f"no result.json below {source}, nor {failures.FILE} or inspect-*.json")
    records = newest(runs + (gather(out) if out.exists() else []))
    content = "".join(_line(sealed(record)) + "\n" for record in records).encode()
    if content:
        write_atomically(out, content)
    unmade, beside = failures.newest(failed + (_failures(out) if out.exists() else [])), failures.beside(out)
    if unmade or beside.exists():
        lines = json.dumps([sealed(note) for note in unmade], indent=1, sort_keys=True, allow_nan=False)
        write_atomically(beside, f"{lines}\n".encode())
    for name, record in diagnostics.items():
        _keep_newest(out.with_name(name), record)
    return len(records), len(content)


def _keep_newest(path: Path, record: Record) -> None:
    """Write diagnostics unless newer ones stand there."""
    there = _intact([path] if path.exists() else [], dict).get(path, {})
    if there.get("created", "") < record.get("created", ""):
        write_atomically(path, (_line(sealed(record)) + "\n").encode())


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m larosa_analysis.compact", description="Write compact records.")
    parser.add_argument("runs", type=Path, metavar="RUNS_DIR", help="folder of records, or compact records")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="written; what it holds already stays")
    given = parser.parse_args(arguments)
    try:
        count, size = write(given.runs, given.out)
    except (RecordsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {count} records, {size / 1024:.0f} KiB")
    if size >= LIMIT_BYTES:
        print("warning: a committed file must stay below 1 MiB; split the records by model or date", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
