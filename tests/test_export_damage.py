"""What is no intact export does not load: damage, newer formats, other dense models, kills, readers without larosa."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer, PreTrainedModel

import larosa
from conftest import ROOT, build_model
from larosa.exports import folder as folders
from larosa.exports.folder import MANIFEST, PLAN, TENSORS, written
from larosa.records import checksum


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A sparse model and its export."""
    tokens = torch.randint(2, 384, (4, 32), generator=torch.Generator().manual_seed(1))
    model = build_model("llama", torch.float32)
    larosa.sparsify(model, tokens, sparsity=0.4, method="larosa/paper", settings={"method.selector": "threshold"})
    folder = tmp_path_factory.mktemp("made") / "export"
    return model, larosa.export(model, folder, weights="copy", tokenizer=ByT5Tokenizer())


@pytest.fixture
def copied(made: tuple[PreTrainedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the export, to be damaged."""
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(made[1], tmp_path / "export"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sealed_again(folder: Path, change: Callable[[dict[str, Any]], None] = lambda tree: None) -> None:
    """Write a manifest that fits the files as they are now, as somebody who means to mislead would."""
    tree = checksum.opened(json.loads((folder / MANIFEST).read_text()))
    tree["files"] = {name: folders.file_sha256(folder / name) for name in tree["files"] if (folder / name).exists()}
    change(tree)
    (folder / MANIFEST).write_bytes(folders._text(checksum.sealed(tree)))


def changed_plan(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((folder / PLAN).read_text())
    change(tree)
    (folder / PLAN).write_text(json.dumps(tree))
    sealed_again(folder)


def test_any_changed_byte_of_any_file_is_found(copied: Path) -> None:
    for path in files_of(copied):
        content = path.read_bytes()
        step = max(1, len(content) // (40 if path.name == MANIFEST else 3))
        for at in [*range(0, len(content), step), len(content) - 1]:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(larosa.ExportError, match=r"is damaged \(|in format"):
                larosa.load(copied)
        for other in (content[:-1], content + b"\n"):
            path.write_bytes(other)
            with pytest.raises(larosa.ExportError, match=f"is damaged .*{path.name} was changed"):
                larosa.load_tokenizer(copied)
        path.write_bytes(content)
    larosa.load(copied, device="cpu")


def test_a_missing_or_added_file_is_named(copied: Path) -> None:
    for path in files_of(copied):
        path.rename(copied.parent / "away")
        message = f"no {MANIFEST}" if path.name == MANIFEST else f"{path.name} is missing"
        with pytest.raises(larosa.ExportError, match=message):
            larosa.load(copied)
        (copied.parent / "away").rename(path)
    (copied / "dense" / "adapter_config.json").write_text("{}")
    with pytest.raises(larosa.ExportError, match=r"dense/adapter_config\.json does not belong there"):
        larosa.load(copied)


def test_what_is_no_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(larosa.ExportError, match="no such folder"):
        larosa.load(tmp_path / "nothing")
    with pytest.raises(larosa.ExportError, match="is no export"):
        larosa.load(tmp_path)


def test_a_newer_format_asks_for_a_newer_larosa(copied: Path) -> None:
    sealed_again(copied, lambda tree: tree.update(format=2, larosa="9.0"))
    with pytest.raises(larosa.ExportError, match=r"larosa 9\.0 in format 2.*install a newer larosa"):
        larosa.load(copied)


@pytest.mark.parametrize("name", ["../plan.json", "/etc/hostname", "plan/../../a", "a\\..\\b", "./plan/plan.json"])
def test_paths_stay_in_the_folder(name: str, copied: Path) -> None:
    sealed_again(copied, lambda tree: tree["files"].update({name: "0" * 64}))
    with pytest.raises(larosa.ExportError, match="is damaged"):
        larosa.load(copied)


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "selector top_k and thresholds": lambda plan: plan["method"].update(selector="top_k"),
    "selector threshold and thresholds none": lambda plan: plan.update(thresholds=None),
    "selector threshold and": lambda plan: plan.update(calibrated_in="another basis"),
    "kept channels": lambda plan: plan["levels"]["kept"].update(h1=[49] * 5),
    "levels per layer": lambda plan: plan["levels"]["level"].update(h1=[0.4]),
    "levels per site": lambda plan: plan["levels"]["kept"].pop("h4"),
    "form absorbed, rotation": lambda plan: plan.update(rotation=None),
    "rotations per layer": lambda plan: plan.update(rotation=[[0, 0]]),
    "transforms": lambda plan: plan.update(blocks=[1, 48]),
    "low-rank pairs": lambda plan: plan.update(low_rank={}),
    r"plan\.method\..*form": lambda plan: plan["method"].update(form="plain"),
    r"plan\.more: unknown key": lambda plan: plan.update(more=1),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_parts_that_do_not_go_together_are_refused(message: str, copied: Path) -> None:
    changed_plan(copied, lambda tree: CONTRADICTIONS[message](tree["plan"]))
    with pytest.raises(larosa.ExportError, match=message):
        larosa.load(copied)


def test_tensors_of_another_name_shape_or_type_are_refused(copied: Path) -> None:
    held = load_file(copied / TENSORS)
    for change in (
        {"rotation": held["rotation"][:2]},
        {"rotation": held["rotation"].float()},
        {"thresholds.h1": held["thresholds.h1"][:-1].contiguous()},
        {"more": torch.zeros(1)},
    ):
        save_file(held | change, copied / TENSORS)
        sealed_again(copied)
        with pytest.raises(larosa.ExportError, match=rf"tensor {next(iter(change))} is"):
            larosa.load(copied)
    (copied / TENSORS).write_bytes(b"no tensors")
    sealed_again(copied)
    with pytest.raises(larosa.ExportError, match="cannot be read as safetensors"):
        larosa.load(copied)


def test_another_dense_model_is_refused(copied: Path, tmp_path: Path) -> None:
    """Also one that the manifest vouches for: the hash of the weights and the configuration are the plan's."""
    changed_plan(copied, lambda tree: tree["base"].update(weights="reference"))
    for more, message in (
        ({"seed": 1}, "weights have another hash"),
        ({"rms_norm_eps": 1e-3}, r"rms_norm_eps is 0\.001, expected 1e-06"),
        ({"hidden_size": 96}, "hidden_size is 96, expected 48"),
    ):
        other = build_model("llama", torch.float32, **more)
        other.save_pretrained(tmp_path / "other")
        ByT5Tokenizer().save_pretrained(tmp_path / "other")
        with pytest.raises(larosa.ExportError, match=message):
            larosa.load(copied, base=tmp_path / "other")
    larosa.load(copied, base=copied / "dense", device="cpu")
    changed_plan(copied, lambda tree: tree["base"].update(weights="copy"))
    with pytest.raises(larosa.ExportError, match="leave out base="):
        larosa.load(copied, base=tmp_path / "other")


def test_what_stands_there_is_not_replaced(made: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    model, first = made
    settings: dict[str, Any] = {"weights": "copy", "tokenizer": ByT5Tokenizer()}
    with pytest.raises(larosa.ExportError, match="force=true replaces it"):
        larosa.export(model, first, **settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, message in (("mine", "no export, so it is not replaced"), ("file", "is no folder")):
        with pytest.raises(larosa.ExportError, match=message):
            larosa.export(model, tmp_path / name, force=True, **settings)
    (tmp_path / "empty").mkdir()
    folder = larosa.export(model, tmp_path / "empty", **settings)
    assert larosa.export(model, folder, force=True, **settings) == folder
    larosa.load(folder, device="cpu")


def test_a_full_disk_is_named_before_anything_is_copied(
    made: tuple[PreTrainedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(larosa.ExportError, match=r"0\.00 GB are free"):
        larosa.export(made[0], tmp_path / "a", weights="copy", tokenizer=ByT5Tokenizer())
    assert not list(tmp_path.glob("a*"))
    assert not list(tmp_path.glob(".a.export*"))


KILLS = ("larosa.exports.write.copy_into", "larosa.exports.folder._seal", "larosa.exports.folder._put")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_leaves_nothing_that_loads(
    moment: str, after: bool, made: tuple[PreTrainedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = moment.rpartition(".")
    real = getattr(sys.modules[module], name)

    def killed(*given: Any) -> None:
        if after:
            real(*given)
        os.kill(os.getpid(), signal.SIGKILL)

    target, settings = tmp_path / "export", {"weights": "copy", "tokenizer": ByT5Tokenizer()}
    child = os.fork()
    if not child:
        monkeypatch.setattr(sys.modules[module], name, killed)
        torch.set_num_threads(1)
        larosa.export(made[0], target, **settings)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if name == "_put" and after:  # it was complete by then
        larosa.load(target, device="cpu")
        return
    with pytest.raises(larosa.ExportError, match="no such folder"):
        larosa.load(target)
    (left,) = tmp_path.glob(".export.export-*")
    if name != "_put" and not after:
        with pytest.raises(larosa.ExportError, match="is no export"):
            larosa.load(left)
    larosa.export(made[0], target, **settings)  # it takes the leftovers away
    larosa.load(target, device="cpu")
    assert not list(tmp_path.glob(".export.export-*"))


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with written(tmp_path / "a", False) as scratch:
            (scratch / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


READER = """
import sys
first, folder = sys.argv[1:]
blocked = first == "without"
if blocked:
    sys.modules["larosa"] = None
elif first == "larosa":
    import larosa
    assert "transformers" not in sys.modules and "torch" not in sys.modules
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
if blocked:
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM):
        for more in ({}, {"ignore_mismatched_sizes": True}):
            try:
                found = auto.from_pretrained(folder, **more)
            except (ValueError, OSError) as error:
                print(type(error).__name__, str(error)[:80])
            else:
                sys.exit(f"{auto.__name__} loaded {type(found)}")
    del sys.modules["larosa"]
import larosa
model = AutoModelForCausalLM.from_pretrained(folder)
assert type(model) is LlamaForCausalLM
assert larosa.handle_of(model).plan.method.preset == "larosa/paper"
assert AutoTokenizer.from_pretrained(folder)("a").input_ids
try:
    LlamaForCausalLM.from_pretrained(folder)
except larosa.ExportError as error:
    assert "larosa.load(FOLDER)" in str(error)
else:
    sys.exit("LlamaForCausalLM took the export")
"""


@pytest.mark.parametrize("first", ["without", "larosa"])
def test_readers_with_and_without_larosa(first: str, made: tuple[PreTrainedModel, Path]) -> None:
    """In whichever order larosa and transformers are imported; without larosa no class gives a model."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    done = subprocess.run(
        [sys.executable, "-c", READER, first, str(made[1])],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_name_at_the_top_is_one_of_weights(made: tuple[PreTrainedModel, Path]) -> None:
    """Converters and servers look there for safetensors, GGUF and pickles."""
    top = sorted(path.name for path in made[1].iterdir())
    assert top == ["README.md", "config.json", "dense", "larosa-export.json", "plan"]
