"""Speed on the CPU: rows are complete, bytes are counted, and the benchmark runs where only torch is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_config import parse
from transformers import AutoConfig

from conftest import ROOT, SHAPE
from larosa.decode import evaluate as evaluated
from larosa.decode.calibrate import kth_bits, with_search_ranges, with_thresholds
from larosa.decode.decoder import Decoder
from larosa.decode.dense import DenseDecoder, transposed
from larosa.decode.errors import DecodeError
from larosa.decode.selectors import dense_selectors, level_selectors
from larosa.decode.timing import compare, measure, with_speedups
from larosa.decode.weights import DecodeWeights, random_weights
from larosa.errors import LarosaError
from larosa.experiment.plan_runs import plan_runs

BLOCKED = ("pydantic", "hydra", "omegaconf", "wandb", "datasets", "lm_eval", "pandas", "sklearn", "psutil")


def weights(dtype: torch.dtype = torch.float32, **more: object) -> DecodeWeights:
    config = AutoConfig.for_model("qwen2", **SHAPE)
    return random_weights(config, dtype, torch.device("cpu"), seed=0, layers=2, **more)


def test_rows_hold_dense_and_every_level_at_every_length() -> None:
    own = weights(adapters=1)
    plans = {"half": level_selectors(own.shape, 0.5), "none": dense_selectors(own.shape)}
    rows = compare(own, plans, contexts=(8, 16), outputs=(3,), repeats=2)
    assert len(rows) == (4 + 2) * 2
    dense = [row for row in rows if row["kind"] == "dense" and row["context"] == 8]
    assert max(row["speedup"] for row in dense) == 1.0
    for row in rows:
        ms = row["ms_per_token"]
        assert 0 < ms["p20"] <= ms["p50"] <= ms["p80"]
        assert row["tokens_per_s"] == pytest.approx(1000 / ms["p50"])
        assert (row["backend"], row["graph"], row["share_of_peak"]) == ("reference", False, None)
    json.dumps(rows)


def test_speedups_are_over_the_fastest_dense_of_the_same_lengths() -> None:
    def row(name: str, kind: str, context: int, ms: float) -> dict[str, object]:
        return {
            "name": name,
            "kind": kind,
            "context": context,
            "new_tokens": 1,
            "batch": 1,
            "ms_per_token": {"p50": ms},
        }

    rows = [row("a", "dense", 1, 3.0), row("b", "dense", 1, 2.0), row("b", "dense", 2, 8.0), row("s", "sparse", 1, 1.0)]
    assert [r["speedup"] for r in with_speedups(rows)] == [2 / 3, 1.0, 1.0, 2.0]
    assert rows[3]["best_dense"] == "b"


def test_bytes_are_those_that_a_step_reads() -> None:
    own = weights(transforms="int8")
    D, wide, kv, vocabulary = 48, 80, 16, 384
    for level in (0.0, 0.5):
        found = measure(Decoder(own, level_selectors(own.shape, level), 16), context=8, new_tokens=2, repeats=1)
        read = found["read_bytes"]
        projections = 2 * 4 * (D * (D + 2 * kv) + D * D + 3 * D * wide)
        assert read["projections"] == pytest.approx((1 - level) * projections)
        assert read["transforms"] == 2 * 2 * (D * D + 4 * D)
        assert read["lm_head"] == 4 * D * vocabulary
        assert read["biases"] == 2 * 4 * (D + 2 * kv)
        assert read["kv_cache"] == 2 * 2 * kv * 4 * 9
        assert read["total"] == sum(value for key, value in read.items() if key != "total")


@pytest.mark.parametrize("layout", ["linear", "addmm", "input_major"])
def test_the_dense_baseline_computes_the_model(layout: str) -> None:
    own = weights()
    copy = None if layout == "input_major" else transposed(own)
    dense, sparse = DenseDecoder(own, layout, 8, copy), Decoder(own, dense_selectors(own.shape), 8)
    for token in (3, 200, 17):
        torch.testing.assert_close(dense.step(token), sparse.step(token), rtol=1e-4, atol=1e-4)
    with pytest.raises(DecodeError, match="layout"):
        DenseDecoder(own, "diagonal", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calibrated_limits_keep_about_as_much_and_brackets_hold_the_limits(dtype: torch.dtype) -> None:
    own = weights(dtype)
    selectors = level_selectors(own.shape, 0.5)
    calibrating = Decoder(own, selectors, 40)
    calibrating.cache.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(384, (12,), generator=torch.Generator().manual_seed(0))
    bits = kth_bits(calibrating, ids, context=16)
    assert set(bits) == {(layer, site) for layer in range(2) for site in ("h1", "h2", "h3", "h4")}
    for (layer, site), seen in bits.items():
        low, high = with_search_ranges(selectors, bits)[site][layer].search_range or (0, 0)
        assert low <= int(seen.min()) <= int(seen.max()) <= high
    thresholds = with_thresholds(selectors, bits, dtype)
    assert all(
        each.threshold is not None and each.k == selectors[site][0].k
        for site in thresholds
        for each in thresholds[site]
    )
    limiting = Decoder(own, thresholds, 40)
    limiting.cache.normal_(generator=torch.Generator().manual_seed(1))
    found = measure(limiting, context=16, new_tokens=16, repeats=1)
    assert all(0.3 < share < 0.7 for share in found["kept_share"].values())


def test_lengths_that_do_not_fit_are_refused() -> None:
    own = weights()
    with pytest.raises(DecodeError, match="exceed max_len"):
        measure(Decoder(own, dense_selectors(own.shape), 8), context=8, new_tokens=1)


def test_the_benchmark_runs_where_only_torch_is(tmp_path: Path) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
    words = ["--model", "tiny-llama", "--levels", "0,0.5", "--overhead", "int8", "--contexts", "8", "--new-tokens", "2"]
    words += [
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--thresholds",
        "--prefill",
        "8",
        "--json",
        str(tmp_path / "out.json"),
    ]
    run = f"import runpy; sys.argv[1:] = {words!r}; runpy.run_module('larosa.decode.benchmark', run_name='__main__')"
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", block + run], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-3].startswith("| thresholds 50 %")
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in record["rows"]][-3:] == ["top-k 0 %", "top-k 50 %", "thresholds 50 %"]
    assert record["parity"]["8"]["top-k 50 %"]["bit_identical"]
    assert set(record["selection_us"]["8"]) == {"top-k 50 %"}
    assert [(row["layout"], row["tokens"]) for row in record["prefill"]] == [("input_major", 8), ("output_major", 8)]
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.dtype=float64"], "bfloat16"),
        (["method=r_sparse"], "low-rank"),
        (["evaluation.speed.contexts=[9000]"], "at most 8192 positions"),
        (["evaluation.speed.parity_tokens=5000"], "parity_tokens"),
    ],
)
def test_what_cannot_be_timed_is_refused_early(more: list[str], message: str) -> None:
    with pytest.raises(LarosaError, match=message):
        plan_runs(parse("evaluation=speed", *more))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_speed_without_a_gpu_unless_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = ("evaluation=speed", "model.dtype=bfloat16")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for backend in ("auto", "triton"):
        with pytest.raises(LarosaError, match=r"on a CUDA GPU, and this is a cpu.*backend=reference"):
            plan_runs(parse(*timed, f"backend={backend}"))
        with pytest.raises(LarosaError, match="float32 needs backend=reference"):
            plan_runs(parse("evaluation=speed", "model.dtype=float32", f"backend={backend}"))
    plan_runs(parse(*timed, "backend=reference"))
    plan_runs(parse("backend=triton"))  # nothing decodes
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(LarosaError, match="Triton's interpreter"):
        plan_runs(parse(*timed))
    plan_runs(parse(*timed, "backend=triton"))


def test_times_of_anything_but_the_kernels_on_a_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluated, "INTERPRETED", False)
    assert evaluated.caveat("triton", "cuda") is None
    assert evaluated.caveat("reference", "cpu") == "torch reference on CPU, not a speed measurement"
    assert evaluated.caveat("reference", "cuda") == "torch reference on GPU, not a speed measurement"
    monkeypatch.setattr(evaluated, "INTERPRETED", True)
    for device in ("cpu", "cuda"):
        assert str(evaluated.caveat("triton", device)).startswith("Triton interpreter")
