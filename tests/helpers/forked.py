"""Commands in forks of a process that has only imported the libraries: a start takes no seconds.

What a command starts itself, such as the processes of `--processes 2` or the runs of a sweep, are
forks of it too. A few tests start Python anew, to show that these commands are found and passed on.
"""

import os
import runpy
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from threading import Thread

from several import FORKS

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def run(*words, **about):
    """`python -m WORDS` to its end, with what it printed. `about` is that of `Begun`."""
    begun = Begun(*words, **about)
    out, err = begun.communicate()
    return subprocess.CompletedProcess(words, begun.returncode, out, err)


class Begun:
    """What tests need of a subprocess.Popen of `python -m WORDS`, a session of its own."""

    def __init__(self, *words, folder=".", closed=(), **environment):
        there = str(os.path.abspath(folder)), {**os.environ, **environment}
        pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
        ends = [end for _, end in pipes]
        self._process = FORKS.Process(target=_begin, args=(words, there, ends, closed))
        self._process.start()
        for end in ends:
            end.close()
        self.pid, self._said = self._process.pid, ["", ""]
        self._readers = [
            Thread(target=self._read, args=(n, begin)) for n, (begin, _) in enumerate(pipes)
        ]
        for each in self._readers:
            each.start()

    def _read(self, number, pipe):
        with pipe, open(pipe.fileno(), closefd=False) as stream:
            self._said[number] = stream.read()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    @property
    def returncode(self):
        return self._process.exitcode

    def communicate(self):
        """What it and all that it started printed and said, when all of them have ended."""
        self._process.join()
        for each in self._readers:
            each.join()
        return tuple(self._said)


def _begin(words, there, ends, closed):
    os.setsid()
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    folder, environment = there
    os.chdir(folder)
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    _work(words, environment)


def _work(words, environment):
    """The command, in this process, as if Python had been started for it."""
    import datasets
    import torch
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.environ.clear()
    os.environ |= environment
    datasets.config.HF_DATASETS_CACHE = environment["HF_DATASETS_CACHE"]
    torch.set_num_threads(1)
    vars(subprocess)["Popen"] = vars(subprocess_handler)["Popen"] = _Fork
    for name in _SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit(_code_of(words))


def _code_of(words):
    sys.argv, code = list(words), 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    return code


def _let_go():
    """Of pipes and files of the parent. They are not closed: their objects here may do it later,
    when the numbers are those of other files.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):
        if number > 2:
            with suppress(OSError):
                os.fstat(number)  # that of the folder is closed by now
                os.dup2(nothing, number)


class _Fork(subprocess.Popen):
    """One of `python [-P] [-u] -m WORDS` is a fork of this process; any other is what it is."""

    def _execute_child(self, args, *how):
        if isinstance(args, str) or str(args[0]) != sys.executable or "-m" not in args[:4]:
            super()._execute_child(args, *how)
            return
        cwd, env, pipes = how[4], how[5], how[9:15]
        own_session, group = how[-2:]
        self.pid = os.fork()
        if self.pid == 0:
            if own_session:
                os.setsid()
            if group is not None and group >= 0:
                os.setpgid(0, group)
            for number, end in enumerate((pipes[0], pipes[3], pipes[5])):
                if end >= 0:
                    os.dup2(end, number)
            _let_go()
            os.chdir(cwd or ".")
            _work(args[args.index("-m") + 1 :], dict(os.environ if env is None else env))
        self._child_created = True
        self._close_pipe_fds(*pipes)
