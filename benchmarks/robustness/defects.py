"""Show the defects of version 0.1.0 at d0d134d, each by a small reproduction.

    python benchmarks/robustness/defects.py               of the installed version
    PYTHON_OF_AN_OLD_VERSION benchmarks/robustness/defects.py

A line of the output is a defect's number, whether this version has it, and what was seen. Only the
command line and files are used, so the same reproductions run with any version. The exit code is 1
if the version has one of the defects.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typed import (
    OF_MODEL,
    TEMPLATE,
    dialogue,
    kdcore,
    metrics,
    model,
    recipe,
    records,
    refusing,
    sft,
    text_recipe,
    values,
)
from whole_runs import recipe_text  # typed knows where it is

WORDS = "the cat sat on the mat and then the dog ran far away from it all day long"
CACHED = """
[stage.big]
[stage.small.teacher]
use = "cached"
kind = "topk"
k = 8
teacher = {use = "hf", model = "@big"}
[[stage.small.loss]]
use = "kl"
"""
Seen = tuple[bool, str]
"""Whether the defect is there, and what was seen."""


def line_1() -> Seen:
    """Top-k at another temperature: step 1 against a live teacher."""
    found = []
    loss = 'use = "kl"\ntemperature = 2.0'
    dense = CACHED[: CACHED.index("use = ")] + 'use = "hf"\nmodel = "@big"\n'
    for more in (dense, CACHED.rpartition("[[")[0].replace("k = 8", "k = 200")):
        shutil.rmtree("runs", ignore_errors=True)
        terms = f'{loss}\n[[stage.small.loss]]\nuse = "ce"\nweight = 0.1\n'
        recipe({}, f"{more}[[stage.small.loss]]\n{terms}")
        if done := kdcore("run", "r.toml", "-q").code:
            return False, f"refused with {done}"
        found.append((values("gradient/kl", "runs/*small*") or values("loss", "runs/*small*"))[0])
    live, stored = found
    return abs(stored - live) > 0.05 * live, f"size of the gradient {stored:.4f}, live {live:.4f}"


def line_2() -> Seen:
    """Thoughts that the template reads."""
    found = []
    for more in ({}, {"reasoning_content": "because the cat sat there"}):
        shutil.rmtree("runs", ignore_errors=True)
        done = sft([dialogue(f"answer {n}", **more) for n in range(20)])
        if done.code:
            return False, f"refused with {done.code}"
        found.append(max(values("tokens")))
    return found[0] == found[1], f"{found[0]:.0f} tokens without thoughts, {found[1]:.0f} with"


def line_3() -> Seen:
    """Ids of a CSV are no text."""
    found = []
    for start in (0, 5_000_000):
        lines = [f'{start + n},"{WORDS} {n}"' for n in range(40)]
        Path("a.csv").write_text("\n\n".join(["id,text", *lines]))
        shutil.rmtree("runs", ignore_errors=True)
        text_recipe("a.csv")
        if code := kdcore("run", "r.toml", "-q").code:
            return False, f"refused with {code}"
        found.append(values("loss"))
    return found[0] != found[1], f"losses {found[0][0]:.4f} and {found[1][0]:.4f} with other ids"


def line_4() -> Seen:
    """The bos that the tokenizer puts there."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = model()
    path = str(Path(folder, "tokenizer.json"))
    backend = Tokenizer.from_file(path)
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    backend.save(path)
    records("t.jsonl", [{"text": f"{WORDS} {n}"} for n in range(40)])
    text_recipe("t.jsonl", {**OF_MODEL, "data.block": 128})
    said = kdcore("show", "--data", "r.toml").out
    return "<bos>" not in said, "rows begin without it" if "<bos>" not in said else "it is there"


def line_8() -> Seen:
    """A mark in a message is text."""
    model()
    records("t.jsonl", [{"text": f"say <eos> {WORDS}{n}"} for n in range(40)])
    text_recipe("t.jsonl", {**OF_MODEL, "data.eos": False, "data.block": 128})
    counts = []
    for mark in ("<eos>", "#####"):
        records("t.jsonl", [{"text": f"say {mark} {WORDS}{n}"} for n in range(40)])
        found = re.search(r"([\d,]+) tokens in all", kdcore("show", "--data", "r.toml").out)
        counts.append(found[1] if found else "no")
    return counts[0] != counts[1], f"{counts[0]} tokens, {counts[1]} without a mark"


def line_9() -> Seen:
    """Today's date in a template."""
    dated = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    code = sft([dialogue(f"answer {n}") for n in range(20)], dated).code
    return code == 0, f"exit code {code}"


def line_10() -> Seen:
    """The same held-out rows for every seed."""
    model()
    of_model = {**OF_MODEL, **{f"student.config.{key}": None for key in _CONFIG}}
    found = []
    for seed in (0, 1):
        text = recipe_text({**of_model, "seed": seed, "train.eval_rows": 2}, "")
        Path("r.toml").write_text(text.replace("[student.config]", '[student]\nmodel = "model"'))
        kdcore("run", "r.toml", "-q")
        found.append(values("eval/nll")[0])
    return found[0] != found[1], f"nll of one model {found[0]:.4f} and {found[1]:.4f}"


_CONFIG = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    "num_attention_heads",
)


def line_11() -> Seen:
    """A bit that flips in a finished stage."""
    recipe({}, CACHED)
    kdcore("run", "r.toml", "-q")
    (final,) = Path().glob("runs/*big*/final/model.safetensors")
    content = bytearray(final.read_bytes())
    content[-3] ^= 4
    final.write_bytes(content)
    for path in Path().glob("runs/*small*"):
        shutil.rmtree(path)
    code = kdcore("run", "r.toml", "-q").code
    return code == 0, f"exit code {code}"


def line_12() -> Seen:
    """One I/O error on metrics.jsonl."""
    import errno

    recipe()
    code = kdcore("run", "r.toml", "-q", before=refusing("metrics.jsonl", errno.EIO)).code
    steps = len(values("loss"))
    return code == 0 and steps < 4, f"exit code {code}, {steps} of 4 records"


def line_13() -> Seen:
    """The name of the stage in records of `kdcore run FOLDER`."""
    recipe({}, CACHED)
    kdcore("run", "r.toml", "-q")
    (run,) = Path("runs").glob("*small*")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-4")
    code = kdcore("run", str(run), "-q").code
    stages = {str(line.get("stage")) for line in metrics(str(run))}
    return "" in stages, f"exit code {code}, stages {sorted(stages)}"


def line_14() -> Seen:
    """Decay of norms with two dimensions."""
    from safetensors.torch import load_file

    cohere = {"student.config.model_type": "cohere", "student.config.use_qk_norm": True}
    recipe({**cohere, "train.weight_decay": 50.0, "train.lr": 1e-3, "train.steps": 8})
    code = kdcore("run", "r.toml", "-q").code
    if code:
        return False, f"exit code {code}"
    (final,) = Path().glob("runs/*/final/model.safetensors")
    norms = [float(w.mean()) for key, w in load_file(final).items() if "q_norm" in key]
    return norms[0] < 0.95, f"mean of the query norm {norms[0]:.3f}, was 1"


def line_17() -> Seen:
    """A term is logged as the loss defines it."""
    recipe({}, '\n[[loss]]\nuse = "smoothed-ce"\nweight = 0.125\n')
    kdcore("run", "r.toml", "-q")
    found = values("loss/smoothed-ce") or [0.0]
    return found[0] < 3, f"loss/smoothed-ce {found[0]:.2f} nats with weight 0.125"


def line_18() -> Seen:
    """SIGUSR2 writes a checkpoint."""
    recipe({"train.steps": 400, "train.save_every": 400, "train.eval_every": 400})

    def send() -> None:
        from threading import Thread

        def when_it_trains() -> None:
            while not any(Path().glob("runs/*/metrics.jsonl")) or len(values("loss")) < 3:
                pass
            os.kill(os.getpid(), signal.SIGUSR2)

        Thread(target=when_it_trains, daemon=True).start()

    code = kdcore("run", "r.toml", "-q", before=send).code
    saved = [path.name for path in Path().glob("runs/*/checkpoints/step-*")]
    return code != 143 or not saved, f"exit code {code}, checkpoints {saved}"


def line_19() -> Seen:
    """A token cache that was cut."""
    text_recipe(records("t.jsonl", [{"text": f"{WORDS} {n}"} for n in range(40)]))
    kdcore("run", "r.toml", "-q")
    caches = [path for path in Path("datasets").rglob("*.arrow")]
    for path in caches:
        path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree("runs")
    code = kdcore("run", "r.toml", "-q", "--fresh").code
    return code != 0, f"exit code {code} with {len(caches)} files cut"


def line_20() -> Seen:
    """An I/O error of a token cache."""
    import errno

    recipe()
    done = kdcore("run", "r.toml", "-q", before=refusing("/datasets/", errno.EIO, 99))
    return done.code == 3, f"exit code {done.code}"


def line_21() -> Seen:
    """A file system without flock."""
    import errno

    def without() -> None:
        import fcntl

        flock = fcntl.flock

        def refuse(file: Any, operation: int) -> None:
            number = file if isinstance(file, int) else file.fileno()
            if "/runs/" in os.readlink(f"/proc/self/fd/{number}"):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            flock(file, operation)

        vars(fcntl)["flock"] = refuse

    recipe()
    code = kdcore("run", "r.toml", "-q", before=without).code
    return code != 0, f"exit code {code}"


def line_22() -> Seen:
    """A template that does not end."""
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    code = sft([dialogue(f"answer {n}") for n in range(20)], loops + TEMPLATE).code
    return code == -signal.SIGALRM, f"exit code {code}"


def line_23() -> Seen:
    """Standard error is closed."""
    recipe()

    def closed() -> None:
        os.close(2)
        sys.stderr = None  # type: ignore[assignment] # as Python starts without one

    code = kdcore("run", "r.toml", before=closed).code
    return code != 0, f"exit code {code}"


def line_27() -> Seen:
    """A path that is not there."""
    code = kdcore("check", text_recipe("nowhere.jsonl")).code
    return code == 0, f"exit code {code} of check"


def line_28() -> Seen:
    """Options of other trainers."""
    recipe()
    said = kdcore("run", "r.toml", "--learning_rate", "1").said
    return "train.lr" not in said, "names train.lr" if "train.lr" in said else "names no option"


def line_30() -> Seen:
    """The folder on standard output."""
    recipe()
    out = kdcore("run", "r.toml", "-q").out.strip()
    return not out.startswith("runs/"), f"prints {out[:20]!r}"


def line_34() -> Seen:
    """The teacher's own score."""
    recipe(
        {},
        CACHED.replace('use = "cached"\nkind = "topk"\nk = 8\n', 'use = "hf"\n').replace(
            'teacher = {use = "hf", model = "@big"}', 'model = "@big"'
        ),
    )
    code = kdcore("run", "r.toml", "-q").code
    found = values("eval/teacher_nll", "runs/*small*")
    return not found, f"exit code {code}, eval/teacher_nll {found[:1]}"


def line_37() -> Seen:
    """Documents of a step, and 38: the best checkpoint."""
    recipe({"train.batch": None, "train.batch_documents": 4, "train.keep_best": "eval/nll"})
    code = kdcore("check", "r.toml").code
    return code != 0, f"exit code {code} of check"


def line_39() -> Seen:
    """The recipe of the document of 004."""
    code = kdcore("check", "llama3_babylm").code
    return code == 2, f"exit code {code} of check"


def line_42() -> Seen:
    """No steps."""
    recipe({"train.steps": 0})
    code = kdcore("run", "r.toml", "-q").code
    made = any(Path().glob("runs/*/final/model.safetensors"))
    return code != 0 or not made, f"exit code {code}, final is {'there' if made else 'not there'}"


def line_46() -> Seen:
    """A system without fcntl."""
    recipe()

    def without() -> None:
        for name in [each for each in sys.modules if each.partition(".")[0] == "kdcore"]:
            del sys.modules[name]
        sys.modules["fcntl"] = None  # type: ignore[assignment]

    code = kdcore("run", "r.toml", "-q", before=without).code
    return code != 0, f"exit code {code}"


LINES: Mapping[int, Callable[[], Seen]] = {
    int(name.removeprefix("line_")): each
    for name, each in list(globals().items())
    if name.startswith("line_")
}


def shown(number: int) -> Seen:
    """A reproduction in a folder of its own."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix=f"kdcore-defect-{number}-") as folder:
        os.chdir(folder)
        try:
            return LINES[number]()
        except (IndexError, ValueError, KeyError) as error:
            return True, f"nothing to read: {type(error).__name__}"
        finally:
            os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("numbers", type=int, nargs="*", default=list(LINES))
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    import datasets  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, optimization  # noqa: F401
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    found = 0
    for number in asked.numbers:
        has, what = shown(number)
        found += has
        print(f"| {number} | {'defect' if has else 'no defect'} | {what} |", flush=True)
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
