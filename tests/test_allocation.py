"""Equal marginal error: exact at the target, better than uniform, honest on curves that are not convex."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_config import parse
from test_pipeline import overrides  # noqa: F401

from larosa import allocate as command
from larosa.cells import plan_cells
from larosa.pipeline import run
from larosa.sparsity.allocation import AllocationError, allocate

GRID = np.linspace(0, 0.9, 10)


def total(curves: np.ndarray, levels: np.ndarray) -> float:
    return sum(float(np.interp(levels[p], GRID, curves[p])) for p in np.ndindex(*levels.shape))


def test_target_is_met_and_no_exchange_helps() -> None:
    random = np.random.default_rng(0)
    curves = random.uniform(0.1, 3, (4, 3, 1)) * GRID ** random.uniform(1.2, 4, (4, 3, 1))
    weights = np.array([1.0, 3.0, 2.0])
    levels = allocate(curves, GRID, weights, 0.5)
    assert float((levels * weights).sum() / (4 * weights.sum())) == pytest.approx(0.5)
    best = total(curves, levels)
    assert best < total(curves, np.full((4, 3), 0.5))
    for _ in range(300):
        a, b = (tuple(random.integers((4, 3))) for _ in range(2))
        moved = levels.copy()
        moved[a] += 0.03 / weights[a[1]]
        moved[b] -= 0.03 / weights[b[1]]
        if a != b and moved[b] >= 0 and moved[a] <= 0.9:
            assert total(curves, moved) >= best - 1e-12


def test_a_curve_with_a_bump_is_crossed_not_climbed() -> None:
    bump = np.array([0.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.3])
    line = 2.5 * GRID
    levels = allocate(np.stack([bump, line])[None], GRID, np.ones(2), 0.45)
    assert levels[0].tolist() == pytest.approx([0.9, 0.0])


def test_a_target_beyond_the_grid_is_refused() -> None:
    with pytest.raises(AllocationError, match="needs more"):
        allocate(np.zeros((1, 1, 10)), GRID, np.ones(1), 0.95)


@pytest.mark.parametrize("method", ["magnitude", "larosa", "larosa/output_aware"])
def test_the_command_writes_a_schedule_that_runs_use(method: str, overrides: list[str], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "mine.json"
    more = [f"method={method}", "method.transform_storage=model", "sparsity=0.5", "baseline=none"]
    command.run(parse(*overrides, *more, f"schedule.path={path}"))
    content = json.loads(path.read_text())
    assert content["layers"] == 3
    chosen = [*overrides, *more, "schedule=file", f"schedule.path={path}"]
    levels = list(plan_cells(parse(*chosen)).values())[-1].levels
    assert len({round(level, 6) for level in levels.level["h4"]}) > 1
    record = list(run(parse(*chosen)).values())[-1]
    assert record["metrics"]["accounting"]["level_byte_weighted"] == pytest.approx(0.5, abs=0.01)
    assert "mine.json" in record["metrics"]["accounting"]["coefficients"]
