"""Routed teachers: a member for each part of the data."""

import engine
import given
import oracle
import pytest
import torch
from cases import assert_equal, model
from engine import Held, term
from given import VOCABULARY
from kdcore_cached import CachedTeacher
from kdcore_ensemble import Ensemble
from kdcore_losses import CrossEntropy, ForwardKL
from kdcore_routed import Routed, kdcore_teachers
from pydantic import ValidationError

from kdcore import SparseLogits, Split, Teacher, UsageError, read, read_nll
from kdcore.data.collate import Collate
from kdcore.testing import check_teacher
from kdcore.testing.fakes import TableTeacher, make_batch

pytestmark = pytest.mark.slow

ROWS = given.rows_with_columns()
WHERES = [{"domain": "math"}, {"domain": "code", "level": [0, 1]}, None]


BATCH_OF_TWO = make_batch([[3, 1, 4], [1, 5]])


def routed(*members, where=WHERES):
    return Routed(members=list(members), where=list(where))


def models():
    return [model("llama", seed=1), model("gpt2", seed=2), model("llama", seed=3)]


def known_of(each):
    """The teachers as the oracle knows them: each row's logits by its tokens' documents."""
    teachers = [oracle.model_teacher(one, VOCABULARY) for one in each]

    def logits(row):
        answers = [teacher(row) for teacher in teachers]
        chosen = torch.zeros_like(answers[0])
        for position in range(len(chosen) - 1):
            token = oracle.Token(0, position, 0, None, None)
            mine = [
                not where or oracle.matching([token], [row], term(where=where)) for where in WHERES
            ]
            chosen[position] = answers[[bool(one) for one in mine].index(True)][position]
        return chosen

    return logits


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_each_token_is_answered_by_the_member_of_its_document(micro_batch, everywhere, monkeypatch):
    monkeypatch.setattr("kdcore_routed._all_answer_everywhere", lambda positions: everywhere)
    each = models()
    teacher = routed(*map(Held, each))
    terms = [term(ForwardKL(temperature=2.0)), term(CrossEntropy(), 0.3, where=WHERES[0])]
    found = engine.step(model(), ROWS, terms, teacher=teacher, micro_batch=micro_batch)
    expected = oracle.step(model(), ROWS, terms, vocabulary=VOCABULARY, teacher=known_of(each))
    assert_equal(found, expected)


def batch(rows=ROWS):
    return Collate(Split("train", "", []), VOCABULARY, torch.device("cpu"))(rows)


class Noting(TableTeacher):
    name = "noting"

    def read(self, batch):
        self.rows = batch.document[:, 0].tolist()
        return super().read(batch)


def test_a_member_reads_only_the_rows_that_hold_a_token_of_its_own():
    members = [Noting(vocabulary=VOCABULARY, seed=seed) for seed in (1, 2)]
    read(routed(*members, where=[{"domain": "math"}, None]), batch())
    math = [
        int(row["document"][0])
        for row in ROWS
        if any(given.known_of(d).get("domain") == "math" for d in row["document"].tolist())
    ]
    assert members[0].rows == math and len(math) < len(ROWS)


def test_a_member_without_rows_is_not_read():
    members = [Noting(vocabulary=VOCABULARY) for _ in range(2)]
    read(routed(*members, where=[{"domain": "law"}, None]), batch())
    assert not hasattr(members[0], "rows") and len(members[1].rows) == len(ROWS)


def test_losses_are_routed_too():
    each = [TableTeacher(vocabulary=VOCABULARY, seed=seed) for seed in (1, 2)]
    some = batch()
    labels = some.labels[some.valid]
    found = read_nll(routed(*each, where=[{"domain": "math"}, None]), some)(some.valid, labels)
    one, other = (read_nll(teacher, some)(some.valid, labels) for teacher in each)
    mine = torch.from_numpy(some.columns.matches({"domain": "math"}))[some.valid]
    assert mine.any() and not mine.all()
    torch.testing.assert_close(found, torch.where(mine, one, other))


class Sparse(Teacher):
    name = "sparse"

    def __init__(self, shift, k=2):
        self.shift, self.k = shift, k

    def ids_known(self):
        return self.k

    def read(self, batch):
        def outputs(positions):
            ids = (positions[:, None] + torch.arange(self.k)) % 7 + self.shift
            logs = torch.full((len(positions), self.k + 1), -1.0 - self.shift)
            return SparseLogits(ids, logs, {2.0: torch.full((len(positions),), float(self.shift))})

        return outputs


@pytest.mark.parametrize("everywhere", [False, True])
def test_members_that_know_some_ids(everywhere, monkeypatch):
    from kdcore import read_outputs

    monkeypatch.setattr("kdcore_routed._all_answer_everywhere", lambda positions: everywhere)
    some = batch(ROWS[:1])
    outputs = read_outputs(routed(Sparse(0), Sparse(1), where=[{"domain": "math"}, None]), some)
    found = outputs(some.valid)
    mine = torch.from_numpy(some.columns.matches({"domain": "math"}))[some.valid]
    assert mine.any() and not mine.all()
    assert ((found.log_probabilities[:, 0] == -1) == mine).all()
    assert ((found.tempered[2.0] == 0) == mine).all()


def test_members_must_know_as_many_ids():
    (said,) = routed(Sparse(0, 2), Sparse(1, 3)).faults(None)
    assert said == "the members know 2, 3 ids at each position, but all must know the same number"
    assert not list(routed(Sparse(0, 2), Sparse(1, 2)).faults(None))


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_documents_without_a_member_are_left_out(micro_batch, caplog):
    where = {"domain": "math"}
    one = model("llama", seed=1)
    terms = [term(ForwardKL(temperature=2.0)), term(CrossEntropy(), 0.3)]
    teacher = routed(Held(one), where=[where])
    found = engine.step(model(), ROWS, terms, teacher=teacher, micro_batch=micro_batch)
    narrow = [term(ForwardKL(temperature=2.0), where=where), term(CrossEntropy(), 0.3)]
    expected = oracle.step(
        model(),
        ROWS,
        narrow,
        vocabulary=VOCABULARY,
        teacher=oracle.model_teacher(one, VOCABULARY),
    )
    assert_equal(found, expected)
    assert caplog.text.count("a last member without `where` would take them") == 1


@pytest.mark.parametrize("micro_batch", [3, 8])
def test_and_composed_with_the_where_of_a_term(micro_batch):
    one = model("llama", seed=1)
    terms = [term(ForwardKL(), where={"level": [0, 1]})]
    teacher = routed(Held(one), where=[{"domain": ["math", "code"]}])
    found = engine.step(model(), ROWS, terms, teacher=teacher, micro_batch=micro_batch)
    narrow = [term(ForwardKL(), where={"level": [0, 1], "domain": ["math", "code"]})]
    known = oracle.model_teacher(one, VOCABULARY)
    expected = oracle.step(model(), ROWS, narrow, vocabulary=VOCABULARY, teacher=known)
    assert_equal(found, expected)


def test_the_rest_is_for_the_last_member():
    with pytest.raises(UsageError, match="only the last member"):
        routed(TableTeacher(), TableTeacher(), where=[None, {"domain": "math"}])
    with pytest.raises(UsageError, match="at least one column"):
        routed(TableTeacher(), where=[{}])
    with pytest.raises(ValidationError):
        Routed(members=[])


def test_it_is_a_teacher_as_any():
    assert kdcore_teachers() == [Routed]
    check_teacher(routed(TableTeacher(seed=1), where=[{"source": "data"}]), BATCH_OF_TWO)
    some = BATCH_OF_TWO
    whole = read(routed(TableTeacher(seed=1), where=[None]), some)(some.valid)
    torch.testing.assert_close(whole, read(TableTeacher(seed=1), some)(some.valid))


def test_what_it_reads_is_said():
    teacher = routed(TableTeacher(), TableTeacher(), TableTeacher())
    assert list(teacher.reads_columns()) == WHERES[:2]
    assert "where=[{'domain': 'math'}" in teacher.fingerprint()


def test_a_store_over_whole_documents_has_no_columns():
    from types import SimpleNamespace

    data = SimpleNamespace(name="d", fresh_each_epoch=False, streams=False)
    inner = Ensemble(members=[routed(TableTeacher(), TableTeacher(), TableTeacher())])
    cached = CachedTeacher(teacher=inner, context="document")
    (said,) = cached.faults(SimpleNamespace(data=data, rollout=None))
    assert "uses columns (domain, level)" in said
    assert not list(CachedTeacher(teacher=inner).faults(SimpleNamespace(data=data, rollout=None)))
