"""Command lines as people type them: what Hydra cannot read is quoted, what may mean several things is said."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from larosa.__main__ import arranged
from larosa.cli.command import read_settings
from larosa.cli.overrides import fit, settings, word
from larosa.config import keys
from larosa.config.run import ConfigError

PARSER = OverridesParser.create()
NASTY = [
    "~/models/x", "/a=b/c", "/a[1]/b", "/a(1)/b", "/a{b}", "/it's", '/"x"', "/ä/日本", "/a b  c", "/a#b", "/a&b;c!d^e`",
    "/a<b>", "C:\\models\\x", "/a:b", "2024", "1e5", "true", "[x]", "{a:b}", "/a/[b", "(x)", "/a~b", "/x'",
    "/a'b'c\\", "$HOME/x", "/a@b%c", "/a\nb", "-x", "/a?b*",
]  # fmt: skip


def value(override: str) -> object:
    return PARSER.parse_override(override).value()


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize("key", ["model.path", "output", "schedule.path", "texts.text.data_files"])
@pytest.mark.parametrize("path", NASTY)
def test_a_path_arrives_as_it_was_typed(path: str, key: str, multirun: bool) -> None:
    assert value(*fit([f"{key}={path}"], multirun)) == path


@given(st.text(st.sampled_from("ab/ ~=[](){}'\"#&;:.é日!^<>`|?*%$@-+"), min_size=1).map(lambda text: f"/{text}x"))
def test_any_path_without_commas_does(path: str) -> None:
    if re.search(r"\$\{", path):
        return  # an interpolation, which is OmegaConf's to read
    assert value(*fit([f"model.path={path}"])) == path


def test_what_hydra_reads_stays_as_it_is() -> None:
    words = ["model=tiny-llama", "sparsity=0.4", "baseline=[dense,magnitude]", "+experiment=teal", "~texts.text"]
    words += ["method.top_k={ties: keep}", "model.path='/a,b'", "model.path=null", "model.path=${oc.env:HOME}/x"]
    assert fit(words) == words
    sweep = ["sparsity=0.25,0.4", "method=larosa,teal", "texts=[lambada],[c4]", "seed=range(3)", "model.path=/a,/b"]
    assert fit(sweep, multirun=True) == sweep


def test_lists_and_sweeps_are_quoted_part_by_part() -> None:
    assert value(*fit(["texts.text.files=[~/a b.txt,c=d.txt,7]"])) == ["~/a b.txt", "c=d.txt", "7"]
    (swept,) = fit(["model.path=~/a,/b=c,/d"], multirun=True)
    assert list(PARSER.parse_override(swept).sweep_string_iterator()) == ["'~/a'", "'/b=c'", "/d"]


def test_a_comma_belongs_to_a_path_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    for multirun in (False, True):
        assert value(*fit([f"model.path={folder}"], multirun)) == str(folder)


@pytest.mark.parametrize(
    "given", ["model.path=/a,b", "output=a=b,c", "calibration.text.files=x,y", "sparsity=(", "baseline=dense,cats"]
)
def test_what_is_left_says_what_to_paste(given: str) -> None:
    """The words between the quotes of a shell give overrides that can be read."""
    with pytest.raises(ConfigError) as refused:
        fit([given])
    message = str(refused.value)
    assert given in message
    for pasted in re.findall(r'type (".*?")(?:;|$)', message):
        (typed,) = shlex.split(pasted)
        assert fit([typed]) == [typed]
        assert value(typed) is not None
    assert "type" in message or "brackets" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("modle=tiny-llama", "did you mean model"),
        ("sparcity=0.3", "did you mean sparsity"),
        ("dtype=bfloat16", "did you mean model.dtype?"),
        ("path=/x", "did you mean model.path or schedule.path"),
        ("method.bases=pca", "did you mean method.basis"),
        ("+method.bases=pca", "did you mean method.basis"),
        ("model.shape.num_hiden_layers=2", "did you mean model.shape.num_hidden_layers"),
        ("+model.shape.num_hiden_layers=2", "did you mean num_hidden_layers"),
        ("texts.boolq-heldout.feild=x", "did you mean texts.boolq-heldout.field"),
        ("texts.lambada.max_documents=3", "choose it first, texts=lambada"),
        ("evaluation.speed.repeats=3", "there is no evaluation.speed in this run"),
        ("method=larosa/papr", "method=larosa/papr: no such choice; did you mean larosa/paper"),
        ("baseline=[dense,megnitude]", "did you mean magnitude"),
        ("model=LLAMA2-7b", "did you mean llama2-7b"),
        ("model=~/models/x", "\"model.path='~/models/x'\""),
        ("model=7", "model=7: no such choice"),
        ("model=null", "a group takes one of its choices"),
        ("experiment=teal", r"type \+experiment=NAME"),
        ("+sparsity=0.3", r"sparsity is set already"),
        ("+model=tiny-llama", r"model is set already"),
        ("schedule=file", "schedule.path must be given"),
        ("sparsity=${foo}", "sparsity: Interpolation key 'foo' not found"),
        ("sparsity", "expected sparsity=VALUE"),
        ("sparcity", "expected sparsity=VALUE"),
        ("=3", "no setting"),
        ("sparsity=", "sparsity: .*number"),
        ("output=", "output: .*at least 1 character"),
        ("output=~no-such-user/x", "~no-such-user is no user's home folder"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_what_was_meant(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read_settings([given])
    assert "To append to your config" not in str(refused.value)
    assert "search path" not in str(refused.value)


def test_home_is_expanded_wherever_a_path_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read_settings(
        [
            "model.path=~/m", "output=~/o", "schedule=file", "schedule.path=~/s.json", "calibration=text", "texts=text",
            "calibration.text.files=[~/a.txt,~]", "texts.text.files=~/b.txt", "texts.text.data_files=~/*.jsonl",
            "texts.text.dataset=~/d", "evaluation.zero_shot.requests=~/r.gz",
        ]
    )  # fmt: skip
    text = config.texts["text"]
    found = [config.model.path, config.output, config.schedule.path, *config.calibration.text.files, *text.files]
    found += [text.data_files, text.dataset, config.evaluation.zero_shot.requests]
    home = ["m", "o", "s.json", "a.txt", "", "b.txt", "*.jsonl", "d", "r.gz"]
    assert found == [str(tmp_path / name) for name in home]


def test_every_path_of_the_schema_is_known_as_one() -> None:
    """A new setting that is a path takes the type of one."""
    named = {name for name in settings() if re.search(r"(path|files?|output|requests)$", name)}
    for name in named:
        assert keys.is_text(settings()[name]) or keys.is_texts(settings()[name]), name
    assert {"model.path", "output", "texts.*.files", "calibration.text.data_files"} <= named


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a.b=1 -m sparsity=0.3,0.4", "-m a.b=1 sparsity=0.3,0.4"),
        ("sparsity=0.3 --cfg job seed=1", "--cfg job sparsity=0.3 seed=1"),
        ("seed=1 --config-name table02 --config-dir sweeps -m", "--config-name table02 --config-dir sweeps -m seed=1"),
        ("--cfg=job seed=1", "--cfg=job seed=1"),
        ("--help sparsity=0.3", "--help sparsity=0.3"),
    ],
)
def test_flags_may_stand_anywhere(typed: str, expected: str) -> None:
    assert arranged(typed.split()) == expected.split()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--cgf job", "unrecognized arguments: --cgf"),
        ("-m --cfg job", "exclude each other"),
        ("--info nothing", "invalid choice"),
        ("--config-dir nowhere", "no such folder"),
        ("--config-dir sweeps --config-name tabel02", "did you mean table02"),
    ],
)
def test_wrong_flags_are_named(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arranged(typed.split())


def test_settings_that_come_with_larosa_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, folder, *_ = arranged(["--config-dir", "sweeps", "--config-name", "table02"])
    assert os.path.isfile(f"{folder}/table02.yaml")
    packed = read_settings(["schedule=file", "schedule.path=output-0.5"]).schedule.path
    assert Path(str(packed)).is_file()
    own = tmp_path / "schedules" / "smollm2-135m" / "output-0.5.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert read_settings(["schedule=file", "schedule.path=output-0.5"]).schedule.path == str(own.relative_to(tmp_path))
    assert read_settings(["schedule.path=output-0.4"]).schedule.path == "schedules/smollm2-135m/output-0.4.json"


def test_python_values_become_overrides() -> None:
    given = {"a": None, "b": True, "c": 0.25, "d": ["x y", "p=q", 3], "e": "text"}
    found = [word(key, own) for key, own in given.items()]
    assert found == ["a=null", "b=true", "c=0.25", "d=[x y,'p=q',3]", "e=text"]
