"""DistiLLM-2: what each part computes, from whole answers, and the state that it keeps."""

import math

import engine
import given
import oracle
import pytest
import torch
from kdcore_losses import DistiLLM2
from oracle_losses import kl

from kdcore import Schedule

ROWS = given.packed_rows()
for n, row in enumerate(ROWS):  # one writer a row, each row documents of its own
    row["columns"] = {"source": "student" if n % 3 == 0 else ("teacher", "data")[n % 2]}


def student(seed=1):
    return given.model(double=True, seed=seed)


def sides_of(tokens):
    """The answers of the student and those of others: tokens by document."""
    found = {True: {}, False: {}}
    for token, document in tokens:
        found[ROWS[token.row]["columns"]["source"] == "student"].setdefault(document, []).append(
            token
        )
    return {side: list(answers.values()) for side, answers in found.items()}


def textbook(model, teacher, *, skew=0.1, beta=1.0, adaptive=True, gaps=None):
    """The objective answer by answer, and the mean gap of each side."""
    tokens = list(oracle.tokens_of(ROWS, model, teacher, given.VOCABULARY))
    documents = [ROWS[t.row]["document"][t.position + 1] for t in tokens]
    sides, total = sides_of(zip(tokens, documents, strict=True)), 0.0
    found = {}
    for by_student, answers in sides.items():
        apart = [gap_of(answer, by_student) for answer in answers]
        mean = found[by_student] = (gaps or {}).get(by_student, sum(apart) / len(apart))
        share = beta if by_student else 2 - beta
        for answer, gap in zip(answers, apart, strict=True):
            at = skew
            if adaptive:
                at = min(skew, max(min(0.01, skew), 1 - (1 - skew) * mean / (gap + 1e-5)))
            each = sum(value_of(token, by_student, at) for token in answer) / len(answer)
            total = total + share * each / len(answers)
    return total, found


def gap_of(answer, by_student):
    """How much likelier the answer is to its writer, by the geometric means of its tokens."""
    q, p = (
        math.exp(-sum(float(oracle.nll(getattr(t, who), t.label)) for t in answer) / len(answer))
        for who in ("student", "teacher")
    )
    return q - p if by_student else p - q


def value_of(token, by_student, skew):
    q, p = token.student.softmax(-1), token.teacher.softmax(-1)
    if by_student:
        return kl(q, (1 - skew) * p + skew * q.detach())
    return kl(p, skew * p + (1 - skew) * q)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("options", [{}, {"adaptive": False}, {"skew": 0.3, "beta": 1.5}], ids=str)
def test_it_is_the_textbook(options, micro_batch):
    ours, theirs = student(1), student(2)
    value, _ = textbook(ours, oracle.model_teacher(theirs, given.VOCABULARY), **options)
    expected = torch.autograd.grad(value, list(ours.parameters()))
    found = engine.step(
        ours,
        ROWS,
        [engine.term(DistiLLM2(**options))],
        teacher=engine.Held(theirs),
        micro_batch=micro_batch,
    )
    assert found.terms["distillm2"] == pytest.approx(float(value), rel=1e-8)
    for one, exact in zip(found.gradients.values(), expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-7, atol=1e-10)


def test_skews_are_measured_by_the_first_step_also_after_an_interruption():
    first, later, theirs = student(1), student(3), student(2)
    teacher = oracle.model_teacher(theirs, given.VOCABULARY)
    _, gaps = textbook(first, teacher)
    value, _ = textbook(later, teacher, gaps=gaps)
    loss, continued = DistiLLM2(), DistiLLM2()
    options = {"teacher": engine.Held(theirs), "micro_batch": 3}
    engine.step(first, ROWS, [engine.term(loss)], **options)
    continued.load_state_dict(loss.state_dict())
    for one, step in ((loss, 2), (continued, 2)):
        made = engine.trainer(later, ROWS * 2, [engine.term(one)], steps=2, **options)
        shares, _ = made.gradients(step, made.terms_of(step))
        assert float(torch.stack(shares).sum()) == pytest.approx(float(value), rel=1e-8)


def test_the_part_of_the_student_may_grow_during_the_run():
    theirs, terms = engine.Held(student(2)), []
    for beta in (Schedule(start=1.0, end=1.5, until=0.5), 1.25):
        term = engine.term(DistiLLM2(beta=beta))
        made = engine.trainer(student(1), ROWS * 8, [term], teacher=theirs, steps=8)
        shares, _ = made.gradients(3, made.terms_of(3))  # when a quarter of the run is done
        terms.append(float(torch.stack(shares).sum()))
    assert terms[0] == pytest.approx(terms[1], rel=1e-12)


def test_without_a_student_that_wrote_there_are_others_only():
    rows = [{**row, "columns": None} for row in ROWS]
    found = engine.step(
        student(1), rows, [engine.term(DistiLLM2(beta=2.0))], teacher=engine.Held(student(2))
    )
    assert found.terms["distillm2"] == 0


def test_a_step_that_is_prepared_again_has_the_same_skews():
    theirs, loss = engine.Held(student(2)), DistiLLM2()
    made = engine.trainer(student(1), ROWS, [engine.term(loss)], teacher=theirs)
    each = [made.gradients(1, made.terms_of(1))[0] for _ in range(2)]
    assert torch.stack(each[0]).equal(torch.stack(each[1]))


def test_the_formula_is_explained():
    assert DistiLLM2(skew=0.2).formula() == "DISTILLM2(p(1), q(1), 0.2, 1)"
