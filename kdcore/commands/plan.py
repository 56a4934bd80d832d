"""`kdcore plan`: what a recipe will do and require, before anything is loaded or trained."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdcore.analysis.hours import Hours, measured, predicted
from kdcore.analysis.plan import StagePlan, plans_of
from kdcore.analysis.processes import ProcessMemory, card_for
from kdcore.analysis.sweep_hours import SweepHours, hours_of_sweep
from kdcore.cli.examples import examples
from kdcore.cli.main import Logs, Sets, plugin_manager
from kdcore.commands.fitting import labelled
from kdcore.commands.output import Plugins, tell
from kdcore.errors import KdcoreError
from kdcore.guard import call_checked_list
from kdcore.objective.teachers import teachers_in
from kdcore.recipe.recipe import Recipe, read_recipe
from kdcore.runs.open import stage_outputs
from kdcore.sweeps.points import SweepRequest, read_points
from kdcore.terminal.formatting import count, duration, percent, size
from kdcore.training.micro_batch import MARGIN

Train = Any  # the recipe's [train]
Facts = Iterator[tuple[str, str]]

_DEVICES = {"cpu": "memory of the process", "cuda": "memory of the GPU (predicted)"}
_UNKNOWN = "not known (plan downloads no data and loads no weights)"
_TOKEN = 4  # bytes of a token on disk
_MARGIN = (0, 0, 0, 2)


@examples(
    "kdcore plan quickstart",
    "kdcore plan mine.toml --set data.block=1024",
    "kdcore plan mine.toml --gpus 16",
)
def plan(
    recipe: Annotated[str, typer.Argument(help="A path, or the name of a shipped recipe.")],
    sets: Sets = None,
    logs: Logs = None,
    out: Annotated[Path, typer.Option(help="Where runs and teacher caches are kept.")] = Path(
        "runs"
    ),
    every: Annotated[
        bool, typer.Option("--all", help="List each tensor, and the tree of modules.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few real steps; loads weights.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=0, help="Predict memory on up to this many GPUs.")] = 0,
    price: Annotated[
        float | None, typer.Option(min=0, help="The price of a device hour, in your currency.")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Show what a recipe will do: objective, sizes, steps, memory, disk and time.

    Time is predicted from operations and bytes at this machine's speed; --measure takes a few real
    steps. Without --measure no weights are loaded.
    """
    host = plugin_manager(plugins)
    found = read_recipe(recipe, host, sets=sets or (), logs=logs or ())
    all_of_it: list[Hours | None] = []
    for note in found.notes:
        print(note, file=sys.stderr)
    symbols: dict[str, str] = {}
    for each in plans_of(found, _counts(gpus)):
        _tell_stage(each)
        hours = predicted(each)
        all_of_it.append(measured(found, each, host, out, hours) if measure else hours)
        tell(labelled([("time", _time(all_of_it[-1], price))]), "")  # last, as it takes a moment
        if every and each.estimate is not None:
            tell(_tensors(each.estimate), "", Padding(Text(each.estimate.tree), _MARGIN), "")
        for said in _warnings(found, each.stage.name, out):
            tell(Padding(Text(said, "yellow"), _MARGIN), "")
        symbols |= each.symbols
    if len(all_of_it) > 1 and any(all_of_it):
        tell(Text("time of all stages", "bold"), labelled([("", _in_all(all_of_it, price))]), "")
    if found.sweep is not None:
        asked = SweepRequest(recipe, tuple(sets or ()), (), tuple(logs or ()))
        sweep = _of_sweep(hours_of_sweep(read_points(asked, host).all), price)
        tell(Text("time of the sweep", "bold"), labelled([("", sweep)]), "")
    tell(Text("symbols", "bold"), labelled(symbols.items()))


def _time(hours: Hours | None, price: float | None) -> str:
    if hours is None:
        return "not known, as the steps, the tokens or the models are not"
    cpu = "" if hours.cpu_seconds is None else f", {hours.cpu_seconds:,.0f} CPU seconds"
    return f"about {_hours(hours.seconds, price)}{cpu}, {hours.how}: {hours.why}"


def _hours(seconds: float, price: float | None) -> str:
    """As a duration, in device hours, and in money."""
    said = f"{duration(max(1.0, seconds))} ({seconds / 3600:.2g} device hours"
    return f"{said}, {price * seconds / 3600:,.2f} in money)" if price is not None else f"{said})"


def _in_all(every: Sequence[Hours | None], price: float | None) -> str:
    known = [each for each in every if each is not None]
    least = "at least " if len(known) < len(every) else "about "
    return least + _hours(sum(each.seconds for each in known), price)


def _of_sweep(found: SweepHours, price: float | None) -> str:
    runs = f"{found.runs:,} runs of {found.points:,} points: "
    if found.unknown == found.runs:
        return f"{runs}not known"
    rest = f"; {found.unknown:,} runs are not known" if found.unknown else ""
    least = "at least" if found.unknown else "about"
    return f"{runs}{least} {_hours(found.seconds, price)}, predicted{rest}"


def _warnings(recipe: Recipe, stage: str, out: Path) -> list[str]:
    """Warnings of its teachers, as far as their models are available."""
    try:
        built = recipe.build(stage, stage_outputs(recipe, stage, out))
        teachers = teachers_in(built.components())
        return [
            said
            for one in teachers
            for said in call_checked_list(one, "warnings", built, out / "caches")
        ]
    except (KdcoreError, OSError):
        return []


def _tell_stage(plan: StagePlan) -> None:
    tell(Text(plan.stage.run_name, "bold"), labelled(_facts(plan)), "")
    tell(Padding(Text(plan.objective), _MARGIN), "")
    if plan.estimate is not None:
        tell(_parameters(plan.estimate), "", _memory(plan.estimate), "")
        tell(_disk(plan), "")
    if plan.processes:
        tell(_processes(plan.processes), "")
    if plan.unknown:
        tell(Padding(Text(_UNKNOWN, "yellow"), _MARGIN), labelled(_by_cause(plan.unknown)), "")


def _by_cause(unknown: Sequence[str]) -> Facts:
    """Unknown values by cause, each cause once."""
    causes: dict[str, list[str]] = {}
    for line in unknown:
        what, _, why = line.partition(": ")
        causes.setdefault(why, []).append(what)
    for why, all_of_it in causes.items():
        yield "\n".join(all_of_it), why


def _facts(plan: StagePlan) -> Facts:
    """One line per part of the stage, and for its length and options."""
    said, train = plan.components, plan.stage.train
    yield "student", said["student"]
    if "teacher" in said:
        yield "teacher", said["teacher"]
    tokenizer = said.get("tokenizer", "the student's own")
    yield "tokenizer", tokenizer + (f": {plan.ids:,} ids" if plan.ids else "")
    begins = f", each beginning with {plan.bos!r}" if plan.bos else ""
    yield "data", said["data"] + _packing_of(plan) + begins
    if "selection" in said:
        yield "keeps", f"{said['selection']}: {_ranked(plan)}"
    if "rollout" in said:
        yield "writes", f"{said['rollout']}: {_written(plan)}"
    yield "trains", _length(plan)
    yield "batch", _batch(plan)
    yield "rate", _rate(train, plan.steps)
    yield "optimizer", _optimizer(train)


def _packing_of(plan: StagePlan) -> str:
    if plan.rows is None:
        return ""
    block = plan.stage.data.block
    return (
        f": {plan.documents:,} documents, {plan.tokens:,} tokens in {plan.rows:,} rows of at most "
        f"{block}"
    )


def _ranked(plan: StagePlan) -> str:
    """The selection's own description, and the tokens it chooses from."""
    doc = (type(plan.stage.selection).__doc__ or "").strip().split("\n")[0]
    scope = "the optimizer step" if plan.stage.scope == "step" else "each micro-batch alone"
    among = f"chosen among the tokens of {scope}"
    if plan.in_epoch and plan.tokens and plan.stage.scope == "step":
        among += f", about {round(plan.tokens / plan.in_epoch * plan.stage.train.drawn):,}"
    return f"{doc} {among[0].upper()}{among[1:]}"


def _written(plan: StagePlan) -> str:
    """Which rows are generated, and at most how many tokens with one prompt per row."""
    options, rollout, train = plan.stage.writing, plan.stage.rollout, plan.stage.train
    assert rollout is not None
    share = options.share
    rows = percent(share) if isinstance(share, (int, float)) else f"a share {share}"
    said = f"{rows} of the rows of each step"
    if options.every > 1:
        said += f", those of {options.every} steps at once"
    said += f", {options.group(plan.stage.data.block)} prompts together"
    if plan.steps is None:
        return said
    mean = share if isinstance(share, (int, float)) else max(share.start, share.end)
    most = plan.steps * train.drawn * mean * rollout.max_new_tokens
    return f"{said}; at most {count(most)} tokens where a row has one prompt"


def _length(plan: StagePlan) -> str:
    train: Train = plan.stage.train
    if plan.steps is None:
        if train.epochs is not None:
            return f"{train.epochs:g} epochs: steps are not known"
        return f"{count(train.tokens)} tokens: steps are not known"
    said = f"{plan.steps:,} steps"
    if plan.in_epoch and plan.tokens:
        epochs = plan.steps * train.drawn / plan.in_epoch
        said += f", {epochs:.3g} epochs, about {count(epochs * plan.tokens)} tokens"
    return said


def _batch(plan: StagePlan) -> str:
    train: Train = plan.stage.train
    each = plan.documents / plan.rows if plan.rows and plan.documents else 0.0
    if train.batch_documents is None:
        held = round(train.batch * each)
        holding = f"; about {held:,} documents a step" if held not in (0, train.batch) else ""
        return _in_micro_batches(plan, train.batch) + holding
    said = f"{train.batch_documents:,} documents a step"
    if not each:
        return said
    return f"{said}, about {_in_micro_batches(plan, math.ceil(train.batch_documents / each))}"


def _in_micro_batches(plan: StagePlan, rows: int) -> str:
    if plan.estimate is None:
        return f"{rows} rows"
    micro = plan.estimate.micro_batch
    found = ", as the GPU's memory allows" if plan.estimate.device == "cuda" else ""
    if micro >= rows:
        return f"{rows} rows at once{found}"
    return f"{rows} rows, in {math.ceil(rows / micro)} micro-batches of at most {micro}{found}"


def _rate(train: Train, steps: int | None) -> str:
    said = f"{train.lr:g}, {train.schedule.replace('_', ' ')}"
    said += f" to {percent(train.min_lr)} of it" if train.min_lr else ""
    if train.schedule == "constant":
        unused = ' (train.warmup needs "constant_with_warmup")' if train.warmup else ""
        return f"{train.lr:g}, constant, no warm-up{unused}"
    if not train.warmup:
        return f"{said}, no warm-up"
    if train.warmup >= 1:
        return f"{said}, {int(train.warmup)} steps of warm-up, the first at rate 0"
    counted = f" ({round(train.warmup * steps)} steps)" if steps else ""
    return f"{said}, {percent(train.warmup)} of the steps as warm-up{counted}, the first at rate 0"


def _optimizer(train: Train) -> str:
    clip = f"gradients clipped at {train.clip:g}" if train.clip else "no clipping"
    return f"{train.optimizer}, weight decay {train.weight_decay:g}, {clip}"


def _parameters(estimate: Any) -> Padding:
    frozen = any(part.trained < part.total for part in estimate.parts)
    table = _numbers("parameters", "each", "all", *(["trained"] if frozen else []))
    for part in estimate.parts:
        name = f"{part.name}, {part.count} times" if part.count > 1 else part.name
        if part.note:
            table.add_row(f"{name}: {part.note}")
        else:
            numbers = (part.each, part.total, part.trained)
            table.add_row(name, *(f"{n:,}" for n in numbers[: 3 if frozen else 2]))
    totals = [sum(getattr(part, key) for part in estimate.parts) for key in ("total", "trained")]
    table.add_row("total", "", *(f"{n:,}" for n in totals[: 2 if frozen else 1]), style="bold")
    return Padding(table, _MARGIN)


def _tensors(estimate: Any) -> Padding:
    """One line per parameter; folded, never cut."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="cyan")
    for title in ("tensor", "shape", "type", "trained", "decayed"):
        table.add_column(title, overflow="fold")
    for each in estimate.tensors:
        shape = " x ".join(map(str, each.shape))
        said = ["yes" if is_ else "no" for is_ in (each.trained, each.decayed)]
        table.add_row(each.name, shape, each.dtype, *said)
    return Padding(table, _MARGIN)


def _numbers(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="cyan")
    table.add_column(titles[0], overflow="fold")
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _memory(estimate: Any) -> Padding:
    table = _numbers(_DEVICES[estimate.device], "")
    for name, amount in estimate.memory:
        table.add_row(name, size(amount))
    table.add_row("at its fullest, as not all is needed at once", size(estimate.peak), style="bold")
    if estimate.checkpointed is not None:
        less = "activations with train.checkpointing = true"
        table.add_row(less, size(estimate.checkpointed), style="dim")
    return Padding(table, _MARGIN)


def _counts(gpus: int) -> list[int]:
    """Powers of two, and the number itself."""
    return sorted({2**n for n in range(gpus.bit_length())} | {gpus}) if gpus else []


def _processes(found: Sequence[ProcessMemory]) -> Padding:
    """One line for each number of GPUs; a layout that nothing has is left out."""
    layouts: dict[str, Sequence[int | None]] = {
        "each has all": [each.whole for each in found],
        "student sharded": [each.student for each in found],
        "and teachers": [each.teachers for each in found],
    }
    shown = {name: sizes for name, sizes in layouts.items() if any(sizes)}
    rows = sorted({each.rows for each in found})
    read = f"{rows[-1]} row{'s' * (rows[-1] > 1)}"
    table = _numbers("GPUs", *(title for name in shown for title in (name, "card")))
    for n, each in enumerate(found):
        table.add_row(f"{each.processes}", *_cells([sizes[n] for sizes in shown.values()]))
    said = f"each of several GPUs (predicted, {read} at once), and the smallest card"
    return Padding(Group(Text(said, "cyan"), table), _MARGIN)


def _cells(sizes: Sequence[int | None]) -> Iterator[str]:
    for each in sizes:
        card = None if each is None else card_for(each, MARGIN)
        yield "" if each is None else f"{each / 1e9:.1f} GB"
        yield "" if each is None else f"{card} GB" if card else "none"


def _disk(plan: StagePlan) -> Padding:
    table = _numbers("disk", "")
    amounts = dict(_on_disk(plan))
    for name, amount in amounts.items():
        table.add_row(name, "not known" if amount is None else size(amount))
    known = [amount for amount in amounts.values() if amount is not None]
    label = "in all" if len(known) == len(amounts) else "at least"
    table.add_row(label, size(sum(known)), style="bold")
    return Padding(table, _MARGIN)


def _on_disk(plan: StagePlan) -> Iterator[tuple[str, float | None]]:
    estimate = plan.estimate
    assert estimate is not None
    kept, one = _kept(plan), size(estimate.checkpoint)
    label = f"{kept} checkpoints of {one}" if kept > 1 else "a checkpoint"
    yield label, kept * estimate.checkpoint
    yield "the finished student", estimate.final
    yield "tokens, in the cache of datasets", _of_tokens(plan, _TOKEN)
    if plan.bytes_per_token:
        label = f"teachers' caches, {plan.bytes_per_token:g} bytes a token"
        yield label, _of_tokens(plan, plan.bytes_per_token)


def _of_tokens(plan: StagePlan, each: float) -> float | None:
    return None if plan.tokens is None else plan.tokens * each


def _kept(plan: StagePlan) -> int:
    """Checkpoints on disk at once: kept ones, and one being written."""
    train: Train = plan.stage.train
    every = train.save_every
    if every == "epoch":
        every = math.ceil(plan.in_epoch / train.drawn) if plan.in_epoch else 1
    written = train.save_keep + 1 if plan.steps is None else math.ceil(plan.steps / every)
    return int(min(train.save_keep + 1, written)) + (train.keep_best is not None)
