"""Select a folder's files for a split: files of one format, by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdcore import RunError
from kdcore_text.formats import ENDINGS, TABLES, Format, format_of

# The words that `datasets` uses, so that a folder has the same splits in both.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_ABOUT = re.compile(
    r"(readme|licen[cs]e)(\.[a-z]+)?|(config|dataset_infos?|dataset_dict)\.json", re.IGNORECASE
)
_CARD = re.compile(r"---\r?\n(.*?)^---", re.DOTALL | re.MULTILINE)
VALIDATE = "set validation = PATH or validation_share = 0.05"
"""The way out where there is nothing to validate on."""
_SHOWN = 5  # files listed in a message


@dataclass(frozen=True)
class Chosen:
    """The files of a split, and the files of no split."""

    files: Sequence[Path]
    left_out: Sequence[Path] = field(default=())

    def left_out_message(self, folder: Path) -> str | None:
        """One sentence on the files left out, if any."""
        names = named(self.left_out, folder)
        return f"{folder}: left out {names}" if names else None


def files_in(folder: Path) -> list[Path]:
    """All files at any depth, by name, without hidden and metadata files."""
    found, seen = list[Path](), {os.path.realpath(folder)}
    for place, inner, names in os.walk(folder, followlinks=True):
        visible = [os.path.join(place, each) for each in inner if not _is_hidden(each)]
        new = {os.path.realpath(each): each for each in visible}  # a link may point to a parent
        inner[:] = [os.path.basename(each) for real, each in new.items() if real not in seen]
        seen |= new.keys()
        found += [Path(place, each) for each in names if not (_is_hidden(each) or _is_about(each))]
    return sorted(path for path in found if path.is_file())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _is_about(name: str) -> bool:
    return _ABOUT.fullmatch(name) is not None


def is_saved(folder: Path) -> bool:
    """Whether it was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def says_its_files(folder: Path) -> bool:
    """Whether its card assigns files to splits, as cards on the hub do."""
    card = folder / "README.md"
    front = _CARD.match(card.read_text("utf-8", "replace")) if card.is_file() else None
    return front is not None and re.search("^configs:", front[1], re.MULTILINE) is not None


def choose(
    folder: Path, split: str | None, forms: Collection[Format], format: Format | None = None
) -> Chosen:
    """The files of a split; None is "validation", or all files if no name contains a split.

    Files of records are preferred to plain text, and the most common format to others. `forms` are
    the readable formats; `format` restricts to one.
    """
    there = files_in(folder)
    known = _readable(there, forms, format, folder)
    splits = _splits(known, folder)
    files = _of_split(known, splits, split, folder)
    full = [file for file in _of_one_format(files, folder, format) if file.stat().st_size]
    if not full:
        raise RunError(f"all files in {folder} are empty: {named(files, folder)}")
    in_splits = [file for file in known if splits and splits.get(file) and file not in files]
    used = {*full, *in_splits}
    return Chosen(full, [file for file in there if file not in used])


def named(files: Sequence[Path], folder: Path) -> str:
    """The names of some files, and the number of further ones."""
    names = [str(file.relative_to(folder)) for file in files[:_SHOWN]]
    more = [f"{len(files) - _SHOWN:,} more"] if len(files) > _SHOWN else []
    return ", ".join([*names, *more])


def _readable(
    there: Sequence[Path], forms: Collection[Format], format: Format | None, folder: Path
) -> Sequence[Path]:
    """The readable files: files of records, or text files if there are none."""
    if not there:
        raise RunError(
            f"the folder {folder} is empty: put files of text or records (.txt, .jsonl, .csv, "
            '.parquet) into it, or name another with path = "PATH" in [data]'
        )
    if format is not None:
        return [file for file in there if format_of(file) == format] or there
    tables = [file for file in there if format_of(file) in TABLES]
    found = tables or [file for file in there if format_of(file) in forms]
    if found:
        return found
    endings = ", ".join(ending for ending, form in ENDINGS.items() if form in forms)
    raise RunError(
        f"the folder {folder} has no files that end in {endings}: it has {named(there, folder)}; "
        f'set path = "{folder}/*" in [data] to read files of other endings'
    )


def _splits(files: Iterable[Path], folder: Path) -> Mapping[Path, str]:
    """The split of each file whose path below the folder contains one."""
    words = {file: re.findall("[a-z]+", str(file.relative_to(folder)).lower()) for file in files}
    found = {
        file: next((s for word in some for s, known in _WORDS.items() if word in known), None)
        for file, some in words.items()
    }
    splits = {file: split for file, split in found.items() if split is not None}
    return splits or _run_together(words)


def _run_together(files: Iterable[Path]) -> Mapping[Path, str]:
    """The splits of pairs such as wikitrain.txt and wikivalid.txt."""
    groups: dict[str, dict[Path, str]] = {}
    for file in files:
        for split, words in _WORDS.items():
            for word in [each for each in words if each in file.stem.lower()][:1]:
                groups.setdefault(file.stem.lower().replace(word, "", 1), {})[file] = split
    pairs = [group for group in groups.values() if {"train"} < set(group.values())]
    return {file: split for group in pairs for file, split in group.items()}


def _of_split(
    files: Sequence[Path], splits: Mapping[Path, str], split: str | None, folder: Path
) -> Sequence[Path]:
    wanted = split or "validation"
    found = [
        file for file in files if splits.get(file) == wanted or _has_word(file, wanted, folder)
    ]
    if found:
        return found
    if split is None or (split == "train" and not splits):
        return files
    if split == "validation":
        raise RunError(
            f"nothing to validate on in {folder}: its files are named for "
            f"{', '.join(dict.fromkeys(splits.values())) or 'no split'}; {VALIDATE}"
        )
    has = ", ".join(f"{name} ({_count(splits, name)})" for name in dict.fromkeys(splits.values()))
    raise RunError(
        f"no file in {folder} is named as the split {split!r}: it has "
        f"{has or named(files, folder)}; name files in [data] path and validation"
    )


def _has_word(file: Path, wanted: str, folder: Path) -> bool:
    """Whether the path contains a split with an uncommon name."""
    return wanted not in _WORDS and wanted in re.split(r"[-._ /\\]", str(file.relative_to(folder)))


def _count(splits: Mapping[Path, str], name: str) -> str:
    files = [file.name for file, split in splits.items() if split == name]
    return files[0] if len(files) == 1 else f"{len(files):,} files"


def _of_one_format(files: Sequence[Path], folder: Path, format: Format | None) -> Sequence[Path]:
    counts = Counter(format_of(file) for file in files)
    if format is not None or len(counts) < 2:
        return files
    (first, most), (second, fewer), *_ = counts.most_common()
    if most == fewer:
        raise RunError(
            f"{folder} has as many files of {first} as of {second}: {named(files, folder)}; "
            f'set format = "{first}" or "{second}" in [data]'
        )
    return [file for file in files if format_of(file) == first]
