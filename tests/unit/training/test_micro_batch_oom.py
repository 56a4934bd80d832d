"""Too little memory: half the micro-batch, and the same objective."""

import logging
from types import SimpleNamespace

import given
import pytest
import torch
from kdcore_selections import Hardest
from training import Eval, assert_equal, records, trainer, weights

from kdcore import RunError

pytestmark = pytest.mark.slow

ROWS = given.packed_rows()


def small(made, rows):
    """The trunk has memory for so many rows; notes how many it was given."""
    inner, made.given = made.wrapped.forward, []

    def forward(batch, *arguments):
        made.given.append(len(batch.input_ids))
        if len(batch.input_ids) > rows:
            raise torch.OutOfMemoryError(f"{len(batch.input_ids)} rows do not fit\nand so on")
        return inner(batch, *arguments)

    made.wrapped.forward = forward
    return made


@pytest.mark.parametrize("selection", [None, Hardest(keep=0.5)])
def test_the_step_is_done_again_with_half(tmp_path, caplog, selection):
    options = {"selection": selection, "steps": 3, "log_every": 1}
    made = small(trainer(tmp_path / "made", micro_batch=4, **options), rows=1)
    with caplog.at_level(logging.WARNING, "kdcore"):
        made.train()
    assert made.given[:3] == [4, 2, 1] and set(made.given[3:]) == {1}
    assert made.run.micro_batch == 1
    assert "after step 0: train.micro_batch is now 2 instead of 4 (4 rows do not" in caplog.text
    plain = trainer(tmp_path / "plain", micro_batch=1, **options)
    plain.train()
    assert_equal(weights(made), weights(plain))
    assert [r.terms for r in records(made)] == [r.terms for r in records(plain)]


def test_what_was_prepared_ahead_is_halved_too(tmp_path):
    made = small(trainer(tmp_path, micro_batch=4, workers=1), rows=2)
    made.train()
    assert made.given[0] == 4 and max(made.given[1:]) == 2


def test_the_memory_of_cuda_graphs_is_given_up(tmp_path):
    made = small(trainer(tmp_path, micro_batch=4), rows=2)
    forgotten = []
    made.run.language_model.replayed = SimpleNamespace(
        states=lambda batch, forward: None, forget=lambda: forgotten.append(made.run.micro_batch)
    )
    made.train()
    assert forgotten == [2]


def test_the_dropout_of_the_step_is_the_same(tmp_path):
    """The generators are where they were before the step."""
    made = small(trainer(tmp_path, micro_batch=4), rows=2)
    drawn, inner = [], made.wrapped.forward

    def forward(*arguments):
        drawn.append(float(torch.rand(1)))
        return inner(*arguments)

    made.wrapped.forward = forward
    made.step(1)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_checkpoint_knows_what_fits(tmp_path):
    first = small(trainer(tmp_path, micro_batch=4, steps=2), rows=2)
    first.train()
    second = trainer(tmp_path, micro_batch=4, steps=2)
    second.resume()
    assert second.run.micro_batch == 2


def test_who_asks_for_another_micro_batch_gets_it(tmp_path):
    first = trainer(tmp_path, micro_batch=2, steps=2)
    first.train()
    second = trainer(tmp_path, micro_batch=4, steps=2)
    second.run.recipe.train = SimpleNamespace(**{**vars(second.run.recipe.train), "micro_batch": 4})
    second.resume()
    assert second.run.micro_batch == 4


def test_one_row_that_does_not_fit_is_an_error(tmp_path):
    made = small(trainer(tmp_path, micro_batch=4), rows=0)
    with pytest.raises(torch.OutOfMemoryError, match="1 rows do not fit"):
        made.train()
    assert made.given == [4, 2, 1]


def test_micro_batches_that_are_part_of_the_experiment_stay(tmp_path):
    made = small(trainer(tmp_path, micro_batch=4, selection=Hardest(keep=0.5)), rows=2)
    made.run.recipe.scope = "micro_batch"
    with pytest.raises(RunError, match=r"micro_batch = 4, and \[selection\] scope"):
        made.train()


def test_an_evaluation_is_done_again_too(tmp_path):
    class Hungry(Eval):
        def measure(self, run):
            if run.micro_batch > 2:
                raise torch.OutOfMemoryError("too many")
            return super().measure(run)

    asked = Hungry()
    made = trainer(tmp_path, micro_batch=4, evals=[asked], steps=1, eval_first=True)
    made.train()
    assert asked.steps == [0, 1]
