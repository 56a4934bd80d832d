"""A recipe's tables -> a checked stage; rules between tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from kdcore.api.component import Component
from kdcore.api.data import Data, Rollout, Tokenizer
from kdcore.api.loss import Loss, Term
from kdcore.api.observers import Eval, Logger
from kdcore.api.options import ask_for_columns, option_types
from kdcore.api.run import Stage
from kdcore.api.student import StudentOptions
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import Selection
from kdcore.api.train_options import (
    RIVALS,
    ResourceOptions,
    Rivals,
    RolloutOptions,
    SelectionOptions,
    TermOptions,
    TrainOptions,
)
from kdcore.data.where import unknown_columns
from kdcore.errors import Diagnostic, did_you_mean
from kdcore.guard import call_checked, call_checked_list, needs_teacher
from kdcore.models.locations import is_absent
from kdcore.optim import sharding_error
from kdcore.recipe.build import Builder, shown
from kdcore.recipe.node import (
    AT_TOP,
    ENGINE_KEYS,
    IN_STAGE,
    KINDS_OF_TABLES,
    LISTS,
    TABLES,
    Node,
    Source,
)
from kdcore.recipe.other_words import ours
from kdcore.recipe.rollout_rules import rollout_errors
from kdcore.recipe.teacher_rules import ill_served, state_errors

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


_Kind = TypeVar("_Kind", bound=Component)
_Options = TypeVar("_Options")
_LARGEST_SEED = 2**32 - 1  # NumPy's limit


class Assembly:
    """A stage being assembled. Parts that could not be built are None, and reported in `errors`."""

    def __init__(self, table: Node, title: str, host: PluginManager) -> None:
        self.table = table
        self.title = title  # "this recipe", or "the stage 'student'"
        self.host = host
        self.errors: list[Diagnostic] = list(shape_errors(table, title))
        self.missing: list[Diagnostic] = []
        self.builder = Builder(host, self.errors)
        inner = table.table
        self.tables = {key: inner[key] for key in TABLES if key in inner and inner[key].is_table}
        self.lists = {key: inner[key].items for key in LISTS if key in inner}
        self.seed = self._seed()
        self.trusted = self._trusted()
        self.student = self._options(StudentOptions, "student")
        self.train = self._options(TrainOptions, "train")
        self.resources = self._options(ResourceOptions, "resources")
        self.data = self._component(Data, "data")
        self.tokenizer = self._component(Tokenizer, "tokenizer")
        self.teacher = self._component(Teacher, "teacher")
        self.selection = self._component(Selection, "selection")
        self.scope = self._engine_keys(SelectionOptions, "selection", self.tables.get("selection"))
        self.rollout = self._component(Rollout, "rollout")
        self.writing = self._engine_keys(RolloutOptions, "rollout", self.tables.get("rollout"))
        self.terms = self._terms()
        self.evals = self._list(Eval, "eval")
        self.loggers = self._list(Logger, "log")
        self.errors += rules_between(self)

    def stage(self, name: str, run_name: str, tokenizer_data: Node) -> Stage | None:
        """The stage, if there are no errors. A tokenizer is trained on `tokenizer_data`."""
        if self.errors:
            return None
        assert self.student and self.train and self.data and self.scope and self.writing
        stage = Stage(
            name=name,
            run_name=run_name,
            table=self.table.plain_table(),
            seed=self.seed,
            trusted=self.trusted,
            student=self.student,
            tokenizer=self.tokenizer,
            tokenizer_data=self._tokenizer_data(tokenizer_data, self.data),
            data=self.data,
            teacher=self.teacher,
            terms=self.terms,
            selection=self.selection,
            scope=self.scope.scope,
            evals=[*self._always(Eval, "eval"), *self.evals],
            loggers=[*self._always(Logger, "logger"), *self.loggers],
            train=self.train,
            rollout=self.rollout,
            writing=self.writing,
            resources=self.resources,
        )
        ask_for_columns(stage.components())
        self._ask_components(stage)
        return None if self.errors else stage

    def _seed(self) -> int:
        seed = self.table.table.get("seed")
        if seed is None:
            return 0
        value = seed.plain()
        if type(value) is int and 0 <= value <= _LARGEST_SEED:
            return value
        said = f"seed should be a whole number from 0 to {_LARGEST_SEED}, not {shown(value)}"
        self.errors.append(seed.error(said))
        return 0

    def _trusted(self) -> list[str]:
        given = self.table.table.get("trust_remote_code")
        names = [] if given is None else given.plain()
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
        assert given is not None
        said = "trust_remote_code should be a list of names, of models whose own code may run"
        self.errors.append(given.error(f"{said}, not {shown(names)}"))
        return []

    def _options(self, cls: type[_Options], key: str) -> _Options | None:
        table = self.tables.get(key)
        return None if table is None else self.builder.options(cls, table, f"[{key}]")

    def _component(self, base: type[_Kind], key: str) -> _Kind | None:
        table = self.tables.get(key)
        return None if table is None else self._built(base, key, table)

    def _built(self, base: type[_Kind], key: str, table: Node) -> _Kind | None:
        kind = KINDS_OF_TABLES[key]
        made = self.builder.component(kind, table, ENGINE_KEYS.get(kind, ()))
        return made if isinstance(made, base) else None

    def _list(self, base: type[_Kind], key: str) -> list[_Kind]:
        """The items of a list that could be built."""
        built = [self._built(base, key, item) for item in self.lists.get(key, ())]
        return [made for made in built if made is not None]

    def _engine_keys(self, cls: type[_Options], kind: str, table: Node | None) -> _Options | None:
        """The engine's options in a component's table, or their defaults without one."""
        given = table.table if table is not None else {}
        own = {key: value for key, value in given.items() if key in ENGINE_KEYS[kind]}
        return self.builder.options(cls, (table or self.table).with_children(own), f"the {kind}")

    def _terms(self) -> list[Term]:
        terms, seen = [], Counter[str]()
        for item in self.lists.get("loss", ()):
            loss = self._built(Loss, "loss", item)
            options = self._engine_keys(TermOptions, "loss", item)
            if loss is not None and options is not None:
                use = str(item.use)
                seen[use] += 1
                label = use if seen[use] == 1 else f"{use}.{seen[use]}"
                terms.append(Term(label, use, loss, options.weight, options.on, options.where))
        return terms

    def _always(self, base: type[_Kind], kind: str) -> list[_Kind]:
        """Components of a kind that every run has, unless the recipe names them."""
        key = next(key for key, each in KINDS_OF_TABLES.items() if each == kind)
        named = {item.use for item in self.lists.get(key, ())}
        wanted = [
            name
            for name, provided in self.host.provided(kind).items()
            if getattr(provided.cls, "always", False) and name not in named
        ]
        self.errors += [
            self.table.error(self.host.why_missing(kind, name))
            for name, rivals in self.host.conflicts(kind).items()
            if name not in named and any(getattr(each.cls, "always", False) for each in rivals)
        ]
        tables = (Node.of({"use": name}, Source(f"the {kind} {name!r}")) for name in wanted)
        built = (self._built(base, key, table) for table in tables)
        able = (made for made in built if made is not None)
        return [made for made in able if self.teacher is not None or not needs_teacher(made)]

    def _tokenizer_data(self, table: Node, own: Data) -> Data:
        if table.plain() == self.tables["data"].plain():
            return own
        return self._built(Data, "data", table) or own

    def _ask_components(self, stage: Stage) -> None:
        """Collect components' objections to their recipe."""
        for component, table in self.builder.places:
            self.errors += [
                table.error(said) for said in call_checked_list(component, "faults", stage)
            ]
            self.missing += [table.error(said) for said in call_checked_list(component, "missing")]
        model = stage.student.model
        if model is not None and is_absent(model):
            said = f"there is no folder {model!r} in {os.getcwd()}"
            self.missing.append(self.tables["student"].table["model"].error(said))


def assemble(
    table: Node, names: tuple[str, str], tokenizer_data: Node | None, host: PluginManager
) -> tuple[Stage | None, Collection[Diagnostic], Collection[Diagnostic]]:
    """The stage with these names (of the stage, and of its run), or all errors of its table.

    The last item lists missing files of its components.
    """
    name, run_name = names
    assembly = Assembly(table, f"the stage {name!r}" if name else "this recipe", host)
    stage = assembly.stage(name, run_name, tokenizer_data or assembly.tables.get("data", table))
    return stage, assembly.errors, assembly.missing


_NEEDED = {
    "student": '[student] with model = "...", or [student.config] with model_type = "..."',
    "data": '[data] with use = "..."',
    "loss": '[[loss]] with use = "..."',
    "train": "[train] with lr, and one of epochs, steps and tokens",
}


def shape_errors(table: Node, title: str) -> Iterator[Diagnostic]:
    """Unknown keys, missing tables, and lists in place of tables."""
    for key, value in table.table.items():
        if key in AT_TOP:
            yield value.error(f"{key} belongs at the top level of the recipe, not in a stage")
        elif key not in IN_STAGE:
            near = did_you_mean(key, (*AT_TOP, *IN_STAGE)) or _inside(key, table)
            hint = "" if near else f"it has: {', '.join((*AT_TOP, *IN_STAGE))}"
            yield value.error(f"a recipe has no {key!r}{near}", hint)
        elif key in TABLES and not value.is_table:
            yield value.error(f"{key} should be one table, not {_what(value)}", f"write [{key}]")
        elif key in LISTS and not value.is_list:
            said = f"{key} should be a list of tables, not {_what(value)}"
            yield value.error(said, f"write [[{key}]]")
    for key, way in _NEEDED.items():
        missing = key not in table.table
        if missing or (key == "loss" and table.table[key].plain() == []):
            place = table if missing else table.table[key]
            brackets = f"[[{key}]]" if key in LISTS else f"[{key}]"
            yield place.error(f"{title} has no {brackets}", f"add {way}")


def _inside(key: str, table: Node) -> str:
    """The option that an unknown key at the top level seems to mean: `; did you mean train.lr?`."""
    if (found := ours(key)) or key in option_types(TrainOptions):
        return f"; did you mean train.{found[0] if found else key}?"
    ways = []
    for name, value in table.table.items():
        items = {item.use or at: item for at, item in enumerate(value.items, 1)}
        ways += [f"{name}.{at}.{key}" for at, item in items.items() if key in item.table]
        ways += [f"{name}.{key}"] if key in value.table else []
    return f"; did you mean {' or '.join(ways)}?" if ways else ""


def _what(value: Node) -> str:
    return "a list" if value.is_list else shown(value.plain())


def rules_between(stage: Assembly) -> Iterator[Diagnostic]:
    """All broken rules, as far as they can be checked."""
    yield from _one_of_rivals(stage)
    yield from _documents_in_chunks(stage)
    yield from _mode_of_nothing(stage)
    yield from _tokenizer_of_fresh_student(stage)
    yield from _whole_weights_of_shards(stage)
    yield from _tokens_without_selection(stage)
    yield from _teacher_and_its_users(stage)
    yield from state_errors(stage)
    yield from rollout_errors(stage)
    yield from _columns_of_data(stage)


def _one_of_rivals(stage: Assembly) -> Iterator[Diagnostic]:
    for key, groups in RIVALS.items():
        table = stage.tables.get(key)
        if table is not None:
            for rivals in groups:
                yield from _one_of(table, key, rivals)


_AMOUNTS = "add epochs = 3, steps = 1000 or tokens = 100_000_000"


def _one_of(table: Node, key: str, rivals: Rivals) -> Iterator[Diagnostic]:
    given = [rival for rival in table.table if rival in rivals.names]
    names = f"{', '.join(rivals.names[:-1])} and {rivals.names[-1]}"
    meant = {found[0] for word in table.table if (found := ours(word))}
    if rivals.needed and not given and not meant & {*rivals.names}:
        yield table.error(f"[{key}] needs one of {names}", _AMOUNTS if key == "train" else "")
    for rival in given[1:]:
        said = f"[{key}] takes one of {names}, and {given[0]} is given as well"
        yield table.table[rival].error(said, f"leave out {given[0]} or {rival}")


def _mode_of_nothing(stage: Assembly) -> Iterator[Diagnostic]:
    train = stage.tables.get("train")
    if train and "mode" in train.table and "keep_best" not in train.table:
        said = "mode says which score is best, and [train] has no keep_best"
        yield train.table["mode"].error(said, 'add keep_best = "eval/nll", or leave mode out')


def _documents_in_chunks(stage: Assembly) -> Iterator[Diagnostic]:
    """Rows that are cut across documents contain no whole documents."""
    train, data = stage.tables.get("train"), stage.data
    if train and "batch_documents" in train.table and data is not None and data.rows == "chunk":
        said = 'batch_documents counts documents, and [data] rows = "chunk" cuts across them'
        yield train.table["batch_documents"].error(said, 'say batch, or rows = "pack" or "one"')


def _whole_weights_of_shards(stage: Assembly) -> Iterator[Diagnostic]:
    options = stage.train
    if options is None or options.shard == "none":
        return
    said, table = 'shard = "full" divides every weight between processes', stage.tables["train"]
    if problem := sharding_error(options.optimizer):
        yield table.error(f"{said}, and the optimizer {problem}", 'say optimizer = "adamw"')
    for key in ("bf16_weights", "cuda_graphs", "compile_trunk"):
        if getattr(options, key):
            yield table.error(f"{said}, and {key} needs them whole", f"leave {key} out")


def _tokenizer_of_fresh_student(stage: Assembly) -> Iterator[Diagnostic]:
    student = stage.tables.get("student")
    if student and "config" in student.table and "tokenizer" not in stage.table.table:
        said = "a student made from [student.config] brings no tokenizer"
        yield student.table["config"].error(said, 'add [tokenizer] with use = "..."')


def _tokens_without_selection(stage: Assembly) -> Iterator[Diagnostic]:
    if "selection" in stage.table.table:
        return
    for item in stage.lists.get("loss", ()):
        on = item.table.get("on")
        if on is not None and on.value in ("all", "dropped"):
            said = f"on = {shown(on.value)} needs a selection, and {stage.title} has no [selection]"
            yield on.error(said, "without one every token is kept: leave `on` out")


def _teacher_and_its_users(stage: Assembly) -> Iterator[Diagnostic]:
    could = [*(t.loss for t in stage.terms), *stage.evals, stage.selection, stage.rollout]
    users = [one for one in could if one is not None and needs_teacher(one)]
    places = {id(made): table for made, table in stage.builder.places}
    table = stage.tables.get("teacher")
    if table is not None:
        if not users and _is_complete(stage):
            said = "[teacher] is unused: no loss, selection or eval needs one"
            yield table.error(said, 'leave [teacher] out; where it is inherited, use = "none"')
        if stage.teacher is not None:
            for user, said, hint in ill_served(stage.teacher, users, table.use):
                yield places[id(user)].table["use"].error(said, hint)
    elif "teacher" not in stage.table.table:
        for user in users:
            said = f"{user.name!r} needs a teacher, and {stage.title} has no [teacher]"
            yield places[id(user)].table["use"].error(said, 'add [teacher] with use = "..."')


def _columns_of_data(stage: Assembly) -> Iterator[Diagnostic]:
    """Columns that the data does not provide."""
    if stage.data is None:
        return
    known = call_checked(stage.data, "column_names", of=(Sequence, type(None)))
    if known is None:
        return
    for item in stage.lists.get("loss", ()):
        where = item.table.get("where")
        if where is not None and where.is_table:
            for name, value in where.table.items():
                for said in unknown_columns({name: []}, known):
                    yield value.error(said, _KEEP)
    for component, table in stage.builder.places:
        for asked in call_checked(component, "reads_columns", of=Sequence):
            for said in unknown_columns(asked, known):
                yield table.error(said, _KEEP)


_KEEP = 'of files, keep_columns = ["..."] in [data] keeps them'


def _is_complete(stage: Assembly) -> bool:
    """Whether everything that could use a teacher was built."""
    wanted = sum(len(stage.lists.get(key, ())) for key in ("loss", "eval"))
    singles = {"selection": stage.selection, "rollout": stage.rollout}
    wanted += sum(key in stage.table.table for key in singles)
    built = sum(one is not None for one in singles.values())
    return wanted == len(stage.terms) + len(stage.evals) + built
