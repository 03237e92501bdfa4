"""Overlap of an evaluation text with a calibration text.

Every run records it. Three measures, from strict to loose: identical documents, shared
word 8-grams, and the TF-IDF cosine of the two most similar documents (near-copies and texts about one
thing). Documents and 8-grams are compared as words alone: Unicode form, case, white space, line ends, punctuation and
invisible characters (a byte order mark, soft hyphens) make no difference. The building blocks also split BoolQ's
passages by article, see :mod:`larosa.data.texts`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from larosa.errors import LarosaError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NGRAM = 8
"""Words in an n-gram: long enough that two texts rarely share one by chance."""
MAX_PAIRS = 25_000_000
"""Pairs of documents up to which cosines are computed: up to some 20 seconds."""
MAX_SHARE = 0.05
"""The fraction of common 8-grams from which a text is not held out. In the data wheel, two different texts have at most
0.002 % in common, two halves of one text at most 1.3 %, and those of HellaSwag, whose contexts repeat, 6.5 %."""
FEW = 50
"""Common 8-grams below which a text is too short for MAX_SHARE: then half of it must be common."""
_ROWS = 512
_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_IDEOGRAM = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")
"""Scripts without spaces: each character is a word."""


class OverlapError(LarosaError):
    """An evaluation text is part of the calibration text."""


@dataclass(frozen=True)
class Overlap:
    """What a calibration text and an evaluation text have in common."""

    shared_documents: int
    """Distinct documents of at least `n` words in both, compared word by word."""
    shared_ngrams: int
    """Distinct n-grams of the evaluation text that the calibration text has too."""
    evaluation_ngrams: int
    """Distinct n-grams of the evaluation text; none crosses a document's end."""
    max_cosine: float | None
    """The largest TF-IDF cosine of any calibration with any evaluation document; None where the two texts
    have more than MAX_PAIRS pairs of documents."""
    calibration_ngrams: int = 0
    """Distinct n-grams of the calibration text."""
    n: int = NGRAM
    """Words in an n-gram."""

    def __str__(self) -> str:
        cosine = "not computed" if self.max_cosine is None else f"{self.max_cosine:.3f}"
        return (
            f"{self.shared_documents} documents and {self.shared_ngrams} of {self.evaluation_ngrams} word "
            f"{self.n}-grams in common, largest cosine {cosine}"
        )

    @property
    def share(self) -> float:
        """The fraction of the evaluation text's n-grams that the calibration text has too."""
        return self.shared_ngrams / self.evaluation_ngrams if self.evaluation_ngrams else 0.0

    @property
    def held_out(self) -> bool:
        """Whether no document and few n-grams of either text are common."""
        lengths = [count for count in (self.evaluation_ngrams, self.calibration_ngrams) if count]
        most = min((min(max(MAX_SHARE * count, FEW), count / 2) for count in lengths), default=1.0)
        return self.shared_documents == 0 and self.shared_ngrams < most


def require_disjoint(shared: Overlap, name: str) -> None:
    """Raise OverlapError if the evaluation text `name` is not held out from the calibration text."""
    if shared.held_out:
        return
    raise OverlapError(
        f"the evaluation text {name} is not held out from the calibration text: {shared.shared_documents} documents "
        f"and {shared.shared_ngrams} word {shared.n}-grams are in both, of {shared.evaluation_ngrams} of the "
        f"evaluation text and {shared.calibration_ngrams} of the calibration text (allowed: no document, less than "
        f"{100 * MAX_SHARE:g} % of either text's {shared.n}-grams). Choose another text or another calibration"
    )


def overlap(calibration: Sequence[str], evaluation: Sequence[str], cosine: bool = True) -> Overlap:
    """Compare two texts, both given as whole documents. `cosine=False` skips the cosines, which take longest."""
    calibration, evaluation = [_words(d) for d in calibration], [_words(d) for d in evaluation]
    hashes, owners = hash_ngrams([*calibration, *evaluation], NGRAM)
    of_evaluation = owners >= len(calibration)
    wanted, held = np.unique(hashes[of_evaluation]), np.unique(hashes[~of_evaluation])
    return Overlap(
        shared_documents=len(_long(calibration) & _long(evaluation)),
        shared_ngrams=int(np.isin(wanted, held).sum()),
        evaluation_ngrams=len(wanted),
        max_cosine=_max_cosine(calibration, evaluation) if cosine else None,
        calibration_ngrams=len(held),
    )


def hash_ngrams(documents: Iterable[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every n-gram of lower-cased alphanumeric words, document by document.

    Returns two arrays with one entry per n-gram: its 64-bit hash, comparable within this call only, and the
    index of its document. Two different n-grams collide with probability of about 2^-64.
    """
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    lengths: list[int] = []
    for document in documents:
        document_words = _WORD.findall(document.lower())
        words += [vocabulary.setdefault(word, len(vocabulary)) for word in document_words]
        lengths.append(len(document_words))
    random = np.random.default_rng(0).integers(2**64, size=len(vocabulary) + 1, dtype=np.uint64)
    values = random[np.asarray(words, dtype=np.int64)]
    owners = np.repeat(np.arange(len(lengths)), np.asarray(lengths, dtype=np.int64))
    count = max(len(words) - n + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * (random[-1] | np.uint64(1)) + values[offset : offset + count]
    inside = owners[:count] == owners[n - 1 : n - 1 + count]
    return hashes[inside], owners[:count][inside]


def largest_products(left: csr_matrix, right: csr_matrix) -> NDArray[np.float64]:
    """For each row of `left`, [A, F] sparse, its largest product with a row of `right`, [B, F] sparse: [A].

    Both hold no negative value. Taken in pieces, so that memory stays at some hundred rows times B.
    """
    pieces = (left[start : start + _ROWS] @ right.T for start in range(0, left.shape[0], _ROWS))
    maxima = [piece.max(axis=1).toarray().ravel() for piece in pieces]
    return np.concatenate([np.zeros(0), *maxima])


def tfidf(documents: Sequence[str]) -> csr_matrix:
    """Rows of unit length, [documents, words] sparse, in English without stop words.

    Raises ValueError if no document has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # not where tasks are scored from recorded requests

    return TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(documents)


def _words(document: str) -> str:
    """The document's words between single spaces, however it was written."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", document.casefold()))
    return " ".join(_WORD.findall(_IDEOGRAM.sub(r" \1 ", text)))


def _long(documents: Sequence[str]) -> set[str]:
    return {document for document in documents if document.count(" ") >= NGRAM - 1}


def _max_cosine(calibration: Sequence[str], evaluation: Sequence[str]) -> float | None:
    if len(calibration) * len(evaluation) > MAX_PAIRS:
        return None
    if not (calibration and evaluation):
        return 0.0
    try:
        rows = tfidf([*calibration, *evaluation])
    except ValueError:  # scikit-learn's way to say that there is no word to compare
        return 0.0
    cosines = largest_products(rows[: len(calibration)], rows[len(calibration) :])
    return min(float(cosines.max(initial=0.0)), 1.0)  # equal documents come out a rounding above 1
