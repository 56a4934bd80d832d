"""A task of our own gives the numbers that can be had by hand, and no task is asked for in vain."""

import json

import pytest
from kdcore_lm_eval import LmEval

from kdcore import RunError

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
DOCUMENTS = [
    {"question": "The sky is", "choices": ["blue", "a loud noise"], "answer": 0},
    {"question": "Grass is", "choices": ["a day of the week", "green"], "answer": 1},
    {"question": "Snow is", "choices": ["white", "seven"], "answer": 0},
]


@pytest.fixture
def folder(tmp_path):
    file = tmp_path / "colours.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    (tmp_path / "colours.yaml").write_text(TASK.format(file=file))
    return tmp_path


def by_hand(run):
    """The share of documents whose right answer the student finds likeliest."""
    right = 0
    for document in DOCUMENTS:
        rows = []
        for choice in document["choices"]:
            asked = run.tokenizer(document["question"], add_special_tokens=False)["input_ids"]
            whole = run.tokenizer(f"{document['question']} {choice}", add_special_tokens=False)
            ids = whole["input_ids"]
            labels = [-100] * len(asked) + ids[len(asked) :]
            rows.append({"input_ids": ids, "labels": labels})
        sums = run.log_likelihoods(rows)
        right += sums.index(max(sums)) == document["answer"]
    return right / len(DOCUMENTS)


def test_accuracy_is_that_of_log_likelihoods(kdcore_run, folder):
    scores = LmEval(tasks=["colours"], folder=str(folder)).measure(kdcore_run)
    assert scores == {"lm-eval/colours/acc": pytest.approx(by_hand(kdcore_run))}


def test_a_limit_takes_the_first(kdcore_run, folder):
    one = LmEval(tasks=["colours"], folder=str(folder), limit=1).measure(kdcore_run)
    assert one["lm-eval/colours/acc"] in (0.0, 1.0)


def test_a_task_that_is_not_there_ends_the_run_before_it_trains(folder):
    with pytest.raises(RunError, match="no task 'colors' nor a file"):
        LmEval(tasks=["colors"], folder=str(folder)).kdcore_run_start()


def test_a_folder_that_is_not_there(folder):
    (error,) = LmEval(tasks=["colours"], folder=str(folder / "none")).faults(None)
    assert "no folder" in error


def test_the_eval_keeps_the_contract(kdcore_check, folder):
    kdcore_check(LmEval(tasks=["colours"], folder=str(folder)))
