"""Terms that see some documents only: `where`, against `oracle` in float64."""

import math

import engine
import given
import oracle
import pytest
import torch
from cases import SHARE, WHERE, WHERE_ON, assert_equal, model, selections, teacher_of
from given import VOCABULARY
from kdcore_losses import CrossEntropy

pytestmark = pytest.mark.slow

ROWS = given.rows_with_columns()


@pytest.mark.parametrize("as_on_gpu", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_term_is_the_mean_over_the_tokens_of_its_documents(micro_batch, as_on_gpu, monkeypatch):
    monkeypatch.setattr("kdcore.objective.objective._count_needs_sync", lambda tensor: as_on_gpu)
    teacher, known = teacher_of()
    found = engine.step(model(), ROWS, WHERE, teacher=teacher, micro_batch=micro_batch)
    expected = oracle.step(model(), ROWS, WHERE, vocabulary=VOCABULARY, teacher=known)
    assert all(expected.terms[one.label] for one in WHERE[:4])
    assert expected.terms["reverse-kl"] == 0
    assert_equal(found, expected)


@pytest.mark.parametrize("scope", ["step", "micro_batch"])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_of_those_that_the_selection_leaves(scope, micro_batch):
    teacher, known = teacher_of()
    selection, scores = selections()["hardest"]
    groups = [list(range(8))[at : at + micro_batch] for at in range(0, 8, micro_batch)]
    found = engine.step(
        model(),
        ROWS,
        WHERE_ON,
        teacher=teacher,
        selection=selection,
        scope=scope,
        micro_batch=micro_batch,
    )
    expected = oracle.step(
        model(),
        ROWS,
        WHERE_ON,
        vocabulary=VOCABULARY,
        teacher=known,
        scores=scores,
        share=SHARE,
        groups=groups if scope == "micro_batch" else None,
    )
    assert_equal(found, expected, selected=True)


@pytest.mark.parametrize("micro_batch", [3, 8])
def test_weights_of_a_selection_are_summed_over_the_documents(micro_batch):
    where = {"domain": "math"}
    weigh = engine.Keeps(lambda tokens: tokens.labels.double() / 100)
    found = engine.step(
        model(), ROWS, [engine.term(where=where)], selection=weigh, micro_batch=micro_batch
    )
    tokens = list(oracle.tokens_of(ROWS, model(), None, VOCABULARY))
    mine = oracle.matching(tokens, ROWS, engine.term(where=where))
    total = sum(token.label / 100 * oracle.nll(token.student, token.label) for token in mine)
    expected = total / sum(token.label / 100 for token in mine)
    assert found.terms["ce"] == pytest.approx(float(expected), rel=1e-10)


class Spy(engine.Selection):
    """Keeps all, and tells what it was asked with."""

    name = "told"

    def __init__(self, look):
        self.look, self.seen = look, []

    def keep(self, tokens):
        self.seen.append(self.look(tokens))
        return torch.ones(len(tokens.labels), dtype=torch.bool)


def looked(look, micro_batch):
    spy = Spy(look)
    engine.step(model(), ROWS, [engine.term()], selection=spy, micro_batch=micro_batch)
    return spy.seen


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_column_is_that_of_the_document_of_the_predicted_token(micro_batch):
    expected = []
    for row in ROWS:
        documents = list(dict.fromkeys(row["document"].tolist()))
        columns = row["columns"]
        for position, _ in oracle.predicted(row):
            mine = documents.index(row["document"][position + 1])
            expected.append(columns if isinstance(columns, dict) else columns[mine])

    def look(tokens):
        texts = tokens.categories("domain")
        codes = tokens.column("domain").tolist()
        domain = [None if code < 0 else texts[code] for code in codes]
        sources = [tokens.categories("source")[code] for code in tokens.column("source")]
        return domain, tokens.column("level").tolist(), sources

    ((domain, level, source),) = looked(look, micro_batch)
    assert domain == [each.get("domain") for each in expected]
    assert level == pytest.approx([each.get("level", math.nan) for each in expected], nan_ok=True)
    assert source == [each.get("source", "data") for each in expected]


def test_rows_without_columns_are_data():
    rows = given.packed_rows()
    found = engine.step(model(), rows, [engine.term(where={"source": "data"})])
    plain = engine.step(model(), rows, [engine.term()])
    assert found.terms == plain.terms


def test_a_loss_that_prepares_knows_what_its_term_sees():
    seen = []

    class Noting(engine.PreparedLoss):
        name = "noting"
        needs_teacher = False

        def prepare(self, tokens):
            seen.append((tokens.seen(self), tokens.count(self), tokens.column("level")))
            return torch.ones(len(tokens.labels), dtype=torch.float64)

        def per_token_prepared(self, student, teacher, labels, prepared):
            return CrossEntropy().per_token(student, None, labels) * prepared

    for micro_batch in (3, 8):
        terms = [engine.term(Noting(), where={"level": [1, 2]})]
        engine.step(model(), ROWS, terms, micro_batch=micro_batch)
        which, count, level = seen.pop()
        assert which.tolist() == [each in (1, 2) for each in level.tolist()]
        assert int(count) == int(which.sum()) > 0


def test_categories_are_those_of_all_processes():
    """Whichever texts a process has itself, an index means the same on all."""
    from test_step_tokens import tokens

    theirs = torch.tensor(list(b'"law"\n"a\\nb"\n'), dtype=torch.uint8)

    def gather(values):
        return torch.cat([theirs, values]) if values.dtype == torch.uint8 else values, 0

    some = tokens(ROWS, gather=gather)
    assert some.categories("domain") == ["a\nb", "code", "law", "math", "prose"]
    alone = tokens(ROWS)
    assert alone.categories("domain") == ["code", "math", "prose"]
    spy, mine = (one.column("domain").tolist() for one in (some, alone))
    names, own = some.categories("domain"), alone.categories("domain")
    assert [names[n] if n >= 0 else None for n in spy] == [own[n] if n >= 0 else None for n in mine]


def test_a_column_of_texts_and_numbers_is_refused():
    from kdcore import RunError

    rows = given.rows_with_columns()
    rows[0]["columns"] = [{"level": "high"}, {}, {}]
    look = engine.Keeps(lambda tokens: tokens.column("level") > 0)
    with pytest.raises(RunError, match="the column 'level' holds texts, such as 'high', and numb"):
        engine.step(model(), rows, [engine.term()], selection=look)
