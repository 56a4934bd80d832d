import logging

import pytest

from kdcore import Logger, Loss, PluginError, RunError, component, hookimpl
from kdcore.errors import Interrupted
from kdcore.plugin.manager import PluginManager


@component
class Annealed(Loss):
    """Hears of every step."""

    name = "annealed"
    temperature: float = 1.0

    @hookimpl
    def kdcore_step_start(self, step):
        self.temperature = float(step)


@component
class Nesting(Loss):
    name = "nesting"
    inner: Loss


@component
class Heard(Logger):
    name = "heard"

    def __post_init__(self):
        self.steps = []

    @hookimpl
    def kdcore_log(self, run, record):
        self.steps.append((run, record))


@component
class Failing(Logger):
    name = "failing"
    error: str = "disk full"

    def __post_init__(self):
        self.calls = 0

    @hookimpl
    def kdcore_log(self):
        self.calls += 1
        raise OSError(self.error)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=[plugin.name for plugin in PluginManager().plugins])


def test_events_reach_components_and_only_while_listening(host):
    loss = Annealed()
    host.emit("kdcore_step_start", run=None, step=1)
    with host.listening([loss]):
        host.emit("kdcore_step_start", run=None, step=2)
    host.emit("kdcore_step_start", run=None, step=3)
    assert loss.temperature == 2.0


def test_nested_components_and_equal_ones_listen_each(host):
    first, second = Annealed(), Annealed()
    nesting = Nesting(inner=second)
    with host.listening([first, nesting, nesting.inner, first]):
        host.emit("kdcore_step_start", run=None, step=7)
    assert (first.temperature, second.temperature) == (7.0, 7.0)


def test_components_stop_listening_after_an_error(host):
    loss = Annealed()
    with pytest.raises(KeyError), host.listening([loss]):
        raise KeyError
    host.emit("kdcore_step_start", run=None, step=3)
    assert loss.temperature == 1.0


def test_components_hear_in_their_order_before_the_modules(tmp_path):
    @component
    class Ordered(Logger):
        name = "ordered"
        mark: str

        @hookimpl
        def kdcore_log(self, run):
            run.append(self.mark)

    (tmp_path / "alpha_hears.py").write_text(
        "from kdcore import hookimpl\n@hookimpl\ndef kdcore_log(run): run.append('module')"
    )
    host, called = PluginManager(files=[tmp_path / "alpha_hears.py"]), []
    with host.listening([Ordered(mark="one"), Ordered(mark="two")]):
        host.emit("kdcore_log", run=called, record=None)
    assert called == ["one", "two", "module"]


def test_a_raising_logger_is_switched_off_with_one_warning(host, caplog):
    failing, heard = Failing(), Heard()
    with caplog.at_level(logging.WARNING, logger="kdcore"), host.listening([failing, heard]):
        for step in range(3):
            host.emit("kdcore_log", run="run", record=step)
    assert failing.calls == 1 and heard.steps == [("run", 0), ("run", 1), ("run", 2)]
    (warning,) = caplog.messages
    assert warning == (
        "the logger 'failing' of the module test_events raised in kdcore_log and is now disabled: "
        "OSError: disk full"
    )


def test_a_logger_whose_record_must_not_be_lost_ends_the_run(host, monkeypatch):
    def lost(*arguments):
        raise RunError("the record is lost")

    failing = Failing()
    monkeypatch.setattr(Failing, "kdcore_log", hookimpl(lambda self, run, record: lost()))
    with host.listening([failing]), pytest.raises(RunError, match="the record is lost"):
        host.emit("kdcore_log", run=None, record=None)


def test_a_raising_logger_is_named_with_its_plugin(tmp_path, caplog):
    (tmp_path / "alpha_logger.py").write_text(
        "from kdcore import Logger, component, hookimpl\n"
        "@component\nclass Bad(Logger):\n    name = 'bad'\n"
        "    @hookimpl\n    def kdcore_log(self): 1 / 0\n"
        "@hookimpl\ndef kdcore_loggers(): return [Bad]\n"
    )
    host = PluginManager(files=[tmp_path / "alpha_logger.py"])
    with host.listening([host.provided("logger")["bad"].cls()]):
        host.emit("kdcore_log", run=None, record=None)
    assert caplog.messages[-1].startswith("the logger 'bad' of the plugin 'alpha_logger' (")


def test_other_components_that_raise_stop_the_run(host):
    @component
    class Raising(Loss):
        name = "raising"

        @hookimpl
        def kdcore_log(self):
            raise ValueError("no")

    heard = Heard()
    said = "the loss 'raising' of the module test_events raised in kdcore_log: ValueError: no"
    with host.listening([Raising(), heard]), pytest.raises(PluginError, match=said) as caught:
        host.emit("kdcore_log", run=1, record=2)
    assert heard.steps == [(1, 2)], "everybody is called, also after a failure"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_module_that_raises_is_named(tmp_path):
    (tmp_path / "alpha_raises.py").write_text(
        "from kdcore import hookimpl\n@hookimpl\ndef kdcore_run_end(): 1 / 0"
    )
    host = PluginManager(files=[tmp_path / "alpha_raises.py"])
    with pytest.raises(PluginError, match=r"the plugin 'alpha_raises' .* raised in kdcore_run_end"):
        host.emit("kdcore_run_end", run=None, error=None)


@pytest.mark.parametrize("error", [RunError("hub out of reach"), Interrupted("stopped", 2)])
def test_errors_meant_for_the_user_keep_their_exit_code(host, error):
    @component
    class Telling(Loss):
        name = "telling"

        @hookimpl
        def kdcore_run_start(self):
            raise error

    with host.listening([Telling()]), pytest.raises(type(error)) as caught:
        host.emit("kdcore_run_start", run=None)
    assert caught.value is error


def test_an_interrupt_in_a_logger_is_not_blamed_on_it(host):
    @component
    class Cut(Logger):
        name = "cut"

        @hookimpl
        def kdcore_log(self):
            raise Interrupted("stopped", 15)

    with host.listening([Cut()]), pytest.raises(Interrupted):
        host.emit("kdcore_log", run=None, record=None)
