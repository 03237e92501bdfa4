"""R-Sparse against a few lines of torch; its bytes, its search, and what it refuses."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from test_config import parse
from test_methods import inputs
from test_pipeline import overrides  # noqa: F401
from test_schedule import ALL, method, schedule, shape_of
from torch import Tensor, nn

from conftest import build_model
from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.data.tokens import TokenBlock
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.evaluation.error import probe
from larosa.evaluation.sparsity import SparsityMeter
from larosa.experiment.pipeline import run
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.results import identity
from larosa.methods import r_sparse
from larosa.methods.registry import METHODS
from larosa.models.architecture import SITES, ModelView
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.low_rank import LowRank, flat, rank_of, truncated_svd, truncated_svds, unflat
from larosa.sparsity.schedule import ScheduleError, make_levels

EPS = torch.finfo(torch.float64).eps
TOP_K = {"selector": "top_k"}


@pytest.fixture(autouse=True)
def cache(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def planned(
    model: nn.Module, tokens: Tensor, chosen: MethodConfig, sparsity: float = 0.5, policy: TokenPolicyConfig = ALL
) -> Plan:
    shape = ModelShape.of(model.config)
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)
    levels = make_levels(shape, schedule("uniform"), sparsity, "tiny")
    return METHODS["r_sparse"].plan(chosen, shape, levels, policy, calibrator)


def outputs(model: nn.Module, tokens: Tensor, path: str) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _m, _args, y: seen.append(y))
    model(tokens)
    hook.remove()
    return seen[0]


def full(model: nn.Module) -> LowRank:
    """Pairs of full rank: nothing is lost."""
    found: dict[str, list[tuple[object, ...]]] = {site: [] for site in SITES}
    for layer, site in ModelView(model).sites():
        found[site].append(tuple(truncated_svd(p.weight, min(p.weight.shape)) for p in layer.consumers(site)))
    return {site: tuple(layers) for site, layers in found.items()}


@pytest.mark.parametrize("rule", ["threshold", "top_k"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2 has biases
def test_the_first_layer_is_what_the_paper_says(kind: str, rule: str, tokens: Tensor) -> None:
    """Every projection of the first layer, on what it reads: the kept entries whole, the rest at rank r."""
    model = build_model(kind)
    plan = planned(model, tokens, method("r_sparse", selector=rule, low_rank_ratio=0.2))
    sites = {"h1": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "h2": "self_attn.o_proj",
             "h3": "mlp.gate_proj mlp.up_proj", "h4": "mlp.down_proj"}  # fmt: skip
    for site, names in sites.items():
        for name in names.split():
            path = f"model.layers.0.{name}"
            linear = model.get_submodule(path)
            with apply(model, plan) as handle:
                sparse, found = inputs(model, tokens, path), outputs(model, tokens, path)
                selector_there = next(s for s in handle.sites if (s.layer, s.site) == (0, site)).selector
                whole: list[Tensor] = []
                selector_there.register_forward_pre_hook(lambda _m, args, whole=whole: whole.append(args[0]))
                model(tokens)
            x = whole[0]  # before anything is dropped, everything in front of it sparse
            if rule == "threshold":
                expected = x.abs() > plan.thresholds[site][0]
            else:
                kept = x.abs().topk(plan.levels.kept[site][0], dim=-1).indices
                expected = torch.zeros_like(x, dtype=torch.bool).scatter(-1, kept, torch.ones_like(kept).bool())
            assert torch.equal(sparse, torch.where(expected, x, 0.0))
            U, S, V = torch.linalg.svd(linear.weight, full_matrices=False)
            r = int(0.2 * linear.weight.numel() / sum(linear.weight.shape))
            assert r >= 2
            y = (x * expected) @ linear.weight.T + (x * ~expected) @ (U[:, :r] * S[:r] @ V[:r]).T
            y = y if linear.bias is None else y + linear.bias
            # The Gram matrix is exact to eps ||W||^2, so its eigenspace to eps ||W||^2 / gap of squared singular
            # values; the sums over 80 channels round beside it.
            gap = float(S[r - 1] ** 2 - S[r] ** 2)
            bound = 80 * EPS * float(S[0] ** 2) / gap * float(S[0]) * float(x.norm(dim=-1).max())
            assert float((found - y).abs().max()) < bound < 1e-8


def test_limits_are_quantiles_of_the_dense_model(tokens: Tensor) -> None:
    model = build_model("llama")
    plan = planned(model, tokens, method("r_sparse"), 0.4)
    x = inputs(model, tokens, "model.layers.3.mlp.down_proj")
    assert plan.thresholds["h4"][3] == pytest.approx(float(x.abs().reshape(-1).quantile(0.4)), rel=5e-3)


@pytest.mark.parametrize("rule", ["threshold", "top_k"])
def test_full_rank_is_dense_at_every_level(rule: str, tokens: Tensor) -> None:
    model = build_model("mistral")
    dense = parity.reference(model, tokens)
    bound = parity.bound(torch.float64, dense.kappa, 80)
    for sparsity in (0.2, 0.9):
        plan = planned(model, tokens, method("r_sparse", selector=rule), sparsity)
        with apply(model, plan):
            assert float((parity.logits(model, tokens) - dense.logits).norm() / dense.logits.norm()) > 1e-3
        with apply(model, replace(plan, low_rank=full(model))):
            error = (parity.logits(model, tokens) - dense.logits).norm() / dense.logits.norm()
        assert float(error) < bound


def test_level_zero_is_dense_bit_for_bit_and_remove_restores(tokens: Tensor) -> None:
    model = build_model("qwen2", dtype=torch.float32, tied=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dense = parity.reference(model, tokens)
    handle = apply(model, planned(model, tokens, method("r_sparse")))
    assert not torch.equal(parity.logits(model, tokens), dense.logits)
    assert parity.check(model, handle, dense)["relative_logits_error"] == 0.0
    assert not torch.equal(parity.logits(model, tokens), dense.logits)
    handle.remove()
    assert torch.equal(parity.logits(model, tokens), dense.logits)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_level_no_pairs(tokens: Tensor) -> None:
    model = build_model("llama")
    plan = planned(model, tokens, method("r_sparse", low_rank_ratio_grid=(0.02, 0.1)), 0.0)
    assert account(plan)["overhead"] == {"kind": "none", "products": 0, "bytes": 0}
    assert account(plan)["read_fraction"] == 1.0
    dense = parity.logits(model, tokens)
    with apply(model, plan):
        assert torch.equal(parity.logits(model, tokens), dense)


@pytest.mark.parametrize("rule", ["threshold", "top_k"])
def test_tokens_that_are_not_sparse_get_no_remainder(rule: str, tokens: Tensor) -> None:
    model = build_model("llama")
    dense = parity.logits(model, tokens)
    policy = TokenPolicyConfig(kind="skip_first_n", n=10, fraction=1.0)
    with apply(model, planned(model, tokens, method("r_sparse", selector=rule), policy=policy)) as handle:
        found = parity.logits(model, tokens)
        assert all(site.low_rank._held.rest is None for site in handle.sites)  # nothing is held on to
    assert torch.equal(found[:, :10], dense[:, :10])
    assert not torch.allclose(found[:, 10:], dense[:, 10:])


def test_threads_have_a_remainder_each(tokens: Tensor) -> None:
    """One thread's pass runs while another's is between a site and its readers."""
    model = build_model("llama")
    with apply(model, planned(model, tokens, method("r_sparse"))):
        expected = parity.logits(model, tokens)

        def interrupt(*_: object) -> None:
            hook.remove()
            other = threading.Thread(target=parity.logits, args=(model, tokens[:1]))
            other.start()
            other.join()

        hook = model.model.layers[2].input_layernorm.register_forward_hook(interrupt)
        assert torch.equal(parity.logits(model, tokens), expected)


def test_reported_errors_include_the_low_rank_part(tokens: Tensor) -> None:
    model = build_model("llama")
    plan = planned(model, tokens, method("r_sparse", **TOP_K))

    def errors(more: Plan) -> dict[str, list[float]]:
        with apply(model, more) as handle:
            return dict(probe(model, handle, tokens)["site_error"])

    plain, low, exact = (errors(replace(plan, low_rank=pairs)) for pairs in (None, plan.low_rank, full(model)))
    # The first site reads the same in all three; a full-rank pair leaves rounding.
    assert 0 < exact["h1"][0] < 1e-13 < low["h1"][0] < plain["h1"][0]
    path = "model.layers.0.self_attn."
    x = inputs(model, tokens, f"{path}q_proj").reshape(-1, 48)
    weights = [model.get_submodule(path + name).weight for name in ("q_proj", "k_proj", "v_proj")]
    rest = x.scatter(-1, x.abs().topk(24, dim=-1).indices, 0.0)
    lost = []
    for W in weights:
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        r = rank_of(0.025, *W.shape)
        lost.append(rest @ (W - U[:, :r] * S[:r] @ V[:r]).T)
    expected = torch.cat(lost, -1).norm(dim=-1) / (x @ torch.cat(weights).T).norm(dim=-1)
    assert low["h1"][0] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_bytes_are_counted(tokens: Tensor) -> None:
    model = build_model("llama")
    counted = account(planned(model, tokens, method("r_sparse", low_rank_ratio=0.1)))
    shapes = [(48, 48), (16, 48), (16, 48), (48, 48), (80, 48), (80, 48), (48, 80)]
    ranks = [int(0.1 * out * width / (out + width)) for out, width in shapes]
    assert min(ranks) == 1
    assert max(ranks) == 3
    weights = sum(r * (out + width) for r, (out, width) in zip(ranks, shapes, strict=True))
    assert counted["overhead"] == {
        "kind": "low-rank remainders, rank 1 to 3", "products": 5 * 7, "bytes": 5 * 2 * weights,
    }  # fmt: skip
    assert counted["overhead_fraction"] <= 0.1
    assert counted["weight_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert counted["read_fraction"] == 1 - counted["weight_sparsity"] + counted["overhead_fraction"]


@pytest.mark.parametrize("model", ["llama2-7b", "llama3-8b", "smollm2-135m"])
def test_candidates_cost_the_same_net_bytes(model: str) -> None:
    shape = shape_of(model)
    levels = make_levels(shape, schedule("official"), 0.5, model)
    chosen = method("r_sparse", low_rank_ratio_grid=(0.0, 0.0125, 0.1))
    for share, own in r_sparse.candidates(chosen, shape, levels).items():
        for s, site in shape.sites.items():
            net = {}
            for at, level in ((share, own.level[s][0]), (chosen.low_rank_ratio, levels.level[s][0])):
                pairs = sum(rank_of(at, out, site.width) * (out + site.width) for out in site.outputs)
                net[at] = (1 - level) * site.weights + pairs
            assert net[share] == pytest.approx(net[chosen.low_rank_ratio], rel=1e-12)
            assert own.level[s][0] - levels.level[s][0] == pytest.approx(share - 0.025, abs=5e-3)
            assert abs(own.kept[s][0] - (1 - own.level[s][0]) * site.width) <= 0.5 + 1e-9
    plain = r_sparse.candidates(method("r_sparse"), shape, levels)
    assert plain == {0.025: levels}


def test_the_search_picks_the_share_that_errs_least(tokens: Tensor) -> None:
    """Layer 0's gate and up have rank 4 and layer 1's are orthogonal: one is worth a pair, the other is not."""
    model = build_model("llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, intermediate_size=64)
    generator = torch.Generator().manual_seed(3)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
        linear.weight.copy_(random(64, 4) @ random(4, 64) / 8)
    for linear in (model.model.layers[1].mlp.gate_proj, model.model.layers[1].mlp.up_proj):
        linear.weight.copy_(torch.linalg.qr(random(64, 64)).Q)
    shares = (0.0, 0.13)
    for rule in ("threshold", "top_k"):
        chosen = method("r_sparse", low_rank_ratio=0.0, low_rank_ratio_grid=shares, selector=rule)
        plan = planned(model, tokens, chosen, 0.4)
        assert [len(pairs) for pairs in plan.low_rank["h3"][:2]] == [2, 0]
        assert [pair.rank for pair in plan.low_rank["h3"][0]] == [4, 4]
        more = 2 * 4 * (64 + 64) / (2 * 64 * 64)
        assert plan.levels.level["h3"][:2] == pytest.approx((0.4 + more, 0.4))
        counted = account(plan)
        assert counted["read_fraction"] == pytest.approx(0.6, abs=0.5 / 64)
        assert counted["target_sparsity"] == 0.4 < counted["weight_sparsity"]
        assert "0.13 at" in counted["coefficients"]
        alone = [method("r_sparse", low_rank_ratio=0.0, low_rank_ratio_grid=(s,), selector=rule) for s in shares]
        singles = [planned(model, tokens, one, 0.4) for one in alone]
        calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, 128, "x"), {"source": "test"}, 2, 0)
        *alone, mixed = calibrator.site_errors([*singles, plan])
        for s in SITES:
            assert mixed[s] == pytest.approx([min(pair) for pair in zip(alone[0][s], alone[1][s], strict=True)])
            if plan.thresholds is not None:
                picked = [int(bool(pairs)) for pairs in plan.low_rank[s]]
                assert list(plan.thresholds[s]) == [singles[i].thresholds[s][n] for n, i in enumerate(picked)]


def test_the_measured_level_is_the_planned_one(tokens: Tensor) -> None:
    model = build_model("llama")
    shape = ModelShape.of(model.config)
    plan = planned(model, tokens, method("r_sparse", **TOP_K))
    meter = SparsityMeter(shape, shape.weights_per_channel)
    with apply(model, plan) as handle, handle.observed_by(meter):
        model(tokens)
    assert meter.summary()["weight_sparsity_mean"] == pytest.approx(account(plan)["weight_sparsity"], abs=1e-12)


def test_pairs_are_computed_once(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", dtype=torch.float32)
    first = planned(model, tokens, method("r_sparse"), 0.4)
    monkeypatch.setattr("larosa.calibration.calibrator.truncated_svds", lambda *_: pytest.fail("computed again"))
    second = planned(model, tokens, method("r_sparse"), 0.6)
    assert all(torch.equal(t, flat(second.low_rank)[name]) for name, t in flat(first.low_rank).items())
    made = truncated_svds(model, 0.1)
    assert flat(unflat(flat(made))).keys() == flat(made).keys()
    assert made["h1"][0][0].left.dtype == torch.float32
    assert len(made["h1"]) == 5
    assert [len(made[s][0]) for s in SITES] == [3, 1, 2, 1]


@pytest.mark.parametrize(
    ("share", "rank"), [(0.0, 0), (1e-6, 1), (0.025, 51), (0.05, 102)],
)  # fmt: skip
def test_rank_of_a_square_projection(share: float, rank: int) -> None:
    assert rank_of(share, 4096, 4096) == rank


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("magnitude", {"low_rank_ratio": 0.1}, "magnitude has no setting low_rank_ratio, which belongs to r_sparse"),
        (
            "larosa/paper",
            {"low_rank_ratio_grid": (0.1,)},
            "larosa has no setting low_rank_ratio_grid, which belongs to r_sparse",
        ),
        ("r_sparse", {"low_rank_ratio": 1.0}, "less than 1"),
        ("r_sparse", {"low_rank_ratio_grid": (0.1, -0.1)}, "greater than or equal to 0"),
        ("r_sparse", {"low_rank_ratio_grid": (0.1, 0.1)}, "twice"),
        ("r_sparse", {"low_rank_ratio": 0.0}, "is method=magnitude"),
        ("r_sparse", {"form": "absorbed"}, "r_sparse has no setting form, which belongs to wina, larosa"),
        ("r_sparse", {"importance": "column_norm"}, "r_sparse has no setting importance, which belongs to larosa"),
    ],
)
def test_impossible_combinations_raise(name: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **more)


@pytest.mark.parametrize(("sparsity", "share"), [("0.9", "0.3"), ("0.01", "0.0")])
def test_shares_out_of_reach_are_refused_before_weights_load(sparsity: str, share: str) -> None:
    config = parse(
        "model=llama2-7b", "method=r_sparse", f"sparsity={sparsity}", f"method.low_rank_ratio_grid=[{share}]",
        "schedule=uniform", "baseline=none",
    )  # fmt: skip
    with pytest.raises(ScheduleError, match=r"at site h1, layer 0.*leave it out of method.low_rank_ratio_grid"):
        plan_runs(config)


def test_it_stands_beside_other_methods_and_shapes_only_its_own_identity() -> None:
    cells = plan_runs(parse("baseline=[dense,r_sparse]", "method=r_sparse", "method.low_rank_ratio_grid=[0.01,0.05]"))
    assert list(cells) == ["dense", "r_sparse (2.5 % low-rank)", "r_sparse (searched, +2.5 % bytes)"]
    shaped = identity(parse("method=r_sparse"), {}, "cpu")["method"]
    assert shaped["low_rank_ratio"] == 0.025
    assert not {"low_rank_ratio", "low_rank_ratio_grid"} & set(identity(parse("method=teal"), {}, "cpu")["method"])


def test_a_run_records_it(overrides: list[str]) -> None:  # noqa: F811
    more = [
        "method=r_sparse",
        "method.low_rank_ratio=0.05",
        "method.low_rank_ratio_grid=[0.03,0.08]",
        "baseline=r_sparse",
    ]
    found, searched = (record["metrics"] for record in run(parse(*overrides, *more)).values())
    for metrics in (found, searched):
        assert metrics["parity"]["relative_logits_error"] == 0.0
        assert metrics["accounting"]["overhead"]["products"] == 3 * 7
    nets = [metrics["accounting"]["read_fraction"] for metrics in (found, searched)]
    assert nets[1] - nets[0] == pytest.approx(0.025, abs=0.02)  # low_rank_ratio 0.025 and 0.05
