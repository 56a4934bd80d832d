import shutil
from types import SimpleNamespace

import engine
import given
import oracle
import pytest
import torch
from engine import Held
from given import VOCABULARY
from kdcore_losses import ForwardKL, TotalVariation

from kdcore import LanguageModel
from kdcore.data.given import as_rows
from kdcore.training.evaluation import evaluate
from kdcore.training.micro_batch import per_token_for

ROWS = given.packed_rows() + given.single_rows()
STUDENT, TEACHER = given.model(double=True), given.model(double=True, seed=1)


def run(process=0, processes=1, micro_batch=3):
    made = engine.trainer(STUDENT, ROWS, [engine.term()], micro_batch=micro_batch).run
    made.process, made.processes = process, processes
    return made


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Id n stands for n % 3 bytes."""
    bytes_per_id = torch.arange(VOCABULARY) % 3
    monkeypatch.setattr("kdcore.models.vocabulary.bytes_per_id", lambda _: bytes_per_id.numpy())


@pytest.fixture(scope="module")
def known():
    teacher = oracle.model_teacher(TEACHER, VOCABULARY)
    with torch.no_grad():
        tokens = list(oracle.tokens_of(ROWS, STUDENT, teacher, VOCABULARY))
        return {
            "tokens": len(tokens),
            "bytes": sum(token.label % 3 for token in tokens),
            "nll": sum(float(oracle.nll(t.student, t.label)) for t in tokens),
            "kl": sum(float(oracle.value(ForwardKL(temperature=2.0), t)) for t in tokens),
            "tvd": sum(float(oracle.value(TotalVariation(), t)) for t in tokens),
            "agreement": sum(int(t.student.argmax() == t.teacher.argmax()) for t in tokens),
        }


LOSSES = [ForwardKL(temperature=2.0), TotalVariation()]


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_sums_are_those_of_whole_logits(known, micro_batch, monkeypatch):
    monkeypatch.setattr("kdcore.training.evaluation.chunk_size", lambda vocabulary, device: 7)
    rows = as_rows(ROWS, "validation")
    found = evaluate(run(micro_batch=micro_batch), rows, LOSSES, Held(TEACHER))
    assert found == pytest.approx(known, rel=1e-10)
    assert list(found) == list(known)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_losses_give_the_same_sums(caplog):
    """As training compiles them, in its chunks."""
    from torch._dynamo.utils import counters

    rows, teacher = as_rows(ROWS, "validation"), Held(TEACHER)
    plain = evaluate(run(), rows, LOSSES, teacher)
    made = run()
    made.recipe = SimpleNamespace(train=SimpleNamespace(compile=True))
    compiled = per_token_for(made)
    assert compiled is not None
    before = counters["stats"]["unique_graphs"]
    for _ in range(2):  # the second evaluation compiles nothing
        found = evaluate(made, rows, LOSSES, teacher, compiled=compiled(LOSSES))
        assert found == pytest.approx(plain, rel=1e-10)
    assert counters["stats"]["unique_graphs"] - before == 1
    assert "uncompiled" not in caplog.text


def test_losses_of_one_name_are_reported_apart(known):
    class Nll(TotalVariation):
        name = "nll"

    losses = [ForwardKL(temperature=2.0), ForwardKL(), Nll(), ForwardKL(temperature=2.0)]
    found = evaluate(run(), as_rows(ROWS, "validation"), losses, Held(TEACHER))
    assert list(found) == ["tokens", "bytes", "nll", "kl", "kl.2", "nll.2", "kl.3", "agreement"]
    expected = {"kl": known["kl"], "nll.2": known["tvd"], "kl.3": known["kl"], "nll": known["nll"]}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["kl.2"] != pytest.approx(found["kl"])


def test_without_a_teacher_there_is_no_agreement(known):
    found = evaluate(run(), as_rows(ROWS, "validation"), [], None)
    assert found == pytest.approx({key: known[key] for key in ("tokens", "bytes", "nll")})


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_share_the_rows_without_repeats(known, processes, monkeypatch):
    parts = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: parts.append(total))
    rows = as_rows(ROWS, "validation")
    for process in range(processes):
        evaluate(run(process, processes), rows, LOSSES, Held(TEACHER))
    assert sum(parts).tolist() == pytest.approx(list(known.values()), rel=1e-10)


def test_every_module_keeps_its_mode():
    student = given.model()
    student.train()
    student.model.layers[0].eval()
    modes = [module.training for module in student.modules()]
    made = run()
    made.language_model = LanguageModel(student)
    seen = []
    student.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    evaluate(made, as_rows(ROWS, "validation"), [], None)
    assert seen == [False] * 6
    assert modes == [module.training for module in student.modules()]


def whole_logits(row):
    """The log-probability of a row's trained tokens, the row alone."""
    alone = as_rows([row], "given")
    with torch.no_grad():
        tokens = oracle.tokens_of([alone[0]], STUDENT, None, VOCABULARY)
        return -sum(float(oracle.nll(token.student, token.label)) for token in tokens)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_log_likelihoods_are_those_of_each_row_alone(batch, monkeypatch):
    monkeypatch.setattr("kdcore.training.evaluation.chunk_size", lambda vocabulary, device: 7)
    rows = [{"input_ids": row["input_ids"]} for row in given.single_rows()]
    rows.append({"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]})
    found = run().log_likelihoods(rows, batch=batch)
    assert found == pytest.approx([whole_logits(row) for row in rows], rel=1e-10)


def test_processes_share_log_likelihoods(monkeypatch):
    rows = [{"input_ids": row["input_ids"]} for row in given.single_rows()]
    whole, parts = run().log_likelihoods(rows, batch=2), []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: parts.append(total.clone()))
    for process in range(3):
        run(process, 3).log_likelihoods(rows, batch=2)
    assert sum(parts).tolist() == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_by_a_column_each_value_has_its_own_sums(processes, monkeypatch):
    parts = {}
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda sums: parts.setdefault(sums.ndim, []).append(sums)
    )
    rows = as_rows(given.rows_with_columns(), "validation")
    teacher = oracle.model_teacher(TEACHER, VOCABULARY)
    with torch.no_grad():
        tokens = list(oracle.tokens_of(rows, STUDENT, teacher, VOCABULARY))
    for process in range(processes):
        found = evaluate(run(process, processes), rows, LOSSES, Held(TEACHER), "domain")
    names = [key.partition("/")[2] for key in found if key.startswith("tokens/")]
    assert names == ["code", "math", "prose"]
    for n, domain in enumerate(names):
        mine = oracle.matching(tokens, rows, engine.term(where={"domain": domain}))
        sums = {
            "tokens": len(mine),
            "nll": sum(float(oracle.nll(t.student, t.label)) for t in mine),
        }
        sums["kl"] = sum(float(oracle.value(LOSSES[0], t)) for t in mine)
        keys = [key for key in found if key.endswith(f"/{domain}")]
        each = sum(parts[2])[n].tolist() if processes > 1 else [found[key] for key in keys]
        sums_found = dict(zip(keys, each, strict=True))
        for name, expected in sums.items():
            assert sums_found[f"{name}/{domain}"] == pytest.approx(expected, rel=1e-10)


def documents_of(rows, **asked):
    """What `keep_documents` found, and the sums of the same pass."""
    made = run(**asked)
    sums = made.evaluate(as_rows(rows, "validation"), [], None, keep_documents=True)
    return made.documents, sums


def test_each_document_has_its_own_loss():
    rows = [{"input_ids": row["input_ids"]} for row in given.single_rows()]
    found, sums = documents_of(rows)
    expected = {n: -whole_logits(row) for n, row in enumerate(rows) if len(row["input_ids"]) > 1}
    assert dict(zip(found.document, found.nll, strict=True)) == pytest.approx(expected, rel=1e-6)
    assert (found.tokens.sum(), found.bytes.sum()) == (sums["tokens"], sums["bytes"])


@pytest.mark.parametrize("micro_batch", [1, 100])
def test_documents_of_packed_rows_add_up_to_the_whole(known, micro_batch, monkeypatch):
    monkeypatch.setattr("kdcore.training.evaluation.chunk_size", lambda vocabulary, device: 7)
    found, _ = documents_of(ROWS, micro_batch=micro_batch)
    assert float(found.nll.sum()) == pytest.approx(known["nll"], rel=1e-6)
    assert int(found.tokens.sum()) == known["tokens"]
    assert int(found.bytes.sum()) == known["bytes"]
    assert found.rows == documents_of(ROWS)[0].rows


def test_other_tokens_are_other_rows():
    rows = given.single_rows()
    longest = max(range(len(rows)), key=lambda n: len(rows[n]["input_ids"]))
    ids = [*rows[longest]["input_ids"]]
    assert ids[1] != ids[2]
    ids[1], ids[2] = ids[2], ids[1]
    swapped = [*rows]
    swapped[longest] = {**rows[longest], "input_ids": ids}
    assert documents_of(rows)[0].rows != documents_of(swapped)[0].rows
