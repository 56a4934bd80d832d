"""Failures of a teacher's server, drawn at random: the same bits in the end, or one sentence.

    python benchmarks/robustness/served_failures.py 1000 --results

A trial reads three documents from a server on loopback that fails as configured: connections that
are refused or reset, 429 and 5xx, half an answer, one that comes too late, text in place of JSON,
numbers that are none, another model behind the address. What passes must end in the bits of a read
without failures; what does not pass, in the sentence for it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import kdcore_served.client  # noqa: E402
import tiny  # noqa: E402
from kdcore_served.teacher import Served  # noqa: E402
from stub_server import Stub, serving  # noqa: E402

from kdcore import RunError  # noqa: E402
from kdcore.objective.teachers import read_outputs  # noqa: E402

PASSING: Sequence[Any] = ("reset", "half", "slow", "down", 408, 425, 429, 500, 502, 503, 504)
ODD = '{"choices": [{"prompt_logprobs": [null, %s]}]}'
ENDING: dict[str, tuple[Any, str]] = {
    "gone": ("gone", r"there is no answer from \S+ .*then type the same command"),
    "another model": ("other", r"answers differently than before: .* now gives id"),
    "401": (401, r"asks for a key \(401\): name its environment variable"),
    "403": (403, r"asks for a key \(403\): name its environment variable"),
    "404": (404, r"refused a request \(404\)"),
    "text": ("<html>busy</html>", r"text that is not JSON"),
    "another kind": ("{}", r"answered without 'choices'"),
    "too few positions": (ODD % "{}", r"expected|gave"),
    "null": (ODD % '{"1": {"logprob": null}}', r"expected|gave"),
    "NaN": (ODD % '{"1": {"logprob": NaN}}', r"expected|gave|above 0, or NaN"),
}
TOKENIZER = tiny.byte_tokenizer()
SOME = tiny.documents([9, 7, 12], len(TOKENIZER))
BATCH = tiny.batch(SOME, [[(0, 0, 9), (1, 0, 7)], [(2, 0, 12)]], vocabulary=len(TOKENIZER))
MODEL = tiny.model(vocabulary=len(TOKENIZER)).eval()
OTHER = tiny.model(vocabulary=len(TOKENIZER), seed=1).eval()


class World:
    """A server that can go and come back at one address, and a teacher that never sleeps."""

    def __init__(self) -> None:
        self.stub, self._open, self.port = Stub(MODEL), ExitStack(), 0
        self._lock = Lock()
        self.back_after = 0  # waits of the client until a server that is down comes back
        self.url = self.up()

    def up(self) -> str:
        """The address at which it answers again."""
        url = str(self._open.enter_context(serving(self.stub, self.port)))
        self.port = int(url.rpartition(":")[2])
        return url

    def down(self) -> None:
        """Nothing listens there."""
        self._open.close()

    def waited(self, seconds: float) -> None:
        """In place of the client's sleep."""
        self.stub.released.set()
        with self._lock:
            if self.back_after:
                self.back_after -= 1
                if not self.back_after:
                    self.up()

    def teacher(self, **options: Any) -> Served:
        """Loaded, with requests one after another or some at a time."""
        timeout = {"timeout": 5.0} | options
        made = Served(url=self.url, model="tiny", k=5, **timeout)
        data = SimpleNamespace(block=32)
        run: Any = SimpleNamespace(tokenizer=TOKENIZER, recipe=SimpleNamespace(data=data))
        made.load(run)
        assert made._api is not None
        made._api.client._sleep = self.waited
        return made


def read(teacher: Served) -> list[np.ndarray]:
    """All that it says of the documents, as arrays."""
    said: Any = read_outputs(teacher, BATCH)(BATCH.valid)
    return [said.ids.numpy(), said.log_probabilities.numpy()]


def trial(seed: int, kinds: Sequence[Any] = PASSING, ending: str | None = None) -> tuple[str, str]:
    """What was injected, and what is wrong with how it ended, "" where nothing is.

    `ending` is a key of ENDING; by default four trials in ten draw one.
    """
    draw, world = np.random.default_rng(seed), World()
    slow = "slow" in kinds
    teacher = world.teacher(
        concurrency=int(draw.integers(1, 5)), give_up_after=300.0, timeout=0.3 if slow else 5.0
    )
    wanted = read(world.teacher())
    passing = [kinds[int(n)] for n in draw.integers(len(kinds), size=int(draw.integers(1, 6)))]
    if ending is None and draw.random() < 0.4:
        ending = list(ENDING)[int(draw.integers(len(ENDING)))]
    failures = [each for each in passing if each != "down"]
    if ending is not None and ending not in ("gone", "another model"):
        failures.append(ENDING[ending][0])
    world.stub.failures = failures + (["reset"] if ending == "another model" else [])
    if ending == "gone":
        world.stub.gone_after = len(world.stub.asked)
    if ending == "another model":
        world.stub.model = OTHER
    elif "down" in passing and ending != "gone":
        world.back_after = int(draw.integers(1, 4))
        world.down()
    name = ending or "passes"
    try:
        return name, judged(teacher, wanted, ending, failures)
    finally:
        world.down()


def judged(
    teacher: Served, wanted: Sequence[np.ndarray], ending: str | None, injected: Sequence[Any]
) -> str:
    """What is wrong with how a read ended."""
    try:
        found = read(teacher)
    except RunError as error:
        if ending is None:
            return f"{injected}: {error}"
        pattern = ENDING[ending][1]
        # What the server says first, of several requests at a time, may be another one's.
        return "" if re.search(pattern, str(error)) else f"{ending} after {injected}: {error}"
    if ending is not None:
        return f"{ending} after {injected}: nothing was said"
    same = all(map(np.array_equal, found, wanted))
    return "" if same else f"{injected}: other bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trials", nargs="?", type=int, default=100)
    parser.add_argument("--results", action="store_true", help="write a page into results/")
    asked = parser.parse_args()
    kdcore_served.client.time.sleep = lambda seconds: None  # type: ignore[assignment]
    began, ended, wrong = time.process_time(), Counter[str](), list[str]()
    for seed in range(asked.trials):
        name, fault = trial(seed)
        ended[name] += 1
        if fault:
            wrong.append(f"seed {seed}: {fault}")
            print(wrong[-1], flush=True)
    rows = [f"| {name} | {count} |" for name, count in sorted(ended.items())]
    taken = time.process_time() - began
    page = [
        f"# {asked.trials:,} failures of a served teacher, {date.today()}",
        "",
        f"`python benchmarks/robustness/served_failures.py {asked.trials}`, {taken:.0f} CPU",
        f"seconds. {len(wrong)} ended otherwise than in the same bits or in the sentence for it.",
        "",
        "| ended as | trials |",
        "|---|---|",
        *rows,
        *(["", *wrong] if wrong else []),
    ]
    print("\n".join(page))
    if asked.results:
        path = ROOT / "benchmarks" / "results" / f"{date.today()}-served-failures.md"
        path.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
