import signal
from dataclasses import replace
from types import SimpleNamespace

import given
import pytest
from kdcore_selections import Hardest
from training import assert_equal, records, trainer, weights
from whole_runs import STAGES, run

from kdcore.errors import Interrupted
from kdcore.plugin.manager import PluginManager
from kdcore.runs import runner
from kdcore.runs.folder import finished
from kdcore.training.signals import Signals

pytestmark = pytest.mark.slow

ROWS = given.packed_rows()
TEACHER = given.model(seed=1)


@pytest.mark.parametrize("log_every", [1, 3, 5])
@pytest.mark.parametrize("selection", [None, Hardest(keep=0.5)])
def test_a_continued_run_ends_at_the_same_numbers_to_the_last_bit(tmp_path, selection, log_every):
    """Also where it was interrupted between two records."""
    options = {"selection": selection, "save_every": 5, "log_every": log_every}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    first = trainer(tmp_path / "parts", **options)
    first.signals = SimpleNamespace(agreed=lambda _: signal.SIGTERM * (first.run.step == 4))
    with pytest.raises(Interrupted, match="after step 4 of 6") as caught:
        first.train()
    assert caught.value.exit_code == 143
    second = trainer(tmp_path / "parts", **options)
    assert second.checkpoints.newest().name == "step-4"
    second.resume()
    second.train()
    assert_equal(weights(whole), weights(second))
    ended = [records(first) + records(second), records(whole)]
    for one, other in zip(*ended, strict=True):
        assert replace(one, tokens_per_second=0) == replace(other, tokens_per_second=0)


def test_who_leaves_alone_between_two_records_loses_nothing(tmp_path):
    options = {"save_every": 100, "log_every": 3}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    first = trainer(tmp_path / "parts", **options)

    def agreed(_):
        if first.run.step == 4:
            first._save_alone()
            raise ConnectionError("the others are gone")

    first.signals = SimpleNamespace(agreed=agreed)
    with pytest.raises(ConnectionError):
        first.train()
    second = trainer(tmp_path / "parts", **options)
    second.resume()
    second.train()
    assert_equal(weights(whole), weights(second))
    ended = [records(first) + records(second), records(whole)]
    for one, other in zip(*ended, strict=True):
        assert replace(one, tokens_per_second=0) == replace(other, tokens_per_second=0)


def test_evaluations_know_how_many_tokens_were_trained_on(tmp_path):
    """Also between two records."""
    known = []
    asked = SimpleNamespace(name="asked", measure=lambda run: known.append(run.tokens) or {})
    made = trainer(tmp_path, steps=4, evals=[asked], eval_every=2, log_every=100)
    made.train()
    assert known == [43, 2 * 43]


def test_a_signal_after_the_last_step_changes_nothing(tmp_path):
    made = trainer(tmp_path, steps=2, signals=SimpleNamespace(agreed=lambda _: signal.SIGINT))
    with pytest.raises(Interrupted):
        made.train()
    made.run.step = 1
    made.train()
    assert made.run.step == 2


@pytest.fixture
def interruptible():
    """What began in the background of a shell ignores ^C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_real_signal_ends_the_run_after_its_step(tmp_path, interruptible):
    with Signals() as signals:
        made = trainer(tmp_path, signals=signals)
        emit = made.host.emit

        def interrupt(hook, **arguments):
            emit(hook, **arguments)
            if hook == "kdcore_step_start" and arguments["step"] == 3:
                signal.raise_signal(signal.SIGINT)

        made.host.emit = interrupt
        with pytest.raises(Interrupted) as caught:
            made.train()
    assert caught.value.exit_code == 130
    assert made.run.step == 3
    assert made.checkpoints.newest().name == "step-3"


def test_a_signal_while_a_stage_is_saved_keeps_the_next_from_beginning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host, messages, save_final = PluginManager(off=["panel"]), [], runner.save_final

    def saved(running, student):
        signal.raise_signal(signal.SIGUSR2)
        return save_final(running, student)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="is finished") as caught:
        patch.setattr(runner, "save_final", saved)
        run(host, STAGES, on_finished=messages.append)
    assert caught.value.exit_code == 143
    (big,) = messages
    assert finished(big) and not list(tmp_path.glob("runs/*small*"))
    again = run(host, STAGES)
    assert again[0] == big and finished(again[1])
