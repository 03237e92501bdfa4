"""Every conf file composes; what users type works; what is wrong is said in one line before anything loads."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typed
from composing import compose, whole_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from conftest import CONF, ROOT
from larosa.config.run import ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.experiment import pipeline, session
from larosa.experiment.plan_runs import plan_runs
from larosa.rotation.rotation import build_rotation

OWN_FILES = {"calibration=text": "calibration.text.files=[a.txt]", "texts=text": "texts.text.files=[a.txt]"}
NEEDS = {
    **OWN_FILES,
    "schedule=file": "schedule.path=a.json",
    "model=local": "model.path=a",
    "model=hub": "model.hub_id=someone/a",
    "token_policy=decode_only": "texts=none evaluation.zero_shot.tasks=[]",
    "token_policy=last_fraction": "evaluation.zero_shot.batch_size=1",
}


@cache
def tree(*overrides: str) -> dict[str, Any]:
    """What Hydra composes, before it is checked; not to be changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True, throw_on_missing=True)
    return composed  # type: ignore[no-any-return]


def parse(*overrides: str) -> RunConfig:
    return RunConfig.parse(copy.deepcopy(tree(*overrides)))


@pytest.mark.parametrize("overrides", [
    ["model=tiny-llama", "sparsity=0.3", "texts=[lambada,c4]", "+experiment=teal", "texts.c4.max_documents=3"],
    ["method=larosa/paper", "method.form=online", "~model.shape", "+model.shape={hidden_size: 64}", "baseline=[teal]"],
    ["texts=none", "model={dtype: float64}", "hydra.job.name=x", "model.path=${output}", "tracking=off"],
    ["sparsity=0.3", "modle=x"], ["method=nothing"], ["+sparsity=1"], ["model=tiny-llama", "model=tiny-llama"],
    ["method.no=1"], ["~method.no"], ["sparsity=0.3,0.4"], ["+model=tiny-llama"], ["sparsity=("],
    ["model@x=tiny-llama"],
])  # fmt: skip
def test_the_tests_compose_as_hydra_does(overrides: list[str]) -> None:
    def outcome(by: Callable[[str, list[str]], Any]) -> object:
        try:
            return OmegaConf.to_container(by("config", overrides))
        except Exception as error:
            return type(error), str(error)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = outcome(whole_compose)
        assert [outcome(compose), outcome(compose)] == [whole, whole]


def choices() -> list[str]:
    found = []
    for path in sorted(CONF.glob("*/**/*.yaml")):
        group, *rest = path.relative_to(CONF).with_suffix("").parts
        if group == "hydra":
            group, *rest = f"hydra/{rest[0]}", *rest[1:]
        found.append(f"{'+' if group == 'experiment' else ''}{group}={'/'.join(rest)}")
    return found


@pytest.mark.parametrize("choice", choices())
def test_every_conf_file_composes(choice: str) -> None:
    parse(choice, *NEEDS.get(choice, "").split())


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_method_plans_with_its_own_paper_s_settings(name: str) -> None:
    """Options of a group that the command line chooses stay open."""
    config = parse(f"+experiment={name}", "sparsity=0.3")
    cells = plan_runs(config)
    assert config.method.name in name
    assert list(cells)[-1] == config.method.label
    assert {"teal": 0.5, "wina": 0.99, "r_sparse": 0.1}.get(
        name, config.token_policy.fraction
    ) == config.token_policy.fraction
    assert parse(f"+experiment={name}", "sparsity=0.3", "texts=lambada").texts.keys() == {"lambada"}


MODELS = [path.stem for path in sorted((CONF / "model").glob("*.yaml")) if path.stem not in ("local", "hub")]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["dense", "magnitude", "larosa", "larosa/paper", "larosa/official"])
@pytest.mark.parametrize("schedule", ["uniform", "official", "paper"])
def test_every_model_plans_with_every_method(model: str, method: str, schedule: str) -> None:
    """Composed apart, for no group looks at another, and checked together."""
    composed = tree("sparsity=0.4", f"method={method}", f"schedule={schedule}")
    config = RunConfig.parse({**composed, "model": tree(f"model={model}")["model"]})
    cells = plan_runs(config)
    assert len({str(cell.folder) for cell in cells.values()}) == len(cells)
    assert list(cells)[-1] == config.method.label


def test_no_group_is_named_sparsity() -> None:
    assert not (CONF / "sparsity").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity=1.0"], "sparsity: Input should be less than 1"),
        (["sparsity=-0.1"], "sparsity: Input should be greater than or equal to 0"),
        (["+sparcity=0.4"], "sparcity: unknown key"),
        (["+method.bases=pca"], "method.bases: unknown key"),
        (["method.basis=fourier"], "method.basis"),
        (["method=magnitude", "+method.basis=pca"], "magnitude has no setting basis, which belongs to wina, larosa"),
        (["method.form=plain"], "method.form: Input should be 'absorbed', 'simulated' or 'online'"),
        (["token_policy=decode_only"], "would measure the dense model"),
        (["token_policy=last_fraction"], "batch_size=1"),
        (["calibration.probe_sequences=99"], "must not exceed"),
        (["token_policy=skip_first_n", "token_policy.n=1024"], "leaves no sparse token"),
        (["token_policy=last_fraction", "token_policy.fraction=0"], "token_policy.fraction"),
        (["token_policy=last_fraction", "token_policy.fraction=nan"], "token_policy.fraction"),
        (["sparsity=false"], "sparsity: expected a number"),
        (["calibration.sequences=true"], "calibration.sequences: expected a number"),
        (["evaluation.perplexity.max_tokens=true"], "max_tokens: expected a number"),
        (["method=r_sparse", "method.low_rank_ratio=false"], "low_rank_ratio: expected a number"),
        (["allocation.step=inf"], "allocation.step: Input should be a finite number"),
        (["schedule.coefficients.h1=nan"], "schedule.coefficients.h1"),
        (["+schedule.table.mine={h1: -1, h2: 1, h3: 1, h4: 1}"], "schedule.table.mine.h1: Input should be greater"),
        (["seed=-1"], "seed: Input should be greater than or equal to 0"),
        ([f"seed={2**32}"], "seed: Input should be less than 4294967296"),
        ([f"seed={2**64}"], "seed: Input should be less than 4294967296"),
        (["schedule.kind=coefficients", "schedule.coefficients=null"], "needs schedule.coefficients"),
    ],
)
def test_bad_settings_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*overrides)


SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "true", "'8'", "inf"])
@pytest.mark.parametrize("key", SIZES)
def test_every_size_of_the_shape_is_a_whole_number_above_zero(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.shape\.{key}: "):
        parse("model=tiny-llama", f"model.shape.{key}={value}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.shape.rms_norm_eps=0", "model.shape.rms_norm_eps: Input should be greater than 0"),
        ("model.shape.rms_norm_eps=nan", "model.shape.rms_norm_eps: "),
        ("model.shape.initializer_range=-1", "model.shape.initializer_range: "),
        ("model.shape.rope_parameters.rope_theta=0", r"model.shape.rope_parameters.rope_theta: .* greater than 0"),
        ("+model.shape.rope_parameters.factor=0", r"model.shape.rope_parameters.factor: .* greater than 0"),
        ("model.shape.eos_token_id=384", "token id 384 is not below vocab_size=384"),
        ("model.shape.pad_token_id=-1", "model.shape.pad_token_id: "),
        ("model.shape.num_key_value_heads=3", "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ("model.shape.head_dim=15", "head_dim=15 must be even"),
        ("+model.shape.attention_dropout=nan", "attention_dropout: expected finite numbers"),
        ("+model.shape.num_hiden_layers=2", "unknown key num_hiden_layers; did you mean num_hidden_layers"),
        ("~model.shape.model_type", "model.shape.model_type: Field required"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse("model=tiny-llama", override)


def test_a_good_shape_stays_as_it_was_given() -> None:
    """Its hash is a part of a random model's identity."""
    given = tree("model=tiny-llama", "+model.shape.sliding_window=null", "model.shape.rms_norm_eps=1")
    config = parse("model=tiny-llama", "+model.shape.sliding_window=null", "model.shape.rms_norm_eps=1")
    assert repr(config.model.shape) == repr(given["model"]["shape"])
    assert config.model.model_dump(mode="json", warnings="error")["shape"] == given["model"]["shape"]


def test_the_highest_seed_serves_every_generator() -> None:
    seed = parse(f"seed={2**32 - 1}").seed
    np.random.default_rng(seed)
    np.random.RandomState(seed)
    method = parse("method=larosa/paper", "method.basis=random").method
    assert build_rotation(method, None, 2, 4, seed).matrices.isfinite().all()


def test_decode_only_is_scored_by_what_is_generated() -> None:
    only = ["token_policy=decode_only", "texts=none"]
    tasks = ("gsm8k_cot", "hendrycks_math500")
    assert parse(*only, f"evaluation.zero_shot.tasks=[{','.join(tasks)}]").evaluation.zero_shot.tasks == tasks
    with pytest.raises(ConfigError, match="would measure the dense model"):
        parse(*only, "evaluation.zero_shot.tasks=[gsm8k_cot,piqa]")


def test_baseline_one_several_none() -> None:
    assert list(parse("baseline=magnitude").baseline) == ["magnitude"]
    assert list(parse("baseline=[dense,larosa/official]").baseline) == ["dense", "larosa/official"]
    assert parse("baseline=none").baseline == {}
    assert parse("baseline=[]", "texts=[]").texts == {}
    assert parse("evaluation.zero_shot.tasks=piqa").evaluation.zero_shot.tasks == ("piqa",)


def test_cells_that_differ_are_all_measured_and_equal_ones_once() -> None:
    def labels(*overrides: str) -> list[str]:
        return list(plan_runs(parse(*overrides)))

    assert labels("method.ties=keep", "baseline=[dense,larosa]") == [
        "dense",
        "larosa (online, output_aware, per sublayer, int8)",
        "larosa (online, output_aware, per sublayer, int8) #2",
    ]
    assert labels("method=magnitude", "baseline=[magnitude,dense]") == ["dense", "magnitude"]
    assert labels("baseline=larosa/output_aware") == ["larosa (online, output_aware, per sublayer, int8)"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["calibration.sequences=1", "calibration.length=512"], "512 calibration tokens cannot span 576"),
        (["evaluation.perplexity.length=9000"], "at most 8192 positions"),
        (["model=qwen2.5-72b", "baseline=larosa", "method=magnitude"], None),
        (["evaluation.zero_shot.tasks=[boolq]", "calibration.text.part=all"], "boolq asks about the passages"),
        (["evaluation.zero_shot.tasks=[boolq]"], None),
        (["model=tiny-llama", "sparsity=0.995", "schedule=uniform"], "leaves no channel"),
        (["model=tiny-llama", "model.device_map=auto"], "one device"),
        (["evaluation.zero_shot.tasks=[piqb]"], "no piqb"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_loads(overrides: list[str], message: str | None) -> None:
    config = parse(*overrides)
    if message is None:
        plan_runs(config)
        return
    with pytest.raises(LarosaError, match=message):
        plan_runs(config)


def test_baselines_stand_at_the_byte_weighted_level_of_a_nominal_method() -> None:
    config = parse(
        "model=llama2-7b", "method=larosa/paper", "schedule=paper", "schedule.metric=nominal", "sparsity=0.5"
    )
    cells = plan_runs(config)
    assert cells["magnitude"].config.schedule.metric == "weight_bytes"
    assert 0.46 < cells["magnitude"].config.sparsity < 0.475
    assert cells[config.method.label].config.sparsity == 0.5


def test_identity_follows_what_shapes_the_result_and_nothing_else() -> None:
    def folder(*overrides: str) -> Path:
        config = parse(*overrides)
        return plan_runs(config)[config.method.label].folder

    base = folder()
    assert folder("tracking=off", "force=true", "baseline=none", "model.dense_weights_device=cpu") == base
    for other in ("sparsity=0.41", "seed=1", "calibration.length=512", "method.ties=keep", "texts=lambada",
                  "model.dtype=bfloat16", "evaluation.zero_shot.examples=21", "schedule=uniform"):  # fmt: skip
        assert folder(other) != base, other
    dense = {plan_runs(parse(o))["dense"].folder for o in ("sparsity=0.4", "sparsity=0.5", "schedule=uniform")}
    assert len(dense) == 1


def test_own_files_shape_the_identity_by_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"

    def folder() -> Path:
        config = parse("calibration=text", f"calibration.text.files=[{file}]")
        return plan_runs(config)[config.method.label].folder

    file.write_text("one")
    one = folder()
    file.write_text("two")
    assert folder() != one


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=llama2-7b"], "model.path="),
        (["sparsity=2"], "sparsity: Input should be less than 1"),
        (["calibration=text"], "calibration.text.files"),
    ],
)
def test_run_py_ends_with_one_message_within_seconds(overrides: list[str], message: str, tmp_path: Path) -> None:
    words = [f"output={tmp_path}", "tracking=off", *overrides]
    if overrides == ["sparsity=2"]:  # in a process of its own
        command = [sys.executable, str(ROOT / "run.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    else:
        done = typed.typed(*words, said=tmp_path / "said")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["model.path=/nowhere/at/all"], "/nowhere/at/all"), (["sparsity=0.95"], "must stay below")],
)
def test_run_refuses_before_anything_loads(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("read_documents", "open_session"):
        monkeypatch.setattr(session, step, lambda *_: pytest.fail("loaded"))
    with pytest.raises(LarosaError, match=message):
        pipeline.run(parse(f"output={tmp_path}", "tracking=off", *overrides))
