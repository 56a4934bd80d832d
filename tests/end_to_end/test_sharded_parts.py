"""What a sharded student can be trained with: each gives what one process gives.

The processes also note which models they run, in order: runs of sharded models are collective.
"""

import os
from itertools import chain

import pytest
import tiny
import torch
from several import several
from sharded_runs import CE, KL, TEACHER, note_collectives, outcome, recipe, train

from kdcore.models.causal_lm import LanguageModel

pytestmark = pytest.mark.slow

PROCESSES, STEPS = 2, 3
AT_ONCE = 6  # recipes of the same processes
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


SELECTED = KL + '\n[selection]\nuse = "hardest"\nkeep = 0.5\n'
ALIGNED = f'\n[teacher]\nuse = "aligned"\nteacher = {{{MEMBER}}}\n\n[[loss]]\nuse = "gold"\n'
STATES = (
    TEACHER
    + '\n[[loss]]\nuse = "hidden-mse"\nlayers = [[0, 1], [-1, -1]]\n'
    + 'projection = "linear"\n\n[[loss]]\nuse = "kl"\n'
)
CASES = {
    "even": (KL, {"batch": 6, "micro_batch": 1, "validation": 6, "eval_rows": 6}),
    "uneven": (KL, {"batch": 5, "micro_batch": 1}),
    "one-row": (STATES, {"batch": 1, "eval_rows": 1}),
    "selection": (SELECTED, {"batch": 3, "micro_batch": 1}),
    "aligned": (ALIGNED, {"batch": 3, "eval_rows": 3}),
    "best": (CE, {"keep_best": '"eval/nll"', "eval_every": 1}),
    "acceptance": (
        KL + '\n[[eval]]\nuse = "acceptance"\ncontexts = 5\ndraft_length = 2\n',
        {"eval_rows": 1},
    ),
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
    "hidden": (STATES, {}),
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
    """The runs of models and the collective calls, in order, of each recipe: in each process."""
    seen, known, run, calls = [], [], LanguageModel._runs, note_collectives()

    def noting(model, *arguments, **named):
        if model.sharded:
            known.extend([model] * (model not in known))
            seen.append(known.index(model))
        return run(model, *arguments, **named)

    LanguageModel._runs = noting
    found = []
    for n, text in texts.items():
        seen.clear()
        known.clear()
        calls.clear()
        place = folder / str(n)
        place.mkdir(exist_ok=True)
        train(rank, place, [text])
        found.append((list(seen), list(calls)))
        os.chdir("/")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of one and of two processes, and what each of the two ran."""
    teacher = tmp_path_factory.mktemp("teacher")
    tiny.save(teacher)
    texts = [text_of(teacher, name) for name in CASES]
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    seen = []
    for at in range(0, len(texts), AT_ONCE):
        some = dict(enumerate(texts[at : at + AT_ONCE], at))
        several(1, watched, one, some)
        seen.append(several(PROCESSES, watched, two, some))
    return one, two, [list(chain.from_iterable(each)) for each in zip(*seen, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_student_learns_the_same(trained, name):
    place = str(list(CASES).index(name))
    weights, records = outcome(trained[0] / place, name)
    found, logged = outcome(trained[1] / place, name)
    assert weights.keys() == found.keys()
    for key, weight in weights.items():
        assert found[key].dtype == weight.dtype
        torch.testing.assert_close(found[key], weight, rtol=0, atol=APART.get(name, 1e-5))
    for each, expected in zip(logged, records, strict=True):
        assert each.get("loss") == pytest.approx(expected.get("loss"), abs=APART.get(name, 1e-5))
        assert each.get("sample/1") == expected.get("sample/1")


def of(trained, name):
    """What both processes ran and called."""
    return [seen[list(CASES).index(name)] for seen in trained[2]]


@pytest.mark.parametrize("name", CASES)
def test_every_process_makes_the_same_collective_calls_in_the_same_order(trained, name):
    (runs, calls), (others, other_calls) = of(trained, name)
    assert runs == others
    assert runs
    assert calls == other_calls


def test_no_run_is_skipped_or_doubled(trained):
    """Of 5 rows, one at a time, the second process has 3: each runs 3, with an empty one."""
    (runs, _), _ = of(trained, "uneven")
    student, teacher = runs.count(0), runs.count(1)
    evaluations = 3  # 5 rows here too, and both models read them
    proofs = runs.index(1)  # the student is loaded, and proved, first
    assert student == proofs + STEPS * 3 + evaluations
    assert teacher == student  # a model of the same kind


def test_no_collective_call_is_skipped_or_doubled(trained):
    """With 5 rows, two processes make the calls that they make with 6: an empty row fills up."""
    uneven, even = ([name for name, *_ in of(trained, each)[0][1]] for each in ("uneven", "even"))
    assert uneven == even
    # Two layers and the embeddings in each of 3 backward passes, the head and the norm in the last.
    assert len([name for name in even if name.startswith("reduce_scatter")]) == STEPS * (3 * 3 + 1)
