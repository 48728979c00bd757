"""lm-eval's seconds for the tasks of benchmarks/evaluate.py, in a process of its own, which that program starts.

Tasks are the same JSONL files with the same prompts and candidates, as local multiple-choice tasks. Imports, model and
data come before the clock starts. One JSON object on the last line of stdout says what was measured.
"""

import json
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

LARGEST_BATCH = 64
SETTINGS = {"bootstrap_iters": 0, "log_samples": False}
"""Standard errors by bootstrap and a log of samples are not asked of Retain either."""

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer_index}}}}"
target_delimiter: " "
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def measured(lm: HFLM, name: str, manager: TaskManager) -> dict[str, float]:
    """Seconds of `evaluate`: of `simple_evaluate` without loading the task, looking up git and the environment."""
    loaded = manager.load([name])
    begun, cpu = time.perf_counter(), time.process_time()
    evaluate(lm=lm, task_dict=loaded, **SETTINGS)
    return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}


def answers(lm: HFLM, name: str, manager: TaskManager) -> dict[str, Any]:
    """Nats of each candidate of each item, in the order of the file, and lm-eval's own accuracy."""
    found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    nats = [[-float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return {"nats": nats, "accuracy": found["results"][name]["acc,none"]}


def main() -> None:
    """Command line of one measurement."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=Path, nargs="+", required=True)
    parser.add_argument("--batch-sizes", nargs="+", required=True, help="for each file, those to try, as 16,64,auto")
    parser.add_argument("--answers", action="store_true", help="run once more, for the answers")
    parser.add_argument("--folder", type=Path, required=True, help="where the tasks are written")
    options = parser.parse_args()
    for file in options.files:
        (options.folder / f"{file.stem}.yaml").write_text(TASK.format(name=file.stem, file=file), encoding="utf-8")
    manager = TaskManager(include_path=str(options.folder), include_defaults=False)
    result: dict[str, Any] = {}
    for file, sizes in zip(options.files, options.batch_sizes, strict=True):
        runs = {}
        for size in sizes.split(","):
            batch_size = size if size == "auto" else int(size)
            lm = HFLM(
                pretrained=str(options.model),
                device="cpu",
                dtype="float32",
                batch_size=batch_size,
                max_batch_size=LARGEST_BATCH,
            )
            simple_evaluate(lm, tasks=[file.stem], task_manager=manager, limit=4, **SETTINGS)  # warms up
            runs[size] = measured(lm, file.stem, manager)
        result[file.stem] = {"runs": runs, **(answers(lm, file.stem, manager) if options.answers else {})}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
