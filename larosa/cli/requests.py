"""Record lm-eval's requests of a run's tasks in a file, to score them on machines without lm-eval.

    larosa requests tasks.json.gz model=llama3-8b evaluation=full evaluation.zero_shot.examples=500
    larosa run model=llama3-8b evaluation=full evaluation.zero_shot.examples=500 \\
        evaluation.zero_shot.requests=tasks.json.gz

Both take the same settings. The model's weights are not read. See :mod:`larosa.evaluation.tasks.requests`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from larosa import models
from larosa.cli.command import arguments, fail, read_settings
from larosa.commands import typed
from larosa.config.run import ConfigError, RunConfig
from larosa.data.texts import load_documents
from larosa.errors import LarosaError
from larosa.evaluation.tasks.recording import record
from larosa.evaluation.tasks.zero_shot import check_reader, check_tasks
from larosa.experiment.results import excluded_by, passages_text

log = logging.getLogger(__name__)


def write_requests(config: RunConfig, path: Path) -> Path:
    """Write the requests of the run's tasks. Raises LarosaError."""
    tasks = config.evaluation.zero_shot.model_copy(update={"requests": None})
    if not tasks.tasks:
        raise ConfigError("evaluation.zero_shot.tasks is empty: name the tasks to record")
    check_tasks(tasks, config.seed)
    excluded = excluded_by(config)
    text = passages_text(config)
    passages = load_documents(text) if excluded and text else []
    shape, tokenizer = models.model_config(config.model), models.load_tokenizer(config.model)
    check_reader(tasks, config.seed, excluded, tokenizer, shape.max_position_embeddings)
    requests = record(tasks, tokenizer, shape, config.seed, excluded, passages)
    path.parent.mkdir(parents=True, exist_ok=True)
    requests.write(path)
    counts = ", ".join(f"{name} {len(task.document_ids)}" for name, task in requests.tasks.items())
    log.info("%.2f MB: %s examples", path.stat().st_size / 1e6, counts)
    return path


def main() -> None:
    """The file, then overrides as `run` takes them."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments("requests")
    try:
        if not words or "=" in words[0]:
            raise ConfigError(f"name the file first: {typed('requests')} tasks.json.gz [overrides]")
        log.info("wrote %s", write_requests(read_settings(words[1:]), Path(words[0]).expanduser()))
    except (LarosaError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
