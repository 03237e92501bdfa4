"""One session for many runs of a process: a sweep on one model reads its texts and loads it once.

Runs whose model, calibration, texts, block length and seed are equal share the session, as long as the files behind
them are unchanged. Another session takes its place, and the memory of the old one is given back first.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa import models
from larosa.calibration.calibrator import Calibrator
from larosa.config.run import RunConfig
from larosa.config.texts import parts_of
from larosa.data.mixture import calibration_tokens
from larosa.data.overlap import Overlap, overlap, require_disjoint
from larosa.data.texts import load_documents, load_parts
from larosa.data.tokens import TokenBlock, check_ids, evaluation_block
from larosa.evaluation import parity
from larosa.evaluation.tasks.zero_shot import check_reader
from larosa.experiment import results
from larosa.experiment.provenance import Stages
from larosa.experiment.results import text_identity
from larosa.models.sources import fingerprint
from larosa.records.disk import digest

log = logging.getLogger(__name__)

CHECK_TOKENS = 128


@dataclass(frozen=True)
class Documents:
    """The texts of a run, whole."""

    calibration: dict[str, list[str]]
    """By name of the text, or of the parts of a mixture."""
    held_out: dict[str, list[str]]
    overlaps: dict[str, Overlap]
    stages: dict[str, dict[str, float]]

    @property
    def calibrated_on(self) -> list[str]:
        """The calibration documents, of all parts."""
        return [document for part in self.calibration.values() for document in part]


@dataclass(frozen=True)
class Session:
    """What all runs are measured on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: TokenBlock
    texts: dict[str, TokenBlock]
    overlaps: dict[str, Overlap]
    calibrator: Calibrator
    dense: parity.DenseReference
    passages: list[str]
    """Of BoolQ, in the calibration text: the task excludes what is asked about them."""
    stages: dict[str, dict[str, float]]


def read_documents(config: RunConfig) -> Documents:
    """All texts of the run, and the evidence that calibration and evaluation are disjoint."""
    stages = Stages()
    with stages("texts"):
        calibration = load_parts(config.calibration.text)
        held_out = {name: load_documents(text) for name, text in config.texts.items()}
        documents = Documents(calibration, held_out, {}, {})
        overlaps = {name: overlap(documents.calibrated_on, held_out[name]) for name in held_out}
    for name, shared in overlaps.items():
        require_disjoint(shared, name)
        log.info("%s against the calibration text: %s", name, shared)
    return replace(documents, overlaps=overlaps, stages=stages.record)


def open_session(config: RunConfig, documents: Documents) -> Session:
    """Tokens, then the model: what is wrong with a text is known before weights load."""
    stages, size = Stages(), config.evaluation.perplexity
    with stages("tokenise"):
        tokenizer = models.load_tokenizer(config.model)
        longest = models.model_config(config.model).max_position_embeddings
        check_reader(config.evaluation.zero_shot, config.seed, results.excluded_by(config), tokenizer, longest)
        calibration = calibration_tokens(documents.calibration, tokenizer, config.calibration, config.seed)
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
        dense = parity.reference(model, calibration.ids[:1, :CHECK_TOKENS])
    record = documents.stages | stages.record
    of_boolq = [name for name, text in parts_of(config.calibration.text).items() if text.dataset == "boolq-passages"]
    passages = [passage for name in of_boolq for passage in documents.calibration[name]]
    return Session(model, tokenizer, calibration, texts, documents.overlaps, calibrator, dense, passages, record)


def session_settings(config: RunConfig) -> dict[str, Any]:
    """What decides a session, JSON-able."""
    kept = {"model", "calibration", "texts", "seed"}
    texts = [text_identity(text) for text in (config.calibration.text, *config.texts.values())]
    shared = {"size": config.evaluation.perplexity.model_dump(), "weights": fingerprint(config.model), "behind": texts}
    return config.model_dump(mode="json", include=kept) | shared


class Sessions:
    """The last session that was opened."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._session: Session | None = None

    def open(self, config: RunConfig) -> Session:
        """The session of `config`. Raises LarosaError where texts or weights cannot be had."""
        tasks = config.evaluation.zero_shot.model_dump(mode="json")  # checked against the session's tokenizer
        key = digest(session_settings(config) | {"tasks": tasks})
        if self._session is None or self._key != key:
            self.clear()
            self._session, self._key = open_session(config, read_documents(config)), key
        return self._session

    def clear(self) -> None:
        """Give the session's memory back, as after a failure: what it left behind does not reach another run."""
        self._key = self._session = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
