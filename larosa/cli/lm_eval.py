"""The sparse model as a model of lm-eval, behind lm-eval's own command line.

    larosa eval --model larosa --tasks arc_easy,hellaswag --batch_size 8 \\
        --model_args pretrained=smollm2-135m,sparsity=0.4,method=larosa/block_diagonal,calibration=wikitext2

`pretrained` is a choice of conf/model; `sparsity`, `method` and any other setting of `larosa run` (groups, and
dotted keys such as `model.path` or `method.selector`) follow as it takes them. Or `pretrained` is the folder of an
export (docs/export.md), which is sparse already; then only `base` may follow. Batches, lengths, prompts, examples,
output and logging are lm-eval's; `larosa eval run --help` lists its options. Models load as `larosa run` loads them, so
there is no remote code. The checks are the same too: level-0 logits against the dense model's, finite logits in every
batch, no task about what was calibrated on.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa import models
from larosa.cli.command import calibration_only, fail, read_settings
from larosa.cli.overrides import word
from larosa.commands import asks_for_help, help_of, typed
from larosa.config.run import ConfigError, RunConfig, TokenPolicyConfig
from larosa.data.overlap import overlap, require_disjoint
from larosa.data.texts import load_documents
from larosa.errors import LarosaError
from larosa.evaluation.tasks.wrapper import callable_of
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.session import open_session, read_documents
from larosa.exports.folder import is_export
from larosa.exports.load import load, load_tokenizer
from larosa.exports.load import read as exported
from larosa.sparsity.handle import handle_of

log = logging.getLogger(__name__)


def settings_of(pretrained: str, device: str | None = None, **settings: Any) -> RunConfig:
    """The run that `--model_args` describe, without baselines and evaluation texts. Raises ConfigError."""
    if not pretrained:
        raise ConfigError("--model_args pretrained=NAME is needed, a choice of conf/model")
    if "model" in settings:
        raise ConfigError("pretrained=NAME chooses the model; leave out model=")
    if "calibration" not in settings:
        raise ConfigError("calibration=NAME is needed, a choice of conf/calibration whose text no task asks about")
    overrides = [word("model", pretrained), "baseline=[]", "texts=none", "evaluation.zero_shot.tasks=[]"]
    if device and (torch.cuda.is_available() or not device.startswith("cuda")):  # lm-eval asks for cuda:0 unasked
        overrides.append(word("model.device", device))
    config = read_settings([*overrides, *(word(key, value) for key, value in settings.items())])
    if config.evaluation.float32_matmul != "highest":
        raise ConfigError("evaluation.float32_matmul=tf32 is for `larosa run`: lm-eval scores in the model's own dtype")
    return calibration_only(config)


def _check(policy: TokenPolicyConfig, batch_size: int | str) -> None:
    """What `larosa run` refuses when it knows that tasks are scored. Raises ConfigError."""
    if policy.kind == "decode_only":
        raise ConfigError("token_policy=decode_only would score the dense model: likelihoods need no generated token")
    if policy.kind == "last_fraction" and str(batch_size) != "1":
        raise ConfigError("token_policy=last_fraction needs --batch_size 1: padding would count as tokens")


@register_model("larosa")
class SparseLM(HFLM):  # type: ignore[misc]
    """lm-eval's wrapper around a model that `larosa` made sparse; log-probabilities in float32 at least."""

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        if is_export(Path(pretrained).expanduser()):
            model, tokenizer = self._load(Path(pretrained).expanduser(), device, batch_size, settings)
        else:
            model, tokenizer = self._prepare(settings_of(pretrained, device, **settings), batch_size)
        super().__init__(
            pretrained=callable_of(model),
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
            softmax_dtype=torch.promote_types(model.dtype, torch.float32),
        )

    def _prepare(self, config: RunConfig, batch_size: int | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Calibrate and make sparse, as a run does."""
        _check(config.token_policy, batch_size)
        planned = list(plan_runs(config).values())[-1]
        models.ensure_available(config.model)
        documents = read_documents(config)
        session = open_session(config, documents)
        self._calibrated_on = documents.calibrated_on
        self.handle, prepared = prepare(planned, session)
        error, bound = (prepared["parity"][key] for key in ("relative_logits_error", "bound"))
        log.info("%s: level-0 logits error %.1e (bound %.0e)", config.method.label, error, bound)
        return session.model, session.tokenizer

    def _load(
        self, folder: Path, device: str | None, batch_size: int | str, settings: dict[str, Any]
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load an export. What it was calibrated on is read again, to be compared with the tasks."""
        base = settings.pop("base", None)
        if settings:
            raise ConfigError(
                f"pretrained={folder} is an export, which says everything: leave out {', '.join(settings)}"
            )
        file = exported(folder)
        _check(file.plan.token_policy, batch_size)
        if file.calibration is None:
            log.warning("%s does not say what it was calibrated on, so tasks are not compared with it", folder)
        self._calibrated_on = load_documents(file.calibration.text) if file.calibration else []
        gpu = torch.cuda.is_available() or not (device or "cuda").startswith("cuda")
        model = load(folder, device=device if device and gpu else "auto", base=base)
        self.handle = handle_of(model)
        return model, load_tokenizer(folder, base=base)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """lm-eval's; raises OverlapError for a task whose examples the model was calibrated on."""
        self._require_held_out(requests)
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """The same of whole texts."""
        self._require_held_out(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """The same of tasks that generate."""
        self._require_held_out(requests)
        return super().generate_until(requests, disable_tqdm)

    def _require_held_out(self, requests: list[Instance]) -> None:
        """Compare every task's examples, not those in its prompts, with the calibration text."""
        if not self._calibrated_on:
            return
        tasks: dict[str, dict[str, None]] = {}
        for request in requests:
            tasks.setdefault(str(request.task_name), {}).update(dict.fromkeys(_strings(request.doc)))
        for name, texts in tasks.items():
            shared = overlap(self._calibrated_on, list(texts), cosine=False)
            require_disjoint(shared, f"task {name}")
            log.info("task %s against the calibration text: %s", name, shared)


def _strings(value: Any) -> Iterator[str]:
    """All texts of a nested example."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def main() -> None:
    """Hand over to lm-eval's command line, which knows `--model larosa` by now; --help alone is ours."""
    from lm_eval.__main__ import cli_evaluate

    if asks_for_help(sys.argv[1:2]):
        print(help_of("eval"))
        return
    try:
        cli_evaluate()
    except (LarosaError, OSError) as error:
        fail(error)
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        fail(f"{error} (`{typed('eval')} ls tasks` lists them; --include_path FOLDER adds your own)")


if __name__ == "__main__":
    main()
