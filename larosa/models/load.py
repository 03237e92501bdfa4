"""Load the language model of a run and its tokenizer.

Sources of weights are in :mod:`larosa.models.sources`.

Precision: weights are read in `model.dtype` by `from_pretrained(dtype=...)`. `model.to(dtype)` is never
used, because it would also cast the rotary frequencies, which transformers keeps in float32.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.import_utils import is_accelerate_available

from larosa.config.run import ModelConfig
from larosa.models.checkpoint import is_byte_tokenizer
from larosa.models.finite import unusable_weight
from larosa.models.precision import keep_float64
from larosa.models.sources import (
    ModelError,
    ensure_available,
    model_config,
    read_config,
    revision,
)

log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """`auto`: the first GPU if there is one, else the CPU. Raises ModelError if the device is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"model.device={name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"model.device={name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"model.device={name}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def resolve_placement(config: ModelConfig) -> torch.device:
    """The (first) device of the model. Raises ModelError for a device that is not there or an impossible map."""
    device = resolve_device(config.device)
    if config.device_map is not None and config.path is None and config.source == "random":
        raise ModelError("random weights are built on one device: set model.device_map=null")
    return device


def load_model(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The model in eval mode, frozen, in `dtype`, on `device` or spread over the GPUs by `device_map`.

    `seed` matters for random weights only: equal seeds give equal weights on the same kind of device, and
    the global random state is unchanged. Raises ModelError, wherever possible before weights are read.
    """
    device = resolve_placement(config)
    random = config.path is None and config.source == "random"
    if device.type == "cpu" and config.device_map is not None:
        log.info("model.device_map=%s: no GPU, the whole model is on the CPU", config.device_map)
        config = config.model_copy(update={"device_map": None})
    source = ensure_available(config)
    shape = model_config(config) if random else read_config(source, config)
    _refuse_too_big(config, shape, device)
    model: Any = _random(config, shape, device, seed) if random else _read(source, config, shape, device)
    model.eval()
    model.requires_grad_(False)
    loaded: PreTrainedModel = model
    return keep_float64(loaded) if config.dtype == "float64" else loaded


def _refuse_too_big(config: ModelConfig, shape: PretrainedConfig, device: torch.device) -> None:
    if device.type != "cuda":
        return
    with torch.device("meta"):
        parameters = _build(shape, getattr(torch, config.dtype)).parameters()
    needed = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    devices = [device] if config.device_map is None else range(torch.cuda.device_count())
    free = sum(_free_bytes(one) for one in devices)
    if needed > free:
        raise ModelError(
            f"{config.name} has {needed / 1e9:.1f} GB of weights in {config.dtype}, and {free / 1e9:.1f} GB "
            f"are free on {config.device_map or device}: use more GPUs (model.device_map=auto), a smaller "
            "model or dtype"
        )


def _free_bytes(device: torch.device | int) -> int:
    """Free GPU memory, with what torch holds but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _read(source: Path | str, config: ModelConfig, shape: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    placement: dict[str, Any] = {}
    if config.device_map is not None:
        placement["device_map"] = config.device_map
    elif device.type == "cuda" and is_accelerate_available():
        placement["device_map"] = {"": device}  # straight to the GPU, without a copy on the CPU
    try:
        auto: Any = AutoModelForCausalLM
        model, loading = auto.from_pretrained(
            source,
            config=shape,
            revision=revision(source, config),
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, SafetensorError) as error:
        raise ModelError(f"the weights of {config.name} cannot be read from {source}: {error}") from error
    absent = sorted(loading["missing_keys"]) + [str(key) for key in loading["mismatched_keys"]]
    if absent:
        raise ModelError(
            f"{source} lacks {len(absent)} tensors of {config.name} or has them in another shape, the first is "
            f"{absent[0]}: transformers would fill them with random numbers. Fetch the weights again"
        )
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if config.device_map is not None and places & {"cpu", "disk"}:
        raise ModelError(
            f"model.device_map={config.device_map} put layers of {config.name} on {sorted(places)}: the GPUs "
            "are too small for it, and offloaded layers are not supported. Use more GPUs or a smaller dtype"
        )
    loaded: PreTrainedModel = model if placement else model.to(device)
    _refuse_not_finite(source, config, loaded)
    return loaded


def _refuse_not_finite(source: Path | str, config: ModelConfig, model: PreTrainedModel) -> None:
    name = unusable_weight(model)
    if name is None:
        return
    advice = "the checkpoint is damaged or its training diverged: fetch it again or take another one"
    if config.dtype == "float16":
        advice = "float16 ends at 65504: try model.dtype=bfloat16 or float32, or fetch the checkpoint again"
    raise ModelError(f"the weights of {source} are not finite: {name} holds NaN or infinity. {advice}")


def _random(config: ModelConfig, shape: PretrainedConfig, device: torch.device, seed: int) -> PreTrainedModel:
    """transformers' own initialisation, then gammas in [0.5, 1.5] and biases ~ N(0, 0.02).

    Fresh models have gammas of one and biases of zero, which would hide mistakes in folding norms and in
    rotating biases.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), device:
        torch.manual_seed(seed)
        model = _build(shape, getattr(torch, config.dtype))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.02)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def _build(shape: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(shape, dtype=dtype)
    return model


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, as its tokenizer.json says; for random weights a byte tokenizer without files.

    The byte tokenizer (ByT5's, 384 ids) ends a text with `</s>` unless `add_special_tokens=False`.
    Raises ModelError.
    """
    if config.path is None and config.source == "random":
        return _byte_tokenizer(config)
    source = ensure_available(config)
    if isinstance(source, Path) and is_byte_tokenizer(source):
        return _byte_tokenizer(config)
    # Not AutoTokenizer: in transformers 5 it puts a class's own pre-tokenizer in the place of the published
    # one, which drops spaces or digit splits without a word (huggingface/transformers#45920).
    where: dict[str, Any] = {"revision": revision(source, config)}
    try:
        settings: dict[str, Any] = get_tokenizer_config(source, **where)
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(source, **where)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(f"the tokenizer of {config.name} cannot be read from {source}: {error}") from error
    # transformers 5 drops this setting; DeepSeek's distilled models have it in no other place.
    if settings.get("add_bos_token") and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True  # type: ignore[misc]  # it has a setter, hidden by __setattr__
    _refuse_longer(tokenizer, config)
    return tokenizer


def _refuse_longer(tokenizer: PreTrainedTokenizerFast, config: ModelConfig) -> None:
    """Tokens without an embedding. Added ones that no text holds (a padding token) are common and do no harm: what
    pads is replaced, and :func:`larosa.data.tokens.check_ids` looks for the others."""
    rows = model_config(config).vocab_size
    beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}
    if not beyond:
        return
    token, largest = max(beyond.items(), key=lambda item: item[1])
    needed = beyond.keys() - tokenizer.get_added_vocab().keys() | beyond.keys() & {
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.unk_token,
    }
    if needed:
        raise ModelError(
            f"the tokenizer of {config.name} has ids up to {largest} ({token!r}), the model {rows} embeddings: "
            f"expected ids below {rows}. Take the tokenizer that belongs to the model"
        )
    log.warning("%d added tokens of the tokenizer have no embedding, the last is %r (%d)", len(beyond), token, largest)
    if tokenizer.pad_token in beyond:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def _byte_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    tokenizer = ByT5Tokenizer()
    vocabulary = model_config(config).vocab_size
    if vocabulary < len(tokenizer):
        raise ModelError(
            f"model.shape.vocab_size={vocabulary}: the byte tokenizer of random models needs {len(tokenizer)}"
        )
    return tokenizer
