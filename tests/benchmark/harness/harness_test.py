"""Another evaluation harness reads the exported model, and comes to the same figure on the same problems."""

import json
import os
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from tests.benchmark.battery import exact_match
from tests.benchmark.cells import ARITHMETIC_FULL
from tests.benchmark.measure import measure
from tests.benchmark.runs import run
from tests.benchmark.tasks.arithmetic import ARITHMETIC, HELD_OUT_SEED, NUM_HELD_OUT, arithmetic_data, sums

STEPS = ("--num-steps", "300")
"""Half of the cell's: a model that gets some right and some wrong, so that agreement says something."""

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{total}}"
generation_kwargs: {until: [], do_sample: false, max_gen_toks: LIMIT}
filter_list:
  - name: total
    filter:
      - {function: regex, regex_pattern: ':(\\d+)$'}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
"""The harness' own way to say what the task is: a file of problems, the chat template, a pattern for the answer."""


def test_lm_eval_and_the_battery_agree_on_the_exported_model(tmp_path: Path) -> None:
    run(ARITHMETIC_FULL, 0, tmp_path / "out", target=os.environ["TEST_TARGET"], extra=STEPS)
    model = tmp_path / "out" / "run" / "model"
    ours = exact_match(measure(model, ARITHMETIC, arithmetic_data(0), samples=False).scores)

    lines = [
        {"question": each.question, "total": str(each.a + each.b)} for each in sums(NUM_HELD_OUT, seed=HELD_OUT_SEED)
    ]
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = TASK.replace("FILE", str(problems)).replace("LIMIT", str(ARITHMETIC.num_new_tokens_max))
    (folder / "sums.yaml").write_text(task, encoding="utf-8")
    found: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "device": "cpu", "dtype": "float32", "max_length": 256},
        tasks=["sums"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        batch_size=64,
        bootstrap_iters=0,
    )
    assert found["results"]["sums"]["sample_len"] == len(lines)
    theirs = found["results"]["sums"]["exact_match,total"]
    assert 0.0 < ours < 1.0
    # Batches are cut otherwise there, so a near tie between two tokens may fall the other way.
    assert abs(theirs - ours) <= 2 / len(lines), (ours, theirs)
