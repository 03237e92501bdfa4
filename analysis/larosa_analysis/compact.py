"""Compact records: what tables need of every `result.json`, one line each, small enough to commit.

    python -m larosa_analysis.compact RUNS_DIR OUT.jsonl

Lists per layer become means over layers, outcomes of examples one character each (:mod:`larosa_analysis.outcomes`);
paths of the machine are cut to the file's name. Every line has a checksum, as the records have; a record that does not
match its own is named and left out. Of one identity the newest record stays, those that OUT.jsonl holds already
counted in. RUNS_DIR may be a `.jsonl` file of compact records. Beside OUT.jsonl stand the inspections of RUNS_DIR
(`inspect-*.json`), and `failed-OUT.json` with the cells that could not be measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from larosa_analysis import checksum, failed
from larosa_analysis.checksum import sealed
from larosa_analysis.outcomes import compact_score
from larosa_analysis.records import Record, RecordsError, read_lines, write_atomically

LIMIT_BYTES = 2**20
_KEPT = ("schema", "identity", "label", "created", "git", "versions", "hardware", "device", "data")
_NOT_SHAPING = ("output", "tracking", "force")
"""Settings that shape no result: where records go, and whose account sees them."""
_ABSOLUTE = re.compile(r"""(?<![^\s"'=:,(\[{])(?:file:/*|~|[A-Za-z]:)?[/\\][^\s"',)\]}]+""")


def compact(record: Record) -> Record:
    """The compact form of a record; of a compact one, itself. Raises RecordsError where something is missing."""
    try:
        shaped = record.get("shaped_by", record)
        found = {key: record[key] for key in _KEPT}
        found["meaning"], found["model"] = shaped["meaning"], shaped["model"]
        if version := record.get("tuning_version", shaped.get("method", {}).get("tuning_version")):
            found["tuning_version"] = version
        found["config"] = {key: value for key, value in record["config"].items() if key not in _NOT_SHAPING}
        found["metrics"] = _metrics(record["metrics"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordsError(
            f"record {record.get('identity')} lacks {error}: it was made by an older larosa; measure it again with "
            "force=true"
        ) from error
    scrubbed: Record = scrub(found)
    return scrubbed


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    accounting = metrics["accounting"]
    errors = metrics.get("errors") or {}
    layer_error = errors.get("layer_error", errors.get("layer_error_mean"))
    return {
        "perplexity": {
            text: found | {"block_nll_nats": [round(nats, 6) for nats in found["block_nll_nats"]]}
            for text, found in metrics["perplexity"].items()
        },
        "measured_sparsity": {text: _measured(found) for text, found in metrics["measured_sparsity"].items()},
        "accounting": accounting | {"level_planned": _over_layers(accounting["level_planned"])},
        "invariance": metrics["invariance"],
        "errors": {} if layer_error is None else {"layer_error_mean": _mean(layer_error)},
        "zero_shot": {task: compact_score(found) for task, found in metrics["zero_shot"].items()},
        **{key: metrics[key] for key in ("speed", "quantization") if key in metrics},
    }


def _measured(found: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key.startswith("byte_weighted_") or key == "sparse_tokens"}
    levels = (key for key in ("level_mean", "level_std_over_tokens") if key in found)
    return kept | {key: _over_layers(found[key]) for key in levels}


def _over_layers(sites: dict[str, Any]) -> dict[str, float]:
    return {site: _mean(values) for site, values in sites.items()}


def _mean(values: Any) -> float:
    """Of a list, rounded; a number is a mean already."""
    return round(sum(values) / len(values), 9) if isinstance(values, list) else values


def scrub(tree: Any, key: str = "") -> Any:
    """The tree with every path of the machine cut to the file's name: `path` and `files`, and what is absolute."""
    if isinstance(tree, dict):
        return {name: scrub(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [scrub(value, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    if key in ("path", "files") or _ABSOLUTE.match(tree):
        return _file_name(tree)
    return _ABSOLUTE.sub(lambda found: _file_name(found[0]), tree)


def _file_name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def gather(source: Path) -> list[Record]:
    """All intact records below a folder, or of a `.jsonl` file, compact. Raises RecordsError for a damaged line."""
    if source.is_file():
        return [compact(record) for record in read_lines(source)]
    return list(_intact(source.rglob("result.json"), compact).values())


def _intact(paths: Iterable[Path], form: Callable[[Record], Record]) -> dict[Path, Record]:
    """The files' records in another form. What does not match its checksum or lacks something is named and left out."""
    found = {}
    for path in sorted(paths):
        try:
            found[path] = form(checksum.read(path))
        except (checksum.DamagedError, RecordsError, OSError) as error:
            print(f"warning: {path} is left out: {error}. Its command measures it again", file=sys.stderr)
    return found


def failures(source: Path) -> list[Record]:
    """Of every cell below a folder that could not be measured what was asked, and why. Raises RecordsError."""
    if source.is_file():
        return failed.read(failed.beside(source)) if failed.beside(source).exists() else []
    found = _intact(source.rglob(failed.FILE), lambda own: {} if failed.of_an_inspection(own) else failed.short(own))
    return [scrub(own) for own in found.values() if own]


def inspections(source: Path) -> dict[str, Record]:
    """Name of the file -> every intact inspection in a folder, without the machine's paths."""
    paths = [] if source.is_file() else source.glob("inspect-*.json")
    return {path.name: scrub(record) for path, record in _intact(paths, dict).items()}


def newest(records: list[Record]) -> list[Record]:
    """One record an identity, sorted by model, label, level asked and identity."""
    by_identity = {r["identity"]: r for r in sorted(records, key=lambda r: (r["created"], _line(r)))}
    return sorted(
        by_identity.values(),
        key=lambda r: (r["model"]["name"], r["label"], r["metrics"]["accounting"]["level_asked"], r["identity"]),
    )


def _line(record: Record) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write(source: Path, out: Path) -> tuple[int, int]:
    """Merge the records of `source` into `out`, failures and inspections beside it. Returns records and bytes written.

    Raises RecordsError where there is nothing.
    """
    found, failures_found, inspected = gather(source), failures(source), inspections(source)
    if not (found or failures_found or inspected):
        raise RecordsError(f"no result.json below {source}, nor {failed.FILE} or inspect-*.json")
    records = newest(found + (gather(out) if out.exists() else []))
    content = "".join(_line(sealed(record)) + "\n" for record in records).encode()
    if content:
        write_atomically(out, content)
    unmade, beside = failed.newest(failures_found + (failures(out) if out.exists() else [])), failed.beside(out)
    if unmade or beside.exists():
        lines = json.dumps([sealed(own) for own in unmade], indent=1, sort_keys=True, allow_nan=False)
        write_atomically(beside, f"{lines}\n".encode())
    for name, own in inspected.items():
        _keep_newest(out.with_name(name), own)
    return len(records), len(content)


def _keep_newest(path: Path, inspection: Record) -> None:
    """Write an inspection unless a newer one stands there."""
    there = _intact([path] if path.exists() else [], dict).get(path, {})
    if there.get("created", "") < inspection.get("created", ""):
        write_atomically(path, (_line(sealed(inspection)) + "\n").encode())


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
