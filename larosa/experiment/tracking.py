"""Weights & Biases, one run for each call of `run.py`: everything on disk comes first and is complete without."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from larosa.config.run import RunConfig
from larosa.experiment.results import Record

log = logging.getLogger(__name__)


class Tracker:
    """A W&B run that is always closed; with `tracking.mode=off` it does nothing.

    A run that found all its records done (`measured` false) logs them again only to the online service.
    """

    def __init__(self, config: RunConfig, name: str, measured: bool) -> None:
        self._run: Any = None
        if config.tracking.mode == "off" or (config.tracking.mode == "offline" and not measured):
            return
        import wandb

        folder = Path(config.output).expanduser()
        try:
            self._run = wandb.init(
                project=config.tracking.project,
                entity=config.tracking.entity,
                group=config.tracking.group,
                name=name,
                mode=config.tracking.mode,
                dir=str(folder),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )
        except (wandb.Error, OSError) as error:
            log.warning("W&B could not start (%s); the records on disk are complete without it", error)

    def log(self, records: dict[str, Record], table: list[dict[str, Any]], figures: list[Path]) -> None:
        """Log every scalar metric under its method, the comparison as a table, the figures as images."""
        if self._run is None:
            return
        import wandb

        for name, record in records.items():
            self._run.summary.update({f"{name}/{key}": value for key, value in scalars(record["metrics"]).items()})
            if caveat := record["metrics"].get("speed", {}).get("caveat"):
                self._run.summary.update({f"{name}/speed/caveat": caveat})
        columns = list(dict.fromkeys(key for row in table for key in row))
        rows = [[row.get(column) for column in columns] for row in table]
        images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
        self._run.log({"comparison": wandb.Table(columns=columns, data=rows), **images})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)


def scalars(tree: Any, prefix: str = "") -> dict[str, float]:
    """All numbers of a nested record by their path, `a/b/c`; lists are omitted."""
    if isinstance(tree, dict):
        numbers: dict[str, float] = {}
        for key, value in tree.items():
            numbers |= scalars(value, f"{prefix}/{key}" if prefix else str(key))
        return numbers
    return {prefix: tree} if isinstance(tree, int | float) and not isinstance(tree, bool) else {}
