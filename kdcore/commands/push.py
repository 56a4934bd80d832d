"""`kdcore push`: uploads a finished run's model to the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcore.checksums import refuse_changed
from kdcore.cli.examples import examples
from kdcore.errors import RunError, UsageError
from kdcore.runs.folder import find_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)


@examples("kdcore push last me/my-student --private")
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Upload a finished run's model, tokenizer and model card to the hub, in one commit."""
    folder = find_run(run, out)
    if not (folder / "final").is_dir():
        raise UsageError(f"{folder} is not finished and has no final model to push")
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UsageError(f"{repository!r} is not the name of a repository; those are OWNER/NAME")
    refuse_changed(folder / "final")
    _refuse_local_base(folder / "final")
    from huggingface_hub import HfApi

    name = folder.name
    with _explained(repository):
        _create(api := HfApi(), repository, private)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder / "final",
            commit_message=f"{name}, trained with kdcore",
        )
    print(done.repo_url)


def _refuse_local_base(final: Path) -> None:
    """Raise UsageError for an adapter on a local base, which others could not load."""
    config = final / "adapter_config.json"
    named = json.loads(config.read_text()) if config.is_file() else {}
    base = str(named.get("base_model_name_or_path") or "")
    if config.is_file() and (not _REPOSITORY.fullmatch(base) or Path(base).exists()):
        raise UsageError(
            f"{final} is an adapter to {base!r}, which exists only here; push a run whose adapter "
            "is merged, or one on a model from the hub"
        )


def _create(api: HfApi, repository: str, private: bool) -> None:
    """Create the repository, or use an existing one; never a public one with --private."""
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise UsageError(f"{repository} is there already and is public; leave out --private")


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's objection, in one sentence."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # The HTTP library's own class, as the library differs between versions.
    unreachable: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError)
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise RunError(f"the hub needs a login; {_LOGIN}") from error
    except OfflineModeIsEnabled as error:
        raise RunError("the hub is disabled by HF_HUB_OFFLINE; unset it to push") from error
    except HfHubHTTPError as error:
        raise RunError(f"cannot push to {repository!r}: {_why(error)}") from error
    except unreachable as error:
        raise RunError(f"the hub cannot be reached: {_first_line(error)}") from error
    except ValueError as error:  # an invalid model card
        raise RunError(f"cannot push to {repository!r}: {_first_line(error)}") from error


_LOGIN = "type hf auth login, with a token that may write"


def _why(error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return f"the hub rejects your token; {_LOGIN}"
    if status == 403:
        return f"you have no write access there; name another owner, or {_LOGIN}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
