"""`kdcore new`: start a recipe or a plugin."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import tomli
import typer

from kdcore.cli.examples import as_epilog
from kdcore.commands.drafts.plugin_template import check_name, files_of
from kdcore.errors import UsageError
from kdcore.recipe.files import find_recipe, recipe_name, shipped_recipes
from kdcore.recipe.recipe import NAME

Kind = Literal["sft", "text"]
PluginKind = Literal[
    "data",
    "tokenizer",
    "teacher",
    "loss",
    "selection",
    "rollout",
    "patch",
    "eval",
    "logger",
    "executor",
    "verb",
]

new = typer.Typer(help="Create a recipe or a plugin.", no_args_is_help=True, add_completion=False)

_TRIAL = "--out trial --set train.steps=3 --set train.batch=2 --set train.eval_rows=4"
"""Options that let a run finish within minutes on a CPU."""


_Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|URL", help="A folder, a name on the hub, or the address of a server."
    ),
]
_Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="The served teacher's, if its name does not lead to it."),
]


@new.command(
    epilog=as_epilog(
        "kdcore new recipe quickstart mine.toml",
        "kdcore new recipe mine.toml --teacher ./teacher --student 20M --data answers.jsonl",
        "kdcore new recipe --teacher http://127.0.0.1:8000 --student ./student --data chat.jsonl",
    )
)
def recipe(
    source: Annotated[
        str | None, typer.Argument(metavar="FROM", help="A shipped recipe or a file.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="TO", help="The new file; in the current folder by default."),
    ] = None,
    teacher: _Teacher = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="MODEL|20M", help="A model, or the size of a fresh one."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="The training data: JSON lines, text, ...")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Train on answers (sft) or on all text.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The question's column, if it is not recognised."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The answer's column, if it is not recognised."),
    ] = None,
    tokenizer: _Tokenizer = None,
) -> None:
    """Start a recipe: a copy of FROM, or one for your teacher, student and file."""
    if any((teacher, student, data, kind, question, answer, tokenizer)):
        if target is not None:
            raise UsageError("--teacher, --student and --data begin a recipe without FROM")
        columns = _columns(kind, question, answer)
        _from_models(teacher, student, data, kind, columns, source, tokenizer)
    elif source is None:
        raise UsageError(
            "a new recipe begins FROM another (kdcore recipes lists them), or from --teacher, "
            "--student and --data"
        )
    else:
        _copy(source, target)


def _copy(source: str, target: Path | None) -> None:
    """A copy of a recipe, comments included, for editing."""
    try:
        path = find_recipe(source)
    except UsageError as error:
        if target is None or str(target) not in map(recipe_name, shipped_recipes()):
            raise
        raise UsageError(
            f"the recipe to copy comes first: kdcore new recipe {target} {source}"
        ) from error
    target = (target or Path(path.name)).with_suffix(".toml")
    if os.path.exists(target):
        raise UsageError(f"{target} exists already: kdcore new recipe {source} OTHER_NAME")
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_recipe(target, _same_base(path.read_text(encoding="utf-8"), path, target))
    print(f"{target}\nkdcore check {target}\nkdcore run {target}")


def _columns(kind: Kind | None, question: str | None, answer: str | None) -> tuple[str, str] | None:
    """The columns that the user names; both or neither, and not with --kind text."""
    if question and answer and kind != "text":
        return question, answer
    if question or answer:
        raise UsageError("--question and --answer go together, and without --kind text")
    return None


def _from_models(
    teacher: str | None,
    student: str | None,
    data: str | None,
    kind: Kind | None,
    columns: tuple[str, str] | None,
    to: str | None,
    tokenizer: str | None,
) -> None:
    """A recipe for models and a file; reports their errors before anything is written."""
    from kdcore.commands.drafts.data_file import look_at
    from kdcore.commands.drafts.recipe_template import measure, recipe_text
    from kdcore.commands.drafts.student_choice import choose

    given = {"teacher": teacher, "student": student, "data": data}
    missing = [f"--{name}" for name, value in given.items() if not value]
    if missing or not (teacher and student and data):
        raise UsageError(
            f"{' and '.join(missing)} missing: a new recipe needs --teacher, --student and --data"
        )
    target = Path(to or _stem(data)).with_suffix(".toml")
    if not NAME.fullmatch(target.stem):
        raise UsageError(f"{target.stem!r} cannot name runs: use letters, digits, '.', '_' and '-'")
    if os.path.exists(target):
        raise UsageError(f"{target} exists already: put another name after `new recipe`")
    file, choice = look_at(data, kind, columns), choose(teacher, student, tokenizer)
    _write_recipe(target, recipe_text(file, choice, measure(file, choice)))
    try_it = f"generate {target.stem}{' --chat' if file.kind == 'sft' else ''} --prompt TEXT"
    verbs = ("check {0}", "doctor {0}", "run {0} " + _TRIAL, "run {0}", try_it)
    print(target, *(f"kdcore {verb.format(target)}" for verb in verbs), sep="\n")


def _stem(data: str) -> str:
    """A recipe name from a file name."""
    return re.sub(r"[^\w.-]+", "_", Path(data).name.split(".")[0]).strip("._-") or "mine"


def _same_base(text: str, source: Path, target: Path) -> str:
    """The text, with `extends` pointing to the same file from the new folder."""
    extends = tomli.loads(text).get("extends")
    if not isinstance(extends, str):
        return text
    base = find_recipe(extends, source.parent).resolve()
    relative = os.path.relpath(base, target.parent.resolve())
    ways = (extends, *_shipped_name(base), Path(relative).as_posix())
    said = next(way for way in ways if _finds(way, target.parent, base))
    return re.sub(r"(?m)^extends\s*=.*$", lambda _: f'extends = "{said}"', text, count=1)


def _shipped_name(base: Path) -> tuple[str, ...]:
    try:
        return (recipe_name(base),)
    except ValueError:  # not a shipped one
        return ()


def _finds(name: str, folder: Path, base: Path) -> bool:
    try:
        return find_recipe(name, folder).resolve() == base
    except UsageError:
        return False


@new.command(
    epilog=as_epilog("kdcore new plugin kdcore-mine", "kdcore new plugin kdcore-mine --kind data")
)
def plugin(
    name: Annotated[str, typer.Argument(help="The package's name, such as kdcore-mine.")],
    kind: Annotated[PluginKind, typer.Option(help="The kind of component.")] = "loss",
) -> None:
    """Create a package with your own component: module, tests, recipe and publishing files."""
    check_name(name, kind)
    folder = Path(name)
    if os.path.exists(folder):
        raise UsageError(f"{folder} exists already: choose another name")
    for path, text in files_of(name, kind).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _write_new(folder / path, text)
        print(folder / path)
    print(f"pip install -e './{folder}[dev]'")


def _write_recipe(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_new(target, text)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None


def _write_new(path: Path, text: str) -> None:
    """Never overwrites; writes all files or none."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink()
            raise
