"""Overlap of two texts: what is shared is found, what is not is not, and big texts stay cheap."""

import time

import numpy as np
import pytest

from larosa.calibration import overlap as module
from larosa.calibration.overlap import hash_ngrams, largest_products, overlap, tfidf

TEN = "one two three four five six seven eight nine ten"


def test_disjoint_texts_share_nothing() -> None:
    found = overlap(["red apples grow on old trees near the quiet village pond"], [TEN])
    assert (found.shared_documents, found.shared_ngrams, found.evaluation_ngrams) == (0, 0, 3)
    assert found.share == 0.0
    assert found.max_cosine == 0.0


def test_a_document_is_recognised_in_other_case_and_spacing() -> None:
    found = overlap(["Something else", TEN.upper().replace(" ", "\n ")], [TEN])
    assert found.shared_documents == 1
    assert found.share == 1.0
    assert found.max_cosine == 1.0


def test_blank_rows_are_no_shared_documents() -> None:
    assert overlap(["", " \n", "abc"], ["", "xyz"]).shared_documents == 0


@pytest.mark.parametrize(("words", "shared"), [(7, 0), (8, 1), (9, 2)])
def test_ngrams_have_eight_words_and_ignore_punctuation(words: int, shared: int) -> None:
    copied = ", ".join(TEN.split()[:words])
    assert overlap([f"before {copied} after"], [TEN]).shared_ngrams == shared


def test_no_ngram_crosses_the_end_of_a_document() -> None:
    found = overlap(["one two three four", "five six seven eight"], [TEN])
    assert found.shared_ngrams == 0
    assert found.evaluation_ngrams == 3
    assert overlap([], ["one two three four", "five six seven eight"]).evaluation_ngrams == 0


def test_repeated_ngrams_count_once() -> None:
    found = overlap([TEN], [TEN, TEN])
    assert (found.shared_ngrams, found.evaluation_ngrams) == (3, 3)


@pytest.mark.parametrize(("calibration", "evaluation"), [([], []), ([""], ["..."]), (["a"], [])])
def test_nothing_to_compare(calibration: list[str], evaluation: list[str]) -> None:
    found = overlap(calibration, evaluation)
    assert (found.share, found.max_cosine) == (0.0, 0.0)


def test_hashed_ngrams_agree_with_sets_of_words() -> None:
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(list("abcd"), size=size)) for size in (0, 2, 3, 40, 300)]
    codes, owners = hash_ngrams(documents, 3)
    plain = []
    for index, document in enumerate(documents):
        words = document.split()
        plain += [(index, tuple(words[k : k + 3])) for k in range(len(words) - 2)]
    assert owners.tolist() == [index for index, _ in plain]
    assert len(set(codes.tolist())) == len({ngram for _, ngram in plain})
    assert len(set(zip(codes.tolist(), [ngram for _, ngram in plain], strict=True))) == len(set(codes.tolist()))


def test_cosine_is_the_largest_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = ["cats purr", "dogs bark loudly", "birds sing songs"]
    evaluation = ["fish swim", "dogs bark", "cars honk", "cats sleep"]
    rows = tfidf([*calibration, *evaluation]).toarray()
    expected = (rows[:3] @ rows[3:].T).max()
    assert 0.5 < expected < 1.0
    monkeypatch.setattr(module, "_ROWS", 2)  # in more than one piece
    assert overlap(calibration, evaluation).max_cosine == pytest.approx(expected, abs=1e-12)


def test_largest_products_row_by_row() -> None:
    rows = tfidf(["cats purr", "dogs bark", "cats purr dogs", "fish"])
    assert largest_products(rows[:3], rows[3:]).tolist() == [0.0, 0.0, 0.0]
    assert largest_products(rows[:2], rows[2:]).argmax() == 0
    assert largest_products(rows[:0], rows).shape == (0,)


def test_cosines_are_left_out_for_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3)
    assert overlap(["a cat", "a dog"], ["a cat", "a dog"]).max_cosine is None
    assert overlap(["a cat"], ["a cat", "a dog"]).max_cosine is not None


@pytest.mark.slow
def test_a_text_as_long_as_wikitext_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    words = np.array([f"w{index}" for index in range(50_000)])
    rows = [" ".join(words[generator.zipf(1.2, size=55) % 50_000]) for _ in range(36_718 + 4_358)]
    start = time.perf_counter()
    found = overlap(rows[:36_718], rows[36_718:])
    assert time.perf_counter() - start < 20
    assert found.max_cosine is None
    assert found.evaluation_ngrams > 200_000
