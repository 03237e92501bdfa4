"""The method table, from real records of a tiny model and from copies of them with one thing changed."""

from __future__ import annotations

import copy
import csv
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import sealed
from test_config import parse
from test_pipeline import write_text

from conftest import ROOT
from larosa.config.method import METHOD_CONFIGS, METHOD_NAMES, MethodConfig
from larosa.experiment.pipeline import run
from larosa.records.method_settings import method_of
from larosa_analysis import compact
from larosa_analysis.comparison import methods
from larosa_analysis.comparison.criteria import gains, verdicts
from larosa_analysis.comparison.markdown import interval, markdown
from larosa_analysis.comparison.overhead import adapter_fraction, overhead_at_llama2_7b
from larosa_analysis.comparison.rows import Row, Rows, build
from larosa_analysis.comparison.summary import summary
from larosa_analysis.records.entry import Entry, Record, RecordsError, load
from larosa_analysis.stats.bootstrap import Increases, draws

LAROSA = "larosa/paper (absorbed, pca, per layer)"
TEXTS = ["other", "text"]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a tiny model: dense; magnitude and larosa at 40 and 50 % with two schedules, magnitude with a third;
    larosa at 50 % plus its extras; calibrated limits, which miss 50 %."""
    folder = tmp_path_factory.mktemp("made")
    calibration, *held_out = (write_text(folder / f"{seed}.txt", seed, 3000) for seed in range(3))
    schedule = {"schema": 1, "layers": 3, "widths": {"h1": 64, "h2": 64, "h3": 64, "h4": 160}}
    schedule["levels"] = {"h1": [1, 1, 1], "h2": [1, 1, 1], "h3": [1, 1, 1], "h4": [1.1, 0.9, 1]}
    (folder / "mine.json").write_text(json.dumps(schedule))
    common = [
        "model=tiny-llama", "method=larosa/paper",
        "calibration=text", f"calibration.text.files=[{calibration}]", "calibration.length=64",
        "calibration.sequences=8", "texts=text", f"texts.text.files=[{held_out[0]}]",
        f"+texts.other={{name: other, source: files, files: [{held_out[1]}]}}", "evaluation.perplexity.length=64",
        "evaluation.perplexity.max_tokens=1024", "evaluation.perplexity.batch_size=16", "evaluation.zero_shot.tasks=[]",
        "tracking=off", f"output={folder / 'runs'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAROSA_CACHE", str(folder / "cache"))
        patch.setattr("larosa.experiment.pipeline._illustrate", lambda *_: [])
        patch.setattr("larosa.experiment.summary.show", lambda *_: None)
        for more in (
            ["sparsity=0.4"], ["sparsity=0.4", "schedule=uniform"], ["sparsity=0.5"],
            ["sparsity=0.5", "schedule=uniform"],
            ["sparsity=0.5", "schedule=file", f"schedule.path={folder / 'mine.json'}", "method=magnitude"],
            ["sparsity=0.5635", "baseline=none"],
            ["sparsity=0.45", "method=magnitude", "method.selector=threshold", "baseline=none"],
        ):  # fmt: skip
            run(parse(*common, *more))
    return folder / "runs"


@pytest.fixture
def lines(runs: Path) -> list[Record]:
    """Compact records, to be edited."""
    return compact.newest(compact.gather(runs))


def save(path: Path, lines: list[Record]) -> Path:
    path.write_text("".join(sealed(line) + "\n" for line in lines))
    return path


def made(tmp_path: Path, lines: list[Record], targets: list[float] | None = None) -> Rows:
    entries, texts = load([save(tmp_path / "records.jsonl", lines)])
    return build(entries, texts, targets or [0.4, 0.5], tolerance=0.006)  # half a channel of 64 is 0.8 points of a site


def pick(lines: list[Record], label: str, asked: float, schedule: str = "official") -> Record:
    def fits(line: Record) -> bool:
        accounting, own = line["metrics"]["accounting"], line["config"]["schedule"]["name"]
        return (line["label"], accounting["target_sparsity"], own) == (label, asked, schedule)

    return next(line for line in lines if fits(line))


def lose(line: Record, dense: Record, factors: dict[str, float]) -> None:
    """Let a record's perplexity be the dense one's times a factor, in every block."""
    for text, found in line["metrics"]["perplexity"].items():
        nats = math.log(factors[text]) * 63
        found["block_nll_nats"] = [own + nats for own in dense["metrics"]["perplexity"][text]["block_nll_nats"]]


def standing(rows: Rows, target: float, metric: Any, label: str) -> Row:
    return next(row for row in rows.standing(target, metric) if row.entry.label == label)


def test_a_compact_record_is_short_and_compacting_is_idempotent(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "records.jsonl"
    assert compact.main([str(runs), str(out)]) == 0
    content = out.read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    assert len(lines) == len(list(runs.glob("*/result.json"))) == 12
    assert [line["label"] for line in lines] == sorted(line["label"] for line in lines)
    line = pick(lines, LAROSA, 0.4)
    full = json.loads(next(runs.glob(f"*{line['identity'][:10]}/result.json")).read_text())
    assert len(json.dumps(line)) < 0.6 * len(json.dumps(full))
    assert {key: line[key] for key in ("git", "versions", "hardware", "created")}.items() <= full.items()
    errors, measured = full["metrics"]["errors"], full["metrics"]["achieved_sparsity"]["text"]
    assert line["metrics"]["errors"] == {"layer_error_mean": pytest.approx(np.mean(errors["layer_error"]))}
    assert line["metrics"]["achieved_sparsity"]["text"]["site_mean"] == {
        site: pytest.approx(np.mean(levels)) for site, levels in measured["site_mean"].items()
    }
    nats = full["metrics"]["perplexity"]["text"]["block_nll_nats"]
    assert line["metrics"]["perplexity"]["text"]["block_nll_nats"] == [round(value, 6) for value in nats]
    for source in (runs, out):
        assert compact.main([str(source), str(out)]) == 0
        assert out.read_bytes() == content


def test_the_newest_record_of_an_identity_stays(lines: list[Record], tmp_path: Path) -> None:
    out, older, newer = tmp_path / "out.jsonl", copy.deepcopy(lines[0]), copy.deepcopy(lines[0])
    older["created"], newer["created"] = "2001-01-01T00:00:00+00:00", "2101-01-01T00:00:00+00:00"
    older["config"]["sparsity"] = 0.9  # a later line, but an older record
    compact.write(save(tmp_path / "b.jsonl", [newer, lines[1]]), out)
    compact.write(save(tmp_path / "a.jsonl", [older, lines[0]]), out)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["identity"]: line["created"] for line in kept} == {
        line["identity"]: line["created"] for line in (newer, lines[1])
    }


def test_no_path_of_the_machine_is_written(runs: Path, tmp_path: Path, lines: list[Record]) -> None:
    record = json.loads(next(runs.glob("*magnitude*/result.json")).read_text())
    record["config"]["model"] |= {"path": "/home/zebulon/models/llama", "hub_id": "meta-llama/Llama-2-7b-hf"}
    record["config"]["schedule"]["path"] = "zebulon/schedules/mine.json"
    record["config"]["calibration"]["text"]["files"] = ["~/zebulon/a b.txt", "C:\\Users\\zebulon\\c.txt"]
    record["config"]["tracking"]["entity"] = "zebulon"
    record["metrics"]["accounting"]["coefficients"] = "read from '/home/zebulon/mine.json', file:///home/zebulon/x.json"
    record["device"] = "cuda:0"
    found = compact.compact(record)
    text = json.dumps([found, *lines])
    for word in ("zebulon", "home", str(runs.parent), str(tmp_path.parent), "Users", "\\\\", '"output":'):
        assert word not in text
    assert found["config"]["model"]["path"] == "llama"
    assert found["config"]["model"]["hub_id"] == "meta-llama/Llama-2-7b-hf"
    assert found["config"]["schedule"]["path"] == "mine.json"
    assert found["config"]["calibration"]["text"]["files"] == ["a b.txt", "c.txt"]
    assert found["metrics"]["accounting"]["coefficients"] == "read from 'mine.json', x.json"
    assert compact.compact(found) == found


def test_what_cannot_be_compacted_is_named(tmp_path: Path, lines: list[Record], capsys: Any) -> None:
    def refused(source: Path) -> str:
        assert compact.main([str(source), str(tmp_path / "out.jsonl")]) == 2
        assert not (tmp_path / "out.jsonl").exists()
        return str(capsys.readouterr().err)

    assert "no result.json below" in refused(tmp_path)
    del lines[0]["label"]
    assert f"{lines[0]['identity']} lacks 'label'" in refused(save(tmp_path / "old.jsonl", lines))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "result.json").write_text('{"schema": 1')
    assert "x/result.json is excluded: it is not JSON" in refused(tmp_path)


def test_a_file_too_large_to_commit_is_warned_about(
    tmp_path: Path, lines: list[Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compact, "LIMIT_BYTES", 1000)
    assert compact.main([str(save(tmp_path / "a.jsonl", lines)), str(tmp_path / "out.jsonl")]) == 0
    assert "below 1 MiB" in capsys.readouterr().err


def perplexity(record: Record, text: str) -> float:
    return float(record["metrics"]["perplexity"][text]["perplexity"])


def test_rows_are_the_records_numbers(lines: list[Record], tmp_path: Path) -> None:
    rows, dense = made(tmp_path, lines), pick(lines, "dense", 0.0)

    def increase(record: Record) -> list[float]:
        return [perplexity(record, text) - perplexity(dense, text) for text in TEXTS]

    searched = [pick(lines, "magnitude", 0.5, schedule) for schedule in ("official", "uniform", "file")]
    best = min(searched, key=lambda record: sum(increase(record)))
    row = standing(rows, 0.5, "weight sparsity", "magnitude")
    assert (row.entry.identity, row.schedules) == (best["identity"], 3)
    assert row.compared.mean.value == 1
    own = min((pick(lines, LAROSA, 0.5, s) for s in ("official", "uniform")), key=lambda r: sum(increase(r)))
    row = standing(rows, 0.5, "weight sparsity", LAROSA)
    assert row.entry.identity == own["identity"]
    ratios = [mine / other for mine, other in zip(increase(own), increase(best), strict=True)]
    assert row.compared.mean.value == pytest.approx(np.mean(ratios), rel=1e-5)
    assert [row.compared.by_text[text].value for text in TEXTS] == pytest.approx(ratios, rel=1e-5)
    cells = [cell.strip() for cell in markdown(rows).split("**50 %**")[1].split(LAROSA)[1].split("|")]
    assert [f"{i:.2f} ({r:.2f})" for i, r in zip(increase(own), ratios, strict=True)] == cells[7:9]


def test_net_bytes_pay_for_the_extras(lines: list[Record], tmp_path: Path) -> None:
    rows = made(tmp_path, lines)
    row = standing(rows, 0.5, "bytes read", LAROSA)
    assert row.entry.target == 0.5635
    assert row.entry.overhead == pytest.approx(2 / 3 * 64**2 / (64 * (64 * 2 + 2 * 32 + 3 * 160)))
    assert row.saved == pytest.approx(0.5, abs=0.006)
    reference = standing(rows, 0.5, "weight sparsity", "magnitude").entry
    assert row.compared == rows.increases.ratio(row.entry, reference)
    assert not [row for row in rows.rows if row.metric == "bytes read" and not row.entry.overhead]
    assert not rows.standing(0.4, "bytes read")
    text = markdown(rows)
    assert text.split("**50 %**")[0].count("| bytes read | no record |") == 1
    assert "| bytes read | official | 56.4 |" in text.split("**50 %**")[1]


def test_what_misses_its_level_is_listed_and_never_counts(lines: list[Record], tmp_path: Path) -> None:
    line = pick(lines, "magnitude (threshold)", 0.45)
    for found in line["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] = 0.5
    row = standing(made(tmp_path, lines), 0.5, "weight sparsity", "magnitude (threshold)")
    assert row.entry.target == 0.45  # what is achieved counts, not the target
    line["metrics"]["accounting"]["target_sparsity"] = 0.5
    for found, level in zip(line["metrics"]["achieved_sparsity"].values(), (0.52, 0.5), strict=True):
        found["weight_sparsity_mean"] = level
    rows = made(tmp_path, lines)
    assert "magnitude (threshold)" not in [r.entry.label for r in rows.standing(0.5, "weight sparsity")]
    (row,) = [r for r in rows.rows if r.entry.label == "magnitude (threshold)"]
    assert (row.status, row.ratio) == ("off target", None)
    assert f"({line['identity']}): target 50.0 %, achieved 51.0 ± " in markdown(rows)
    assert "(50.0 to 52.0) %" in markdown(rows)
    again = pick(lines, "magnitude", 0.5, "uniform")
    for found in again["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] = 0.51
    text = markdown(made(tmp_path, lines))
    assert "Off target, and not counted:\n\n* 50 %, weight sparsity: magnitude (threshold), official" in text
    assert (
        f"another record that counts: 50 %, weight sparsity: magnitude, uniform ({again['identity']}): target 50.0 %"
        in text
    )
    table = list(csv.DictReader(methods.csv_text(rows).splitlines()))
    (listed,) = [row for row in table if row["status"] == "off target"]
    assert (listed["achieved_sparsity"], listed["ratio_mean"]) == ("0.51", "")
    with pytest.raises(RecordsError, match="does not count"):
        _ = row.compared
    line["metrics"]["accounting"]["target_sparsity"] = 0.7
    assert (
        f"Meant for no target of this table: magnitude (threshold) at 70 %, official ({line['identity']})."
        in markdown(made(tmp_path, lines))
    )


def test_of_one_schedule_the_record_nearest_to_the_level_counts(lines: list[Record], tmp_path: Path) -> None:
    near = pick(lines, LAROSA, 0.5)
    for found in near["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] = 0.5
    far = copy.deepcopy(near) | {"identity": "far"}
    lose(far, pick(lines, "dense", 0.0), {"text": 1.0001, "other": 1.0001})
    far["metrics"]["accounting"]["target_sparsity"] = 0.496
    for found in far["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] -= 0.004
    rows = made(tmp_path, [*lines, far])
    assert {r.entry.identity: r.status for r in rows.rows}["far"] == "further from the target"
    assert standing(rows, 0.5, "weight sparsity", LAROSA).entry.identity != "far"


def test_coefficients_that_the_schedule_s_name_does_not_tell_stand_with_it(lines: list[Record]) -> None:
    line = pick(lines, LAROSA, 0.4)
    assert Entry.of(line).schedule == "official"
    line["config"]["schedule"]["coefficients"]["h1"] = 0.9
    assert Entry.of(line).schedule == "official (h1 0.9, h2 1.2, h3 0.8, h4 1.2)"
    line["config"]["schedule"] |= {
        "name": "constrained",
        "coefficients": {"h1": 0.9, "h2": None, "h3": 0.8, "h4": None},
    }
    line["config"]["schedule"]["metric"] = "nominal"
    assert Entry.of(line).schedule == "constrained (h1 0.9, h3 0.8), nominal"


def change(path: str, value: Any) -> Edit:
    *parents, last = path.split("/")

    def edit(line: Record) -> None:
        place = line
        for parent in parents:
            place = place[parent]
        place[last] = value

    return edit


@pytest.mark.parametrize(
    ("condition", "edit"),
    [
        ("model", change("model/name", "tiny-mistral")),
        ("weights", change("model/shape_sha256", "0")),
        ("dtype", change("model/dtype", "bfloat16")),
        ("token policy", change("config/token_policy/kind", "skip_first_n")),
        ("calibration tokens", change("data/calibration/sha256", "0")),
        ("evaluation tokens of other", change("data/texts/other/sha256", "0")),
        ("block length of text", change("metrics/perplexity/text/block_length", 32)),
        ("semantics_version", change("semantics_version", 2)),
        ("schema", change("schema", 3)),
    ],
)
def test_records_of_different_conditions_are_refused(
    lines: list[Record], tmp_path: Path, condition: str, edit: Edit
) -> None:
    label = LAROSA if condition == "calibration tokens" else "magnitude"  # which reads none
    line = pick(lines, label, 0.5)
    edit(line)
    with pytest.raises(RecordsError, match=condition) as refusal:
        made(tmp_path, lines)
    named = [other["identity"] for other in lines if other["identity"] in str(refusal.value)]
    assert len(named) == 2
    assert line["identity"] in named


def test_dense_depends_neither_on_calibration_nor_on_the_token_policy(lines: list[Record], tmp_path: Path) -> None:
    dense = pick(lines, "dense", 0.0)
    dense["config"]["token_policy"] = {"kind": "skip_first_n", "n": 1, "fraction": 1.0}
    dense["data"]["calibration"] = {"sha256": "0"}
    assert made(tmp_path, lines).dense.identity == dense["identity"]


def test_one_setting_has_one_result(lines: list[Record], tmp_path: Path) -> None:
    line = pick(lines, LAROSA, 0.4)
    again = copy.deepcopy(line) | {"identity": "again", "created": "2101-01-01T00:00:00+00:00"}
    assert "again" in {entry.identity for entry in made(tmp_path, [*lines, again]).entries}
    again["metrics"]["perplexity"]["text"]["block_nll_nats"][0] += 1
    with pytest.raises(RecordsError, match=rf"{line['identity']}.*again.*one name but not one result"):
        made(tmp_path, [*lines, again])


def test_a_text_that_one_record_lacks_is_refused_or_left_out(lines: list[Record], tmp_path: Path) -> None:
    line = pick(lines, LAROSA, 0.4)
    for place in (line["metrics"]["perplexity"], line["metrics"]["achieved_sparsity"], line["data"]["texts"]):
        del place["other"]
    with pytest.raises(RecordsError, match=rf"{line['identity']}.* was not measured on other"):
        made(tmp_path, lines)
    assert load([save(tmp_path / "records.jsonl", lines)], ["text"])[1] == ["text"]


@pytest.mark.parametrize(("missing", "asked"), [("dense", 0.0), ("magnitude", 0.5), ("magnitude", None)])
def test_a_missing_comparator_is_named_with_its_command(
    lines: list[Record], tmp_path: Path, missing: str, asked: float | None
) -> None:
    kept = [
        line for line in lines
        if line["label"] != missing or asked not in (None, line["metrics"]["accounting"]["target_sparsity"])
    ]  # fmt: skip
    for line in kept:
        del line["config"]["texts"]["other"]  # of no group of conf/texts
    with pytest.raises(RecordsError, match=f"no {missing} record") as refusal:
        made(tmp_path, kept, [0.4, 0.5])
    python, script, *overrides = shlex.split(str(refusal.value).split("Make it: ")[1])
    config = parse(*overrides)
    assert (python, script, config.method.label) == ("python", "run.py", missing)
    assert config.sparsity == (0.5 if asked else asked if asked is not None else 0.4)
    expected = kept[-1]["config"]
    for section in ("model", "calibration", "texts", "token_policy", "seed"):
        assert config.model_dump(mode="json")[section] == expected[section]
    assert config.evaluation.perplexity.max_tokens == 1024


def uneven(lines: list[Record]) -> None:
    """Let magnitude and larosa at 50 % lose in every block, but not the same in each."""
    generator, dense = np.random.default_rng(2), pick(lines, "dense", 0.0)
    for text in TEXTS:
        own = np.array(dense["metrics"]["perplexity"][text]["block_nll_nats"])
        other = own + generator.uniform(5, 15, len(own))
        larosa = own + 0.6 * (other - own) + generator.uniform(0, 3, len(own))
        for label, schedules, nats in (
            ("magnitude", ("official", "uniform", "file"), other),
            (LAROSA, ("official", "uniform"), larosa),
        ):
            for schedule in schedules:
                pick(lines, label, 0.5, schedule)["metrics"]["perplexity"][text]["block_nll_nats"] = nats.tolist()


def test_the_interval_is_a_paired_bootstrap_s(lines: list[Record], tmp_path: Path) -> None:
    uneven(lines)
    rows = made(tmp_path, lines, [0.5])
    row = standing(rows, 0.5, "weight sparsity", LAROSA)
    entries = (rows.dense, rows.reference[0.5], row.entry)
    generator, ratios = np.random.default_rng(1), []
    for _ in range(2000):
        by_text = []
        for text in TEXTS:
            picks = generator.integers(16, size=16)
            dense, other, own = (math.exp(sum(e.nll[text][i] for i in picks) / (16 * 63)) for e in entries)
            by_text.append((own - dense) / (other - dense))
        ratios.append(sum(by_text) / len(by_text))
    low, high = np.quantile(ratios, [0.025, 0.975])
    found, near = row.compared.mean, 0.1 * (high - low)
    assert (found.low, found.high) == (pytest.approx(low, abs=near), pytest.approx(high, abs=near))
    assert low < found.value < high
    assert f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] |" in markdown(rows)


def test_every_text_draws_its_own_blocks_and_the_same_each_time() -> None:
    counts = draws("text", 16)
    assert counts.shape == (2001, 16)
    assert (counts.sum(1) == 16).all()
    assert (counts[0] == 1).all()
    assert (counts == draws("text", 16)).all()
    assert (counts != draws("other", 16)).any()


def test_dense_reference_and_method_share_their_blocks(lines: list[Record]) -> None:
    dense, own, other = pick(lines, "dense", 0.0), pick(lines, LAROSA, 0.4), pick(lines, "magnitude", 0.4)
    lose(other, dense, {"text": 1.5, "other": 1.5})
    lose(own, dense, {"text": 1.2, "other": 1.2})
    found = Increases(Entry.of(dense), TEXTS)
    mean = found.ratio(Entry.of(own), Entry.of(other)).mean
    assert (mean.value, mean.low, mean.high) == (pytest.approx(0.4),) * 3


def test_a_reference_that_may_not_lose_gives_no_interval(lines: list[Record]) -> None:
    dense, own, other = pick(lines, "dense", 0.0), pick(lines, LAROSA, 0.4), pick(lines, "magnitude", 0.4)
    lose(other, dense, {"text": 1.5, "other": 1.5})
    nats = other["metrics"]["perplexity"]["text"]["block_nll_nats"]
    nats[0] -= 300
    mean = Increases(Entry.of(dense), TEXTS).ratio(Entry.of(own), Entry.of(other)).mean
    assert (mean.low, mean.high) == (None, None)
    assert interval(mean) == f"{mean.value:.2f} [-]"
    nats[0] -= 1000
    with pytest.raises(RecordsError, match="does not lose against dense on text"):
        Increases(Entry.of(dense), TEXTS).ratio(Entry.of(own), Entry.of(other))


def prepared(lines: list[Record], ratio: dict[str, float]) -> list[Record]:
    """Only official schedules; larosa at 40 % loses `ratio` of magnitude's tenth."""
    kept = [line for line in lines if line["config"]["schedule"]["name"] == "official"]
    dense = pick(kept, "dense", 0.0)
    lose(pick(kept, "magnitude", 0.4), dense, dict.fromkeys(TEXTS, 1.1))
    lose(pick(kept, LAROSA, 0.4), dense, {text: 1 + 0.1 * ratio[text] for text in TEXTS})
    return kept


@pytest.mark.parametrize(
    ("text", "other", "holds"), [(0.6, 0.69, True), (0.5, 0.71, False), (0.8, 0.9, False), (0.71, 0.72, False)]
)
def test_bar_a_wants_the_mean_and_two_thirds_of_the_texts(
    lines: list[Record], tmp_path: Path, text: float, other: float, holds: bool
) -> None:
    rows = made(tmp_path, prepared(lines, {"text": text, "other": other}), [0.4])
    verdict, net = verdicts(rows)
    assert (verdict.criterion, verdict.met) == ("a", holds)
    assert verdict.best is not None
    assert verdict.best.compared.mean.value == pytest.approx((text + other) / 2)
    said = f"* 40 % {'met' if holds else 'not met'}: {LAROSA} (overhead "
    assert said in markdown(rows)
    assert (net.criterion, net.best, net.met) == ("b", None, False)
    assert "* 40 % not met: no such larosa record" in markdown(rows)


def test_bar_a_allows_one_adapter_a_layer_and_bar_b_takes_net_bytes(lines: list[Record], tmp_path: Path) -> None:
    kept = prepared(lines, {"text": 0.5, "other": 0.5})
    record = pick(kept, LAROSA, 0.4)
    counted = record["metrics"]["accounting"]
    one = adapter_fraction(record)
    assert one == pytest.approx(1.5 * counted["overhead_fraction"])  # two adapters in three layers
    counted["overhead_fraction"] = one
    assert verdicts(made(tmp_path, kept, [0.4]))[0].met
    counted["overhead_fraction"] = one * 1.01
    verdict, _ = verdicts(made(tmp_path, kept, [0.4]))
    assert (verdict.best, verdict.met) == (None, False)
    assert verdict.over_budget is not None
    assert f"With larger overhead: {LAROSA}" in markdown(made(tmp_path, kept, [0.4]))
    for found in record["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] = 0.4 + one * 1.01
    _, net = verdicts(made(tmp_path, kept, [0.4]))
    assert net.met
    counted["overhead_fraction"] = 0.0
    for found in record["metrics"]["achieved_sparsity"].values():
        found["weight_sparsity_mean"] = 0.4
    assert [verdict.met for verdict in verdicts(made(tmp_path, kept, [0.4]))] == [True, True]


def test_the_gain_of_a_searched_schedule(lines: list[Record], tmp_path: Path) -> None:
    dense = pick(lines, "dense", 0.0)
    for schedule, factor in (("official", 1.4), ("uniform", 1.2), ("file", 1.15)):
        lose(pick(lines, "magnitude", 0.5, schedule), dense, dict.fromkeys(TEXTS, factor))
    (gain,) = gains(made(tmp_path, lines))
    assert (gain.label, gain.target, gain.searched.schedule, gain.given.schedule) == (
        "magnitude", 0.5, "mine.json", "uniform",
    )  # fmt: skip
    assert (gain.gain.value, gain.gain.low, gain.gain.high) == (pytest.approx(0.25),) * 3
    assert "| magnitude | 50 | mine.json | uniform | 25.0 [25.0, 25.0] |" in markdown(made(tmp_path, lines))


def test_extras_at_the_proportions_of_llama2_7b(lines: list[Record]) -> None:
    record = pick(lines, LAROSA, 0.4)
    counted = record["metrics"]["accounting"]
    stated = counted.pop("overhead_fraction_llama2_7b")
    assert overhead_at_llama2_7b(record) == pytest.approx(stated)
    assert stated == pytest.approx(2 / 3 * 4096**2 / (4 * 4096**2 + 3 * 4096 * 11008))
    counted["overhead"]["kind"] = "low-rank remainders, rank 1"
    assert overhead_at_llama2_7b(record) is None
    counted["overhead_fraction_llama2_7b"] = 0.03
    assert overhead_at_llama2_7b(record) == 0.03
    assert overhead_at_llama2_7b(pick(lines, "magnitude", 0.4)) == 0


def test_the_summary_states_its_conditions(lines: list[Record], tmp_path: Path) -> None:
    table = summary(made(tmp_path, lines, [0.4, 0.5]))
    assert table.startswith("tiny-llama, float32. Calibrated on 512 tokens of text;")
    for condition in ("token policy: all", "seed 0", "torch ", "commit ", "blocks of 64", "Dense perplexity: other "):
        assert condition in table


def test_table_csv_and_figure_are_written(lines: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        str(save(tmp_path / "r.jsonl", lines)),
        "--out",
        str(out),
        "--tolerance",
        "0.006",
        "--targets",
        "0.5,0.4",
    ]
    assert methods.main(command) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"methods.md", "methods.csv", "methods.png"}
    assert first["methods.png"].startswith(b"\x89PNG")
    table = list(csv.DictReader(first["methods.csv"].decode().splitlines()))
    assert {(row["target"], row["method"]) for row in table} >= {("0.4", LAROSA), ("0.5", LAROSA)}
    assert sum(row["method"] == "magnitude" and row["target"] == "0.5" for row in table) == 3
    assert methods.main(command) == 0
    assert first == {path.name: path.read_bytes() for path in out.iterdir()}


def test_analysis_imports_of_larosa_the_records_alone() -> None:
    code = (
        "import sys, larosa_analysis.build, larosa_analysis.comparison.methods, larosa_analysis.compact;"
        "print(*(name for name in sys.modules if name.partition('.')[0] in ('torch', 'larosa', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "larosa.records.checksum" in loaded
    light = {"larosa", "larosa.errors", "larosa.commands", "larosa.exports", "larosa.exports.transformers_hook"}
    assert not {name for name in loaded - light if not name.startswith("larosa.records")}


def test_the_defaults_of_a_recorded_method_are_those_of_its_settings() -> None:
    for name, config in zip(METHOD_NAMES, METHOD_CONFIGS, strict=True):
        held = method_of({"method": {"name": name, "preset": name}})
        optional = {key: field for key, field in config.model_fields.items() if not field.is_required()}
        expected = {key: field.get_default() for key, field in optional.items()}
        assert {key: held[key] for key in expected} == expected | {
            key: list(value) for key, value in expected.items() if isinstance(value, tuple)
        }
        assert set(held) == set(MethodConfig.model_fields)
