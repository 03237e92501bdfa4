"""JSON files that larosa reads back: of whatever type a damaged one is, it is named or measured again, no traceback."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from larosa.cli.sweep import Outcome, Sweep
from larosa.evaluation.tasks.requests import read_requests
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.records.disk import read_object

NO_OBJECT = ["", "{", "[]", "null", '"text"', "7", "[" * 100_000, "\udcff", '[{"identity": "x"}]']


@pytest.fixture(params=NO_OBJECT, ids=[text[:12] for text in NO_OBJECT])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "found.json"
    path.write_bytes(request.param.encode(errors="surrogateescape"))
    return path


def test_what_is_no_object_is_a_value_error_that_names_the_file(damaged: Path) -> None:
    with pytest.raises(ValueError, match=r"found\.json (is no JSON|holds (list|null|str|int), expected a JSON object)"):
        read_object(damaged)


@pytest.mark.parametrize("text", ["{}", '{"overrides": 1}', '{"overrides": [], "failed": []}', '{"other": 1}'])
def test_an_outcome_of_a_sweep_with_wrong_fields(text: str, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(text)
    assert Sweep("group", tmp_path, 0, "larosa run").outcomes() == []


def test_outcomes_of_a_sweep(damaged: Path) -> None:
    sweep = Sweep("group", damaged.parent, 0, "larosa run")
    sweep.note(Outcome(["sparsity=0.4"]))
    assert sweep.outcomes() == [Outcome(["sparsity=0.4"])]


@pytest.mark.parametrize("packed", [True, False])
def test_requests(damaged: Path, packed: bool) -> None:
    if packed:
        damaged.write_bytes(gzip.compress(damaged.read_bytes(), mtime=0))
    config: object = SimpleNamespace(requests=str(damaged))
    with pytest.raises(ZeroShotError, match=r"found\.json (holds no requests|cannot be read)"):
        read_requests(config, 0, None)  # type: ignore[arg-type]


def test_requests_with_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    content = gzip.compress(json.dumps({"version": 1, "text": [str(i) for i in range(999)]}).encode(), mtime=0)
    for place in range(10, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(ZeroShotError, match=r"found\.json (holds no requests|cannot be read)"):
            read_requests(SimpleNamespace(requests=str(path)), 0, None)  # type: ignore[arg-type]
