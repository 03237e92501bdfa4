"""The main job's promises on the real model (slow: needs the wheels and some minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config import parse

from larosa.experiment.pipeline import run

pytestmark = pytest.mark.slow
LEAN = ["evaluation.zero_shot.tasks=[]", "tracking=off"]


@pytest.mark.parametrize("form", ["absorbed", "simulated"])
def test_level_zero_has_the_dense_perplexity_to_four_digits(form: str, tmp_path: Path) -> None:
    records = run(
        parse("sparsity=0", "method=larosa/paper", f"method.form={form}", "baseline=dense", f"output={tmp_path}", *LEAN)
    )
    dense, larosa = (r["metrics"]["perplexity"]["boolq-heldout"]["perplexity"] for r in records.values())
    assert larosa == pytest.approx(dense, rel=5e-5)


def test_the_forms_stand_where_they_should(tmp_path: Path) -> None:
    """Texts unrelated to calibration, 0.8 / 1.2, 40 %: increase relative to magnitude's, mean over the texts."""
    texts = ["texts=[lambada,gsm8k]", f"output={tmp_path}", *LEAN]
    records = run(parse(*texts, "method=larosa/paper"))
    for granularity in ("layer", "sublayer"):
        more = run(
            parse(
                *texts,
                "method=larosa/paper",
                "method.form=simulated",
                f"method.granularity={granularity}",
                "baseline=none",
            )
        )
        records |= more
    found = {name: r["metrics"]["perplexity"] for name, r in records.items()}

    def ratio(name: str) -> float:
        increase = {n: [f[t]["perplexity"] - found["dense"][t]["perplexity"] for t in f] for n, f in found.items()}
        pairs = zip(increase[name], increase["magnitude"], strict=True)
        return sum(own / other for own, other in pairs) / len(increase["magnitude"])

    absorbed = ratio("larosa/paper (absorbed, pca, per layer)")
    layer, block = (ratio(f"larosa/paper (simulated, pca, per {g})") for g in ("layer", "sublayer"))
    assert block < layer < absorbed
    assert 1.1 < absorbed < 1.6
    assert 0.95 < layer < 1.25
    assert 0.8 < block < 1.1
