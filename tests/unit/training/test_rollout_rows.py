"""Rows that the student writes: what is trained of them, and that nothing else decides the text."""

import json
from types import SimpleNamespace

import given
import numpy as np
import pytest
import torch
import training
from engine import term
from kdcore_losses import JensenShannon
from kdcore_rollouts.replay import Replay
from kdcore_rollouts.several import Several
from kdcore_rollouts.student import StudentWrites

from kdcore import Completion, Rollout, RunError, component
from kdcore.api.schedule import Schedule
from kdcore.api.train_options import RolloutOptions
from kdcore.data.given import as_rows
from kdcore.data.sampler import Order, TrainingRows
from kdcore.models.completions import ANSWERS, FIRST
from kdcore.rollout.layout import WRITTEN
from kdcore.training.rollout_rows import RolloutRows, WrittenAhead

pytestmark = pytest.mark.slow

EOS = 3
BLOCK = 16


class Lines:
    """A tokenizer as far as rollouts ask one."""

    eos_token_id, all_special_ids, added_tokens_decoder = EOS, [EOS], {}

    def decode(self, ids):
        return " ".join(map(str, ids))


def dialogue(*lengths, seed=0, document=0):
    """A row of one document; stretches of these lengths are asked and answered in turn."""
    ids = np.random.default_rng([seed, 7]).integers(4, given.VOCABULARY, sum(lengths))
    ends = np.cumsum(lengths)
    ids[ends[1::2] - 1] = EOS
    answered = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    row = given.row(sum(lengths), labels=answered, document=document)
    return {**row, "input_ids": ids, "labels": np.where(answered, ids, -100)}


DIALOGUES = [dialogue(3, 2, 2 + n % 4, 3, seed=n, document=n) for n in range(8)]
TEXTS = [given.row(9, seed=n, document=n) for n in range(8)]
TERMS = [term(JensenShannon(beta=0.5))]


def trainer(
    folder,
    rows=DIALOGUES,
    *,
    writer=None,
    terms=TERMS,
    layout="pack",
    micro_batch=3,
    steps=6,
    batch=4,
    written=None,
    **options,
):
    """One whose rows are written; it really learns."""
    made = training.trainer(
        folder, rows=rows, steps=steps, batch=batch, micro_batch=micro_batch, terms=terms, **options
    )
    run = made.run
    run.tokenizer = Lines()
    run.recipe.rollout = writer or StudentWrites(max_new_tokens=6)
    run.recipe.writing = RolloutOptions(**{"prompt_tokens": 3, **(written or {})})
    run.recipe.data.rows, run.recipe.data.block = layout, BLOCK
    run.recipe.data.streams = False
    plain = TrainingRows(lambda _: as_rows(rows, "train"), Order(len(rows), batch, 0), 0, 1)
    rolled = RolloutRows(run, plain)
    made.rows, made.rollouts = rolled, rolled
    made.checkpoints.components = {
        "written": WrittenAhead(rolled),
        **({"rollout": writer} if writer else {}),
    }
    return made


def texts(made, steps):
    """Everything that was written for these steps."""
    found = []
    for step in range(1, steps + 1):
        made.step(step)
        made.run.step += 1
        found.append([tuple(one.ids) for one in made.rollouts.written(step)])
    return found


def test_each_answer_of_a_dialogue_is_a_prompt_of_its_own(tmp_path):
    made = trainer(tmp_path, [DIALOGUES[1]] * 4)
    made.rows.write(1)
    ids = DIALOGUES[1]["input_ids"].tolist()
    asked = [one.prompt.ids for one in made.rows.written(1)]
    assert asked == [tuple(ids[:3]), tuple(ids[:8])] * 4
    answers = [one.prompt.reference for one in made.rows.written(1)]
    assert answers == [tuple(ids[3:5]), tuple(ids[8:11])] * 4
    seeds = {one.prompt.seed for one in made.rows.written(1)}
    assert len(seeds) == 8, "each has random numbers of its own"


def test_text_is_asked_by_its_first_tokens_and_long_prompts_keep_their_last(tmp_path):
    made = trainer(tmp_path, TEXTS)
    made.rows.write(1)
    rows = {tuple(row["input_ids"][:3]) for row in TEXTS}
    assert {one.prompt.ids for one in made.rows.written(1)} <= rows
    long = [dialogue(13, 2, seed=n) for n in range(8)]
    made = trainer(tmp_path, long)
    made.rows.write(1)
    whole = {tuple(row["input_ids"][3:13]) for row in long}
    assert {one.prompt.ids for one in made.rows.written(1)} <= whole, "block - max_new_tokens"


def test_only_answers_are_trained_and_an_end_where_the_writer_ended(tmp_path):
    made = trainer(tmp_path, batch=8)
    for step in (1, 2, 3):
        (part,) = [part for part in made.rows.parts(step) if part.rows]
        assert part.split is WRITTEN
        trained = []
        for row in part.rows:
            batch = made.collated(part, range(len(part.rows)))
            learned = row["labels"] != -100
            assert (row["labels"][learned] == row["input_ids"][learned]).all()
            for document in np.unique(row["document"]):
                here = row["document"] == document
                trained.append(tuple(row["input_ids"][here & learned].tolist()))
        answers = made.rows.written(step)
        assert sorted(trained) == sorted(tuple(one.ids) for one in answers)
        for one in answers:
            assert one.finished == (one.ids[-1] in made.run.ends)
            assert one.finished or len(one.ids) == 6, "those that are cut have no end to learn"
            assert not made.run.ends & set(one.ids[:-1])
        assert len(batch.valid) == sum(len(one.ids) for one in answers)


def test_documents_are_reported_apart_and_columns_go_with_them(tmp_path):
    some = [{**row, "columns": {"domain": "ab"[n % 2]}} for n, row in enumerate(DIALOGUES)]
    made = trainer(tmp_path, some)
    (part,) = [part for part in made.rows.parts(1) if part.rows]
    documents = np.concatenate([np.unique(row["document"]) for row in part.rows])
    assert len(set(documents.tolist())) == len(documents) == 8 and documents.min() >= FIRST
    each = [columns for row in part.rows for columns in row["columns"]]
    assert all(columns["source"] == "student" for columns in each)
    assert {columns["domain"] for columns in each} == {"a", "b"}


def test_the_share_of_rows_that_are_written(tmp_path):
    made = trainer(tmp_path, written={"share": 0.5}, batch=8, steps=40)
    drawn = sum(made.rows._is_written(step, place) for step in range(1, 41) for place in range(8))
    assert 130 < drawn < 190
    parts = made.rows.parts(1)
    kept = len(parts[0].rows)
    prompts = {one.prompt.document for one in made.rows.written(1)}
    assert 0 < kept < 8 and len(prompts) == 8 - kept
    assert parts[1].first == kept, "written rows stand behind the data's"
    made = trainer(tmp_path, written={"share": Schedule(start=1.0, end=0.0)}, steps=40)
    assert [made.rows._is_written(step, 0) for step in (1, 40)] == [True, False]


def test_micro_batches_and_processes_change_no_bit_of_the_text(tmp_path, monkeypatch):
    found = [texts(trainer(tmp_path, micro_batch=size), 1)[0] for size in (1, 3, 8)]
    assert found[0] == found[1] == found[2]
    own = []
    for rank in (0, 1):
        made = trainer(tmp_path, written={"write_batch": 2})
        made.run.process, made.run.processes = rank, 2
        monkeypatch.setattr(
            "kdcore.rollout.writing._everybody", lambda run, mine: own.append(mine) or mine
        )
        with pytest.raises(KeyError):  # what the other process writes is missing
            made.rows.write(1)
    joined = own[0] | own[1]
    alone = trainer(tmp_path, written={"write_batch": 2})
    monkeypatch.undo()
    alone.rows.write(1)
    assert not own[0].keys() & own[1].keys()
    flat = [one for n in sorted(joined) for one in joined[n]]
    assert [one.ids for one in flat] == [one.ids for one in alone.rows.written(1)]
    assert [one.log_probs for one in flat] == [one.log_probs for one in alone.rows.written(1)]


def test_processes_share_the_rows_of_a_step(tmp_path):
    alone = trainer(tmp_path, written={"share": 0.5}, batch=8)
    alone.rows.write(1)
    whole = [row["input_ids"].tolist() for part in alone.rows.parts(1) for row in part.rows]
    found, firsts = [], []
    for rank in range(3):
        alone.run.process, alone.run.processes = rank, 3
        parts = alone.rows.parts(1)
        firsts += [part.first + n for part in parts for n in range(len(part.rows))]
        found += [row["input_ids"].tolist() for part in parts for row in part.rows]
    assert found == whole and firsts == list(range(len(whole)))


def test_several_steps_are_written_together_and_each_is_trained_once(tmp_path, monkeypatch):
    made = trainer(tmp_path, written={"every": 3}, steps=7)
    calls = []
    inner = StudentWrites.generate

    def counted(self, run, prompts):
        calls.append((run.step, len(prompts)))
        return inner(self, run, prompts)

    monkeypatch.setattr(StudentWrites, "generate", counted)
    texts(made, 7)
    assert [step for step, _ in calls] == [0, 3, 6]
    assert sum(count for _, count in calls) == 7 * 4 * 2


WRITERS = {
    "student": lambda: StudentWrites(max_new_tokens=6),
    "replay": lambda: Replay(of=StudentWrites(max_new_tokens=6), fresh=0.5, max_new_tokens=6),
    "several": lambda: Several(
        members=[StudentWrites(max_new_tokens=6), StudentWrites(max_new_tokens=4)],
        max_new_tokens=6,
    ),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("at", [1, 2, 4, 5])
def test_a_run_resumes_bit_for_bit_between_generated_steps(writer, at, tmp_path):
    def make(folder):
        return trainer(
            folder, writer=writer(), written={"every": 4, "share": 0.7}, steps=7, save_every=at
        )

    whole = make(tmp_path / "whole")
    whole.train()
    first = make(tmp_path / "halves")
    while first.run.step < at:
        first.step(first.run.step + 1)
        first.run.step += 1
        first._check()
    first.save()
    second = make(tmp_path / "halves")
    assert second.resume() and second.run.step == at
    second.train()
    training.assert_equal(training.weights(whole), training.weights(second))
    logged = [
        {key: value for key, value in record.rollout.items() if key != "time_share"}
        for record in training.records(second)
    ]
    assert logged[-1] == {
        key: value
        for key, value in training.records(whole)[-1].rollout.items()
        if key != "time_share"
    }


def test_a_checkpoint_without_completions_would_resume_differently(tmp_path):
    """What the test above finds: the writing is needed."""
    first = trainer(tmp_path, written={"every": 4})
    first.step(1)
    first.run.step = 1
    then = [one.ids for one in first.rollouts.written(2)]
    first.rollouts.answers = {}
    first.rollouts.write(2)
    assert then != [one.ids for one in first.rollouts.written(2)]


def test_a_step_that_is_tried_again_has_the_same_answers(tmp_path, monkeypatch):
    made = trainer(tmp_path, micro_batch=4)
    calls = []

    def fails_once(step, terms, inner=made.gradients):
        calls.append([one.ids for one in made.rollouts.written(step)])
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return inner(step, terms)

    made.gradients = fails_once
    made.step(1)
    assert calls[0] == calls[1] and made.run.micro_batch == 2


def test_out_of_memory_while_writing_names_write_batch(tmp_path, monkeypatch):
    made = trainer(tmp_path, written={"write_batch": 5})

    def too_much(self, run, prompts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StudentWrites, "generate", too_much)
    with pytest.raises(RunError, match=r"--set rollout.write_batch=3"):
        made.step(1)


def test_the_students_dropout_is_off_while_it_writes_and_comes_back(tmp_path):
    made = trainer(tmp_path)
    made.run.student.train()
    seen = []
    made.run.student.model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    made.rows.write(1)
    assert seen and not any(seen) and made.run.student.training


def test_writing_leaves_the_random_state_alone(tmp_path):
    made = trainer(tmp_path)
    before = torch.get_rng_state()
    made.rows.write(1)
    assert torch.equal(before, torch.get_rng_state())


@component
class Odd(Rollout):
    """Writes what it is told."""

    name = "odd"

    def generate(self, run, prompts):
        return [self.answer for _ in prompts]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Completion((99,), False), "the id 99, and student and teacher share the ids below 37"),
        (Completion((5,) * 15, False), "a row holds 16"),
        (Completion((5, 6), False, (0.0,)), "2 ids with 1 log-probabilities"),
        ("text", "expected a Completion"),
    ],
)
def test_what_a_writer_must_not_give(answer, said, tmp_path):
    writer = Odd(max_new_tokens=6)
    writer.answer = answer
    with pytest.raises(Exception, match=said):
        trainer(tmp_path, writer=writer).rows.write(1)


def test_empty_answers_are_left_out_and_a_step_of_them_trains_nothing(tmp_path):
    writer = Odd(max_new_tokens=6)
    writer.answer = Completion((), False)
    made = trainer(tmp_path, writer=writer)
    before = training.weights(made)
    made.step(1)
    training.assert_equal(before, training.weights(made))


def test_prompts_longer_than_every_document_are_refused(tmp_path):
    with pytest.raises(RunError, match="the longest document has 9 tokens"):
        trainer(tmp_path, TEXTS, written={"prompt_tokens": 9})


def test_warnings_come_once(tmp_path, caplog):
    writer = Odd(max_new_tokens=6)
    writer.answer = Completion((5, 6, 7), False)
    made = trainer(tmp_path, writer=writer, steps=30)
    for step in range(1, 31):
        made.rows.write(step)
    said = [record.message for record in caplog.records]
    assert sum("0% of the answers end by themselves" in each for each in said) == 1
    assert sum("20 steps brought only empty, repeated or truncated" in each for each in said) == 1
    assert "'5 6 7'" in "".join(said)


def test_a_term_that_waits_for_another_writer_is_reported_once(tmp_path, caplog):
    terms = [term(JensenShannon(beta=0.5), where={"source": ["teacher", "server"]})]
    made = trainer(tmp_path, terms=terms, steps=9)
    for step in range(1, 10):
        made.rows.write(step)
    (said,) = [record.message for record in caplog.records if "asks for source" in record.message]
    assert said == (
        'rollouts: the loss \'jsd\' asks for source = "teacher", "server", and "student" wrote all '
        "answers so far: it learns nothing"
    )
    for wanted in ("student", ["data", "teacher"]):
        caplog.clear()
        terms = [term(JensenShannon(beta=0.5), where={"source": wanted})]
        made = trainer(tmp_path, terms=terms, steps=9)
        for step in range(1, 10):
            made.rows.write(step)
        assert not [each for each in caplog.records if "asks for source" in each.message]


def test_without_a_token_that_ends_a_text_nothing_is_written(tmp_path):
    made = trainer(tmp_path)
    made.run.tokenizer = SimpleNamespace(
        eos_token_id=None, all_special_ids=[], added_tokens_decoder={}
    )
    made.run.student.generation_config.eos_token_id = None
    with pytest.raises(RunError, match="no end-of-text token"):
        made.rows.write(1)


def test_the_log_tells_of_what_was_written(tmp_path):
    made = trainer(tmp_path, log_every=2, steps=2)
    made.train()
    (record,) = training.records(made)
    assert set(record.rollout) == {"length", "finished", "repeats", "time_share"}
    ((event),) = made.host.of("kdcore_written")
    assert event["step"] == 2 and len(event["completions"]) == 3
    assert json.dumps(dict(record.rollout))


@component
class InTurn(Rollout):
    """Two answers that are cut to each one that ends."""

    name = "in-turn"

    def generate(self, run, prompts):
        cut, ended = Completion((5, 6, 7, 5, 6, 7), False), Completion((8, EOS), True)
        return [ended if prompt.document % 3 == 0 else cut for prompt in prompts]


def test_answers_that_are_cut_are_counted_and_their_end_is_not_learned(tmp_path):
    from kdcore.objective.selection import tokens_of

    made = trainer(tmp_path, writer=InTurn(max_new_tokens=6), batch=8, log_every=1, steps=1)
    tokens = tokens_of(made.run, made._readings(1), 1, made.gather)
    answers = made.rows.written(1)
    ended = sum(one.finished for one in answers)
    assert (len(answers), ended) == (16, 6)
    assert int((tokens.labels == EOS).sum()) == ended, "of those that are cut none is learned"
    assert len(tokens.labels) == 2 * ended + 6 * (len(answers) - ended)
    made.train()
    (record,) = training.records(made)
    assert record.rollout["finished"] == ended / len(answers)
    assert record.rollout["length"] == len(tokens.labels) / len(answers)
    assert record.rollout["repeats"] == 0


def test_answers_to_one_prompt_are_reported_by_it(tmp_path):
    from kdcore.objective.selection import tokens_of

    members = [StudentWrites(max_new_tokens=6), StudentWrites(max_new_tokens=6)]
    made = trainer(tmp_path, writer=Several(members=members, max_new_tokens=6), batch=8)
    tokens = tokens_of(made.run, made._readings(1), 1, made.gather)
    pairs = set(zip(tokens.prompt.tolist(), tokens.document.tolist(), strict=True))
    counts = [sum(one == prompt for one, _ in pairs) for prompt, _ in pairs]
    assert len(pairs) == 32 and set(counts) == {2}
    assert not {prompt for prompt, _ in pairs} & {row["document"][0] for row in DIALOGUES}
    assert tokens.categories("source") == ["student"]


def old_log_probs(made, step):
    """By the answer's place among the answers of a step: what each trained token is said to have
    had.
    """
    from kdcore.objective.selection import tokens_of

    tokens = tokens_of(made.run, made._readings(step), step, made.gather)
    found = {}
    for document, value in zip(
        tokens.document.tolist(), tokens.old_log_probs().tolist(), strict=True
    ):
        found.setdefault(document, []).append(value)
    return found


@pytest.mark.parametrize("layout", ["pack", "one"])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_log_probabilities_go_with_the_tokens_that_were_drawn(layout, micro_batch, tmp_path):
    made = trainer(
        tmp_path,
        writer=StudentWrites(max_new_tokens=6, temperature=1.7, top_k=9),
        layout=layout,
        micro_batch=micro_batch,
        written={"every": 3, "share": 0.6},
        batch=8,
    )
    made.rows.write(1)
    made.run.step = 1
    with torch.no_grad():
        for weights in made.run.student.parameters():
            weights.mul_(1.1)  # the student learns meanwhile
    for step in (2, 3):
        found = old_log_probs(made, step)
        answers = made.rows.answers[step]
        for prompt, (one,) in enumerate(answers):
            assert found.pop(FIRST + prompt * ANSWERS) == list(one.log_probs)
        assert found, "the rows of data"
        assert all(np.isnan(values).all() for values in found.values())


def test_log_probabilities_that_a_writer_did_not_record_are_unknown(tmp_path):
    writer = Odd(max_new_tokens=6)
    writer.answer = Completion((5, 6, 7), False)
    found = old_log_probs(trainer(tmp_path, writer=writer), 1)
    assert len(found) == 8
    assert all(np.isnan(values).all() and len(values) == 3 for values in found.values())


def test_log_probabilities_come_back_with_a_checkpoint(tmp_path):
    first = trainer(tmp_path, written={"every": 4})
    first.step(1)
    first.run.step = 1
    expected = old_log_probs(first, 3)
    first.save()
    second = trainer(tmp_path, written={"every": 4})
    assert second.resume()
    assert old_log_probs(second, 3) == expected
