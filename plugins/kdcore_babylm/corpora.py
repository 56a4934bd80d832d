"""The files of a corpus that belong to a split, in a local folder or a data set on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kdcore import DownloadBar, RunError

_ENDINGS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}
_WHERE = (
    "fetch the BabyLM corpora from babylm.github.io (they lie on osf.io), or type `git clone "
    "https://huggingface.co/datasets/KylinC/babylm`; then type --set data.path=FOLDER "
    "--set data.validation=FOLDER with the folders of the *.train and the *.dev files"
)


def files_of(path: str, wanted: Sequence[str]) -> list[Path]:
    """The files with the first wanted ending (train, dev, test) that exists, sorted by name.

    Files without such an ending belong to every split. `path` is a folder, a file, or OWNER/NAME of
    a data set on the hub, optionally with a folder: OWNER/NAME/FOLDER.
    """
    place = Path(os.path.expanduser(path))
    if not os.path.exists(place):
        place = _from_hub(path)
    if place.is_file():
        return [place]
    there = _corpus_files(place)
    if not there:
        raise RunError(_nothing_in(path, place))
    marked = {file: ending_of(file) for file in there}
    for ending in wanted:
        found = [file for file in there if marked[file] == ending]
        if found:
            return found
    if any(marked.values()):
        raise RunError(
            f"{path} has no .{wanted[0]} files: it has {', '.join(file.name for file in there)}"
        )
    return there


def files_here(path: str | None) -> list[Path]:
    """All files of a local corpus, of every split; none if it is on the hub."""
    place = Path(os.path.expanduser(path or ""))
    if path is None or not os.path.exists(place):
        return []
    return [place] if place.is_file() else _corpus_files(place)


def source_of(file: Path) -> str:
    """A file's name without its endings: simple_wiki for simple_wiki.train.txt."""
    return file.name.partition(".")[0].lower().replace("-", "_")


def ending_of(file: Path) -> str | None:
    """The split in the name: "train", "dev" or "test"."""
    return next(
        (_ENDINGS[part] for part in file.name.lower().split(".")[1:] if part in _ENDINGS), None
    )


def _corpus_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and file.suffix.lower() in {".txt", *(f".{ending}" for ending in _ENDINGS)}
        and not file.name.lower().startswith((".", "readme", "license"))
    )


def _nothing_in(path: str, place: Path) -> str:
    below = sorted(each.name for each in place.iterdir() if each.is_dir() and _corpus_files(each))
    if below:
        each = ", ".join(f"{path}/{name}" for name in below)
        return f"{path} has its files in folders; name one of them: {each}"
    return f"there are no .train, .dev, .test or .txt files in {path}; {_WHERE}"


def absent(path: str) -> str | None:
    """The error message for a folder that does not exist and cannot be a hub name."""
    if os.path.exists(os.path.expanduser(path)) or _on_hub(path) is not None:
        return None
    return f"there is no folder {path!r}; {_WHERE}"


def _on_hub(path: str) -> re.Match[str] | None:
    """The name of a data set, and a folder in it."""
    parts = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)/?", path)
    return None if path.startswith((".", "~")) else parts


def _from_hub(path: str) -> Path:
    """The local path of a data set's files, downloaded once."""
    parts = _on_hub(path)
    if parts is None:
        raise RunError(f"there is no folder {path!r}; {_WHERE}")
    from huggingface_hub import snapshot_download

    under = parts[2].strip("/")
    patterns = [f"{under}{'/' if under else ''}*.{end}" for end in ("txt", *_ENDINGS)]
    try:
        whole = snapshot_download(
            parts[1], repo_type="dataset", allow_patterns=patterns, tqdm_class=DownloadBar
        )
    except (OSError, ValueError) as error:
        gone = type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError")
        why = "has no such data set for you" if gone else "cannot be reached"
        raise RunError(f"there is no folder {path!r} here, and the hub {why}; {_WHERE}") from error
    place = Path(whole) / under
    if not place.exists():
        raise RunError(f"the data set {parts[1]!r} on the hub has no folder {under!r}; {_WHERE}")
    return place
