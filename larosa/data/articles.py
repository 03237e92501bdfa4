"""Which passages of BoolQ come from one article: for splitting them, and for leaving out what was calibrated on.

BoolQ names no article, so links are read off the texts: a shared word 8-gram, a TF-IDF cosine of at least MAX_COSINE,
or SUBJECT_WORDS rare words common to the questions of the passages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from larosa.data.overlap import NGRAM, hash_ngrams, largest_products, tfidf

MAX_COSINE = 0.15
"""TF-IDF cosine from which two BoolQ passages count as one article's.

Each held-out passage's nearest calibration passage was read in samples. At 0.2 to 0.3 about 12 of 40 are one
article or one subject (Mamma Mia!, body temperature, chess, muscle fibres). From 0.15 to 0.2 about 3 of 40:
the Mariana Trench (0.168), Pirates of the Caribbean (0.178), tied baseball games (0.184); the others are only
alike, such as mahi-mahi and dolphins (0.179). Just below, of the 70 nearest pairs that stay (0.142 to
0.149), three or four still are: Furious 7 (0.149), In-N-Out Burger (0.145), Grey's Anatomy (0.145).
"""
SUBJECT_WORDS = 2
"""So many rare words in common make two passages' questions ask about one thing. This catches what cosines
miss: How I Met Your Mother (0.100), the Amazon rainforest (0.061), other pairs on Grey's Anatomy (0.008). One
word would take hydraulic lime for hydraulic fluid, so two passages on roulette (0.075) stay: few such remain.
"""
RARE = 20
"""A question's word is rare if the questions of at most so many passages have it."""


def split_by_article(passages: Sequence[str], questions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split passages, [n] with their questions, [n], into a calibration side and a held-out side.

    A passage's side is a bit of its SHA-256, and the held-out side then loses every passage that is linked to one of
    the calibration side.
    """
    kept = np.array([hashlib.sha256(passage.encode()).digest()[0] % 2 == 0 for passage in passages], dtype=bool)
    heldout = np.flatnonzero(~kept & ~linked(passages, questions, kept))
    return [passages[i] for i in np.flatnonzero(kept).tolist()], [passages[i] for i in heldout.tolist()]


def linked(passages: Sequence[str], questions: Sequence[str], used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n] of the passages, [n] with their questions, [n], that are not `used`, [n], but linked to one that is."""
    from sklearn.feature_extraction.text import CountVectorizer

    other = np.flatnonzero(~used)
    hashes, owners = hash_ngrams(passages, NGRAM)
    copied = np.isin(other, owners[np.isin(hashes, hashes[used[owners]])])
    rows = tfidf(passages)
    near = largest_products(rows[other], rows[used]) >= MAX_COSINE
    words = CountVectorizer(binary=True, stop_words="english", max_df=RARE).fit_transform(questions)
    on_subject = largest_products(words[other], words[used]) >= SUBJECT_WORDS
    is_linked = np.zeros(len(passages), dtype=bool)
    is_linked[other[copied | near | on_subject]] = True
    return is_linked


def related(passages: Sequence[str], questions: Sequence[str], calibration: Sequence[str]) -> NDArray[np.bool_]:
    """[n] of the rows, [n] passages each with one question, whose article is in the calibration text's documents.

    Passages come once for every question, and SuperGLUE puts `title -- ` in front of them.
    """
    known, distinct = set(calibration), list(dict.fromkeys(passages))
    gathered: dict[str, list[str]] = {passage: [] for passage in distinct}
    for passage, question in zip(passages, questions, strict=True):
        gathered[passage].append(question)
    used = np.array([_is_known(passage, known) for passage in distinct], dtype=bool)
    if not used.any():
        return np.zeros(len(passages), dtype=bool)
    lost = used | linked(distinct, [" ".join(gathered[passage]) for passage in distinct], used)
    position = {passage: bool(gone) for passage, gone in zip(distinct, lost, strict=True)}
    return np.array([position[passage] for passage in passages], dtype=bool)


def _is_known(passage: str, known: set[str]) -> bool:
    parts = passage.split(" -- ")
    return any(" -- ".join(parts[start:]) in known for start in range(len(parts)))
