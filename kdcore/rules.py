"""What must hold between the tables of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdcore.api import Component, Loss, Teacher
from kdcore.blame import asked
from kdcore.complaints import shown
from kdcore.contract import suggestion
from kdcore.errors import Fault
from kdcore.options import RIVALS
from kdcore.tables import AT_TOP, IN_STAGE, LISTS, TABLES
from kdcore.written import Written

if TYPE_CHECKING:
    from kdcore.assembling import Assembly

_NEEDED = {
    "student": '[student] with model = "...", or [student.config] with model_type = "..."',
    "data": '[data] with use = "..."',
    "loss": '[[loss]] with use = "..."',
    "train": "[train] with lr, and one of epochs, steps and tokens",
}


def shape_faults(table: Written, title: str) -> Iterator[Fault]:
    """Keys that nobody knows, tables that are missing, and lists in place of tables."""
    for key, value in table.table.items():
        if key in AT_TOP:
            yield value.fault(f"{key} stands at the top level of the recipe, not in a stage")
        elif key not in IN_STAGE:
            near = suggestion(key, (*AT_TOP, *IN_STAGE))
            hint = "" if near else f"it has: {', '.join((*AT_TOP, *IN_STAGE))}"
            yield value.fault(f"a recipe has no {key!r}{near}", hint)
        elif key in TABLES and not value.is_table:
            yield value.fault(f"{key} should be one table, not {_what(value)}", f"write [{key}]")
        elif key in LISTS and not value.is_list:
            said = f"{key} should be a list of tables, not {_what(value)}"
            yield value.fault(said, f"write [[{key}]]")
    for key, way in _NEEDED.items():
        missing = key not in table.table
        if missing or (key == "loss" and table.table[key].plain() == []):
            place = table if missing else table.table[key]
            brackets = f"[[{key}]]" if key in LISTS else f"[{key}]"
            yield place.fault(f"{title} has no {brackets}", f"add {way}")


def _what(value: Written) -> str:
    return "a list" if value.is_list else shown(value.plain())


def rules_between(stage: Assembly) -> Iterator[Fault]:
    """Every rule that is broken, as far as it can be told."""
    yield from _one_of_rivals(stage)
    yield from _tokenizer_of_fresh_student(stage)
    yield from _tokens_without_selection(stage)
    yield from _teacher_and_its_users(stage)


def _one_of_rivals(stage: Assembly) -> Iterator[Fault]:
    for key, rivals in RIVALS.items():
        table = stage.tables.get(key)
        given = [rival for rival in table.table if rival in rivals] if table else []
        names = f"{', '.join(rivals[:-1])} and {rivals[-1]}"
        if table and not given:
            yield table.fault(f"[{key}] needs one of {names}")
        for rival in given[1:]:
            said = f"[{key}] takes one of {names}, and {given[0]} is given as well"
            yield table.table[rival].fault(said, f"leave out {given[0]} or {rival}")  # type: ignore[union-attr]


def _tokenizer_of_fresh_student(stage: Assembly) -> Iterator[Fault]:
    student = stage.tables.get("student")
    if student and "config" in student.table and "tokenizer" not in stage.table.table:
        said = "a student made from [student.config] brings no tokenizer"
        yield student.table["config"].fault(said, 'add [tokenizer] with use = "..."')


def _tokens_without_selection(stage: Assembly) -> Iterator[Fault]:
    if "selection" in stage.table.table:
        return
    for item in stage.lists.get("loss", ()):
        on = item.table.get("on")
        if on is not None and on.value in ("all", "dropped"):
            said = f"on = {shown(on.value)} needs a selection, and {stage.title} has no [selection]"
            yield on.fault(said, "without one every token is kept: leave `on` out")


def needs_teacher(component: Component) -> bool:
    """Whether it asks for the run's own teacher. A loss, an eval and a selection can say so."""
    says: object = getattr(component, "needs_teacher", False)
    return asked(component, "needs_teacher", of=bool) if callable(says) else bool(says)


def _teacher_and_its_users(stage: Assembly) -> Iterator[Fault]:
    could = [*(term.loss for term in stage.terms), *stage.evals, stage.selection]
    users = [one for one in could if one is not None and needs_teacher(one)]
    places = {id(made): table for made, table in stage.builder.places}
    table = stage.tables.get("teacher")
    if table is not None:
        if not users and _is_complete(stage):
            said = "nobody uses the teacher: no loss, selection or eval asks for it"
            yield table.fault(
                said, 'leave [teacher] out, or say use = "none" where it is inherited'
            )
        if stage.teacher is not None:
            for user, said, hint in _ill_served(stage.teacher, users, table.use):
                yield places[id(user)].table["use"].fault(said, hint)
    elif "teacher" not in stage.table.table:
        for user in users:
            said = f"{user.name!r} needs a teacher, and {stage.title} has no [teacher]"
            yield places[id(user)].table["use"].fault(said, 'add [teacher] with use = "..."')


def _ill_served(
    teacher: Teacher, users: Sequence[Component], use: str | None
) -> Iterator[tuple[Component, str, str]]:
    """Who needs more than the teacher can give, with the fault and a hint."""
    gives_logits = asked(teacher, "gives_logits", of=bool)
    is_estimate = asked(teacher, "is_estimate", of=bool)
    for user in users:
        if isinstance(user, Loss) and not gives_logits:
            said = f"the loss {user.name!r} needs logits, and the teacher {use!r} gives no logits"
            yield user, said, ""
        linear = isinstance(user, Loss) and asked(user, "linear_in_teacher", of=bool)
        if is_estimate and not linear:
            said = f"{user.name!r} needs the teacher's distribution, and {use!r} gives an estimate"
            yield user, said, "only losses that are linear in its probabilities learn from that"


def _is_complete(stage: Assembly) -> bool:
    """Whether everything that could use a teacher was built."""
    wanted = sum(len(stage.lists.get(key, ())) for key in ("loss", "eval"))
    wanted += "selection" in stage.table.table
    return wanted == len(stage.terms) + len(stage.evals) + (stage.selection is not None)
