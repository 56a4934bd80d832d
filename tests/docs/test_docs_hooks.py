"""docs/hooks.md has every hook with its exact signature, and every example in it works."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from documents import Snippet, headings, snippets

from kdcore import Completion, Component, Record
from kdcore.api import hookspecs
from kdcore.plugin.manager import PluginManager
from kdcore.plugin.validation import EVENTS, PROVIDERS
from kdcore.testing import check_executor, check_loss, check_rollout, check_selection, check_teacher
from kdcore.testing.fakes import TableTeacher, make_batch, tiny_llama
from kdcore.testing.rollouts import WritingRun, make_prompts

pytestmark = pytest.mark.slow

HOOKS = {*EVENTS, *PROVIDERS}
SNIPPETS = snippets("hooks.md")


def signature(hook: str) -> str:
    # The annotations are texts, which inspect shows in quotes.
    return f"`{hook}{inspect.signature(getattr(hookspecs, hook))}`".replace("'", "")


def hook_of(snippet: Snippet) -> str:
    return snippet.heading.strip("`").partition("(")[0]


def test_every_hook_has_a_heading_with_its_signature():
    assert set(headings("hooks.md")[1:]) == {signature(hook) for hook in HOOKS}


def test_every_hook_has_one_example():
    assert sorted(map(hook_of, SNIPPETS)) == sorted(HOOKS)
    assert {snippet.language for snippet in SNIPPETS} == {"python"}


def check_data(data, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {n}" for n in range(40)))
    train, validation = (list(data.texts(split)) for split in ("train", "validation"))
    assert len(train) == 38 and validation == ["line 0", "line 20"]


def check_tokenizer(tokenizer, tmp_path):
    data = SimpleNamespace(texts=lambda split: ["one\ntwo", "öne"])
    tokenizer.load(None, data).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tmp_path)
    assert len(made) == 2 + len(set("one\ntwoö")) and made.eos_token_id == 0
    assert made.decode(made.encode("two\nöne")) == "two\nöne"
    assert made.encode("x") == [1]


def check_loaded_teacher(teacher, tmp_path):
    rows = [{"input_ids": [1, 2, 2, 3]}]
    teacher.load(SimpleNamespace(vocabulary=64, device="cpu", rows=lambda split: rows))
    batch = make_batch([[1, 2, 3], [4, 3]])
    check_teacher(teacher, batch)
    assert teacher.read(batch)(torch.tensor([0])).argmax() == 2


def check_patch(patch, tmp_path):
    model = patch.apply(tiny_llama())
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def check_eval(one, tmp_path):
    def evaluate(rows, losses):
        values = losses[0].per_token(torch.zeros(3, 4), None, torch.zeros(3))
        return {"tokens": 3.0, losses[0].name: float(values.sum())}

    run = SimpleNamespace(rows=lambda split: [], evaluate=evaluate)
    assert one.measure(run) == {"confidence": 0.25}


CHECKS = {
    "data": check_data,
    "tokenizer": check_tokenizer,
    "teacher": check_loaded_teacher,
    "loss": lambda loss, tmp_path: check_loss(loss),
    "selection": lambda selection, tmp_path: check_selection(selection),
    "rollout": lambda rollout, tmp_path: check_rollout(rollout),
    "patch": check_patch,
    "eval": check_eval,
    "executor": lambda executor, tmp_path: check_executor(executor),
    "logger": lambda logger, tmp_path: None,  # by its events, below
}
OPTIONS = {"lines": {"path": "lines.txt"}, "mirror": {"to": "mirrored"}}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=hook_of)
def test_every_example_works(snippet, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(snippet.text)
    others = [plugin.name for plugin in PluginManager().plugins]
    host = PluginManager(off=others, files=["example.py"])
    plugin = host.plugins[-1]
    assert plugin.status == "on" and plugin.note is None
    components = []
    for kind in plugin.components:
        for name, provided in host.provided(kind).items():
            component = provided.cls(**OPTIONS.get(name, {}))
            CHECKS[kind](component, tmp_path)
            components.append(component)
    said = hear_everything(host, components, tmp_path)
    assert caplog.records == [], "no logger was switched off"
    left_behind(hook_of(snippet), said, tmp_path)


def test_best_of_n_takes_forty_lines_and_the_answer_that_the_teacher_finds_likeliest(tmp_path):
    (snippet,) = [each for each in SNIPPETS if hook_of(each) == "kdcore_rollouts"]
    assert len(snippet.text.strip().splitlines()) <= 40
    made: dict[str, object] = {"__name__": "best"}
    (tmp_path / "best.py").write_text(snippet.text)
    exec(compile(snippet.text, str(tmp_path / "best.py"), "exec"), made)
    run, prompts = WritingRun(TableTeacher()), make_prompts(6)
    writer = made["BestOfN"](n=5, max_new_tokens=8)
    asked = [prompt for prompt in prompts for _ in range(5)]
    answers = run.sample(prompts, 5, sampling=run.sampling(writer))
    scores = run.score(run.teacher, asked, answers)
    means = [score / len(one.ids) for score, one in zip(scores, answers, strict=True)]
    for at, one in enumerate(writer.generate(run, prompts)):
        some = means[5 * at : 5 * at + 5]
        assert one.ids == answers[5 * at + some.index(max(some))].ids
        assert max(some) > min(some)


def hear_everything(host: PluginManager, components: list[Component], folder) -> list[str]:
    """A short life of a run; what was said in it."""
    said: list[str] = []
    run = SimpleNamespace(
        folder=folder / "run", main=True, step=2, steps=9, device="cpu", say=said.append
    )
    run.objective, checkpoint = "CE(q(1), y)", run.folder / "step-2"
    checkpoint.mkdir(parents=True)
    terms = {"ce": 2.0, "kl": 0.001}
    record = Record(2, 100, 2.001, terms, 1e-3, 1.0, 50.0, {})
    with host.listening(components):
        host.emit("kdcore_run_start", run=run)
        host.emit("kdcore_step_start", run=run, step=2)
        host.emit("kdcore_log", run=run, record=record)
        host.emit("kdcore_written", run=run, step=2, completions=[Completion((5, 0), True)])
        host.emit("kdcore_scores", run=run, step=2, scores={"nll": 3.0})
        host.emit("kdcore_scores", run=run, step=3, scores={"nll": 3.5, "sample": "text"})
        host.emit("kdcore_checkpoint", run=run, step=2, path=checkpoint)
        host.emit("kdcore_run_end", run=run, error=ValueError("why"))
    host.emit("kdcore_runs_end", folders=[run.folder])
    return said


def left_behind(hook: str, said: list[str], folder) -> None:
    """What the example of an event does."""
    spoken = {
        "kdcore_run_start": ["7 steps to go on cpu: CE(q(1), y)"],
        "kdcore_log": ["step 2: kl is less than 1 % of the loss"],
        "kdcore_written": ["step 2: answers of [2] tokens, 1 ended"],
        "kdcore_scores": ["step 3: validation is worse than before, 3.500 nats after 3.000"],
    }
    assert said == spoken.get(hook, [])
    written = {
        "kdcore_loggers": "run/latest.json",
        "kdcore_checkpoint": "mirrored/run/step-2",
        "kdcore_run_end": "run/end.txt",
        "kdcore_runs_end": "runs.txt",
    }
    if hook in written:
        assert (folder / written[hook]).exists()
