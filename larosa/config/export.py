"""The schema of `export`: what `larosa export` puts into its folder. A part of :mod:`larosa.config.run`."""

from __future__ import annotations

from typing import Literal

from larosa.config.base import Filename, Strict


class ExportConfig(Strict):
    """What `larosa export` writes; runs do not read it. Its folder is `output`."""

    weights: Literal["reference", "copy"]
    """The dense model. `reference`: where it comes from, with a hash of its weights. `copy`: its weights and tokenizer
    are put into the folder."""
    records: Filename
    """Folder of the records from which the model card quotes what was measured."""
