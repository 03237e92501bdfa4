"""A mixture as the calibration text: shares of the sequences, the schema, and what else knows its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_config import parse
from test_tokens import tokenizer  # noqa: F401  # a fixture

from larosa.config.run import CalibrationConfig, ConfigError
from larosa.config.texts import sequences_of
from larosa.data.mixture import calibration_tokens
from larosa.data.overlap import OverlapError
from larosa.data.texts import TextError, load_documents, load_parts
from larosa.experiment import results
from larosa.experiment.session import read_documents

SIZES = {"sequences": 8, "length": 5, "sampling": "first", "batch_size": 1, "probe_sequences": 1}


def mixture(folder: Path, shares: dict[str, float], **sizes: Any) -> CalibrationConfig:
    """Texts of a hundred words each: w1 ... w100 in order, from the place where the last one stopped."""
    parts = {}
    for number, (name, share) in enumerate(shares.items()):
        words = [f"w{1 + (30 * number + index) % 100}" for index in range(100)]
        (folder / f"{name}.txt").write_text(" ".join(words))
        parts[name] = {"name": name, "source": "files", "files": [str(folder / f"{name}.txt")], "share": share}
    text = {"name": "mixed", "source": "mixture", "parts": parts}
    return CalibrationConfig.model_validate({"text": text, **SIZES, **sizes})


def test_each_part_has_its_share_of_the_sequences(tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    config = mixture(tmp_path, {"a": 0.5, "b": 0.25, "c": 0.25})
    block = calibration_tokens(load_parts(config.text), tokenizer, config, seed=0)
    assert block.ids.shape == (8, 5)
    assert (block.text, block.documents) == ("mixed", 3)
    starts = block.ids[:, 1].tolist()  # behind the BOS of each part's first window
    owner = ["a" if start < 30 else "b" if start < 60 else "c" for start in starts]
    assert [owner.count(name) for name in "abc"] == [4, 2, 2]
    assert sorted(owner[:4]) == ["a", "a", "b", "c"]  # the first rows are a mixture too
    assert torch.equal(block.ids, calibration_tokens(load_parts(config.text), tokenizer, config, seed=0).ids)


@pytest.mark.parametrize(
    ("shares", "sequences", "expected"),
    [
        ((0.5, 0.25, 0.25), 16, (8, 4, 4)),
        ((0.4, 0.3, 0.3), 16, (6, 5, 5)),
        ((1 / 3, 1 / 3, 1 / 3), 4, (2, 1, 1)),
        ((0.6, 0.4), 5, (3, 2)),
    ],
)
def test_sequences_are_shared_by_largest_remainder(
    shares: tuple[float, ...], sequences: int, expected: tuple[int, ...], tmp_path: Path
) -> None:
    config = mixture(tmp_path, dict(zip("abc", shares, strict=False)), sequences=16)
    assert tuple(sequences_of(config.text, sequences).values()) == expected


@pytest.mark.parametrize(
    ("shares", "sizes", "message"),
    [
        ({"a": 0.5, "b": 0.4}, {}, "shares sum to 1"),
        ({"a": 0.999999}, {}, "two or more parts"),
        ({"a": 0.95, "b": 0.05}, {"sequences": 8}, "sequences=8 leaves a part without a sequence"),
        ({"a": 1.0, "b": 0.0}, {}, "share"),
    ],
)
def test_impossible_mixtures_are_refused(
    shares: dict[str, float], sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=message):
        mixture(tmp_path, shares, **sizes)


def test_a_mixture_calibrates_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)mixture needs `parts` and is a calibration text"):
        parse("texts=text", "texts.text.source=mixture", "texts.text.files=[]")
    with pytest.raises(ConfigError, match="belong to source=mixture, not to source=wheel"):
        parse("calibration=mixture", "calibration.text.source=wheel")


def test_a_part_that_is_too_short_is_named(tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    config = mixture(tmp_path, {"a": 0.5, "b": 0.5}, length=30)
    with pytest.raises(TextError, match="text a has 101 tokens"):
        calibration_tokens(load_parts(config.text), tokenizer, config, seed=0)


def run_config(folder: Path, evaluated: Path) -> Any:
    config = parse("texts=text", f"texts.text.files=[{evaluated}]", "evaluation.zero_shot.tasks=[]")
    return config.model_copy(update={"calibration": mixture(folder, {"a": 0.5, "b": 0.5})})


@pytest.mark.parametrize("part", ["a", "b"])
def test_the_overlap_guard_knows_every_part(part: str, tmp_path: Path) -> None:
    config = run_config(tmp_path, tmp_path / f"{part}.txt")
    with pytest.raises(OverlapError, match="not held out from the calibration text"):
        read_documents(config)
    (tmp_path / "other.txt").write_text(" ".join(f"v{index}" for index in range(100)))
    documents = read_documents(run_config(tmp_path, tmp_path / "other.txt"))
    assert documents.calibrated_on == load_documents(config.calibration.text)
    assert list(documents.calibration) == ["a", "b"]


def test_the_identity_knows_every_parts_content_and_share(tmp_path: Path) -> None:
    def told(*shares: float) -> dict[str, Any]:
        return results.text_identity(mixture(tmp_path, dict(zip("ab", shares, strict=True))).text)

    before = told(0.5, 0.5)
    assert told(0.5, 0.5) == before
    assert told(0.4, 0.6) != before
    config = mixture(tmp_path, {"a": 0.5, "b": 0.5})
    (tmp_path / "b.txt").write_text("other words")
    assert results.text_identity(config.text) != before


def test_another_text_has_the_identity_that_it_had() -> None:
    text = results.text_identity(parse("calibration=boolq-passages").calibration.text)
    assert text.keys() == {
        "name", "source", "dataset", "subset", "split", "field", "data_files", "part", "files", "max_documents", "join",
    }  # fmt: skip


def test_boolqs_passages_in_a_mixture_are_excluded_from_its_task() -> None:
    config = parse("calibration=mixture", "evaluation.zero_shot.tasks=[boolq]")
    assert results.excluded_by(config) is not None
    assert results.passages_text(config) == config.calibration.text.parts["prose"]
    assert results.passages_text(parse("calibration=python-stdlib")) is None
