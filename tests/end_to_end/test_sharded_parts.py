"""What a sharded student can be trained with: each gives what one process gives.

The processes also note which models they run, in order: runs of sharded models are collective.
"""

import os

import pytest
import tiny
import torch
from several import several
from sharded_runs import CE, KL, TEACHER, outcome, recipe, train

from kdcore.models.causal_lm import LanguageModel

pytestmark = pytest.mark.slow

PROCESSES, STEPS = 2, 3
SHARD = 'shard = "full"'
MEMBER = f'use = "hf", model = "TEACHER", {SHARD}'
WRITES = """
[rollout]
use = "student"
max_new_tokens = 8
share = 0.4
prompt_tokens = 4
write_batch = 2
"""


def nested(head, *members):
    """A teacher with sharded members."""
    inner = ", ".join(f"{{{MEMBER}{more}}}" for more in members)
    return f'\n[teacher]\n{head.replace("MEMBERS", inner)}\n\n[[loss]]\nuse = "kl"\n'


CASES = {
    "uneven": (KL, {"batch": 5, "micro_batch": 1}),
    "whole-student": (KL, {"shard_student": "none"}),
    "self": (f'\n[teacher]\nuse = "self"\n{CE}[[loss]]\nuse = "kl"\n', {}),
    "ema": (
        f'\n[teacher]\nuse = "ema"\ndecay = 0.5\n{CE}[[loss]]\nuse = "kl"\n',
        {"tie_word_embeddings": "true"},
    ),
    "ensemble": (nested('use = "ensemble"\nmembers = [MEMBERS]', "", ", dtype = 'fp32'"), {}),
    "routed": (
        nested('use = "routed"\nmembers = [MEMBERS]', ', where = {source = "student"}', "")
        + WRITES,
        {},
    ),
    "cached": (
        nested('use = "cached"\nkind = "topk"\nk = 8\nteacher = MEMBERS', "")
        + '\n[[eval]]\nuse = "agreement"\n',
        {"batch": 5, "micro_batch": 1},
    ),
    "windows": (
        nested('use = "cached"\nkind = "topk"\nk = 8\ncontext = "document"\nteacher = MEMBERS', ""),
        {},
    ),
    "hidden": (
        TEACHER + '\n[[loss]]\nuse = "hidden-mse"\nlayers = [[0, 1], [-1, -1]]\n'
        'projection = "linear"\n\n[[loss]]\nuse = "kl"\n',
        {},
    ),
    "rollout": (KL + WRITES, {"batch": 5}),
    "samples": (CE + '\n[[eval]]\nuse = "samples"\nmax_new_tokens = 6\n', {}),
    "lora": (KL + '\n[[student.patch]]\nuse = "lora"\nrank = 2\n', {}),
    "bf16": (CE, {"precision": '"bf16"'}),
    **{each: (CE, {"optimizer": f'"{each}"'}) for each in ("sgd", "adagrad", "nadam")},
    "no-clip": (CE, {"clip": 0.0}),
}
APART = {"bf16": 0.05}  # the two round differently


def text_of(teacher, name):
    objective, options = CASES[name]
    options = dict(options)
    student = options.pop("shard_student", "full")
    every = {"steps": STEPS, "eval_every": STEPS, "save_every": STEPS}
    text = recipe(teacher, objective, name, SHARD, **(every | options))
    return text.replace('[train]\nshard = "full"', f'[train]\nshard = "{student}"')


def watched(rank, folder, texts):
    """The runs of models, in order, of each recipe: in each process."""
    seen, known, run = [], [], LanguageModel._runs

    def noting(model, *arguments, **named):
        if model.sharded:
            known.extend([model] * (model not in known))
            seen.append(known.index(model))
        return run(model, *arguments, **named)

    LanguageModel._runs = noting
    found = []
    for n, text in enumerate(texts):
        seen.clear()
        known.clear()
        place = folder / str(n)
        place.mkdir(exist_ok=True)
        train(rank, place, [text])
        found.append(list(seen))
        os.chdir("/")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of one and of two processes, and what each of the two ran."""
    teacher = tmp_path_factory.mktemp("teacher")
    tiny.save(teacher)
    texts = [text_of(teacher, name) for name in CASES]
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    several(1, watched, one, texts)
    return one, two, several(PROCESSES, watched, two, texts)


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_student_learns_the_same(trained, name):
    place = str(list(CASES).index(name))
    weights, records = outcome(trained[0] / place, name)
    found, told = outcome(trained[1] / place, name)
    assert weights.keys() == found.keys()
    for key, weight in weights.items():
        assert found[key].dtype == weight.dtype
        torch.testing.assert_close(found[key], weight, rtol=0, atol=APART.get(name, 1e-5))
    for each, expected in zip(told, records, strict=True):
        assert each.get("loss") == pytest.approx(expected.get("loss"), abs=APART.get(name, 1e-5))
        assert each.get("sample/1") == expected.get("sample/1")


@pytest.mark.parametrize("name", CASES)
def test_every_process_runs_sharded_models_equally_often_in_the_same_order(trained, name):
    one, other = (seen[list(CASES).index(name)] for seen in trained[2])
    assert one == other
    assert one


def test_no_run_is_skipped_or_doubled(trained):
    """Of 5 rows, one at a time, the second process has 3: each runs 3, with an empty one."""
    (runs, _) = (seen[list(CASES).index("uneven")] for seen in trained[2])
    student, teacher = runs.count(0), runs.count(1)
    evaluations = 3  # 5 rows here too, and both models read them
    proofs = runs.index(1)  # the student is loaded, and proved, first
    assert student == proofs + STEPS * 3 + evaluations
    assert teacher == student  # a model of the same kind
