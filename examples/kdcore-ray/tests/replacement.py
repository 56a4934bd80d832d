"""What the executor uses of Ray, where each task is a process of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from types import SimpleNamespace


class WorkerCrashedError(Exception):
    """As Ray's."""


class Task:
    """A task in a forked process; its value is the process's exit status."""

    def __init__(self, function, arguments, options):
        self.options = options
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self._run, args=(function, arguments))
        self.process.start()

    @staticmethod
    def _run(function, arguments):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(function(*arguments) & 0xFF)


class Ray(SimpleNamespace):
    """The module."""

    def __init__(self, refuses=None):
        self.refuses, self.asked, self.tasks = refuses, None, []
        self.cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)

    def is_initialized(self):
        return self.asked is not None

    def init(self, **options):
        if self.refuses:
            raise ConnectionError(self.refuses)
        self.asked = options

    def remote(self, function):
        def submit(options, arguments):
            self.tasks.append(Task(function, arguments, options))
            return self.tasks[-1]

        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(
                remote=lambda *arguments: submit(options, arguments)
            )
        )

    def wait(self, tasks, num_returns=1, timeout=None):
        for task in tasks if timeout else ():
            task.process.join(timeout)
        ended = [task for task in tasks if not task.process.is_alive()]
        return ended, [task for task in tasks if task not in ended]

    def get(self, task):
        task.process.join()
        if task.process.exitcode < 0:
            raise WorkerCrashedError("The worker died.\nMore lines.")
        return task.process.exitcode

    def cancel(self, task):
        if task.process.is_alive():
            os.kill(task.process.pid, signal.SIGINT)
