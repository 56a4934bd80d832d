"""`kdcore generate`: text from a finished run, a model folder or a hub model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdcore.api.data import Data
from kdcore.cli.examples import examples
from kdcore.commands.models import named
from kdcore.data.encoding import bos_of
from kdcore.errors import UsageError
from kdcore.runs.reading.facts import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SMALL = 200_000_000
"""Parameters up to which one CPU thread generates: more threads mostly wait for each other."""


@examples(
    'kdcore generate last --prompt "Once upon a time"',
    'kdcore generate mine ./teacher --prompt "Why?" --chat --temperature 0',
)
def generate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL...", help="Runs, model folders or names on the hub."),
    ],
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", metavar="TEXT", help="The text to continue; may be repeated."),
    ],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="The largest number of tokens to write.")
    ] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="The k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="The likeliest tokens of this mass; 1: all."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="As a user's turn, in the run's chat template.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Generate text from a prompt, with one model or several to compare."""
    sampling = _Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    found = [named(name, out) for name in models]
    places = [each.model() for each in found]
    for each, place in zip(found, places, strict=True):
        if len(found) > 1:
            print(f"--- {each.name}")
        data = _data(each.run)
        print("\n\n".join(_written(place, prompts, chat, data, sampling)))
        if len(found) > 1:
            print()


@dataclass(frozen=True)
class _Sampling:
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def _written(
    place: str,
    prompts: Sequence[str],
    chat: bool,
    data: Mapping[str, Any],
    sampling: _Sampling,
) -> list[str]:
    """A model's continuation of each prompt; for a dialogue, only the answer."""
    import torch

    from kdcore.models.generation import generate as write
    from kdcore.models.loading import dtype_of, load_model, load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(place)
    given = [_as_turn(tokenizer, data, prompt, place) for prompt in prompts] if chat else prompts
    model = load_model(place, dtype=dtype_of("auto", device), device=device)
    bos = bos_of(Data(bos=_begins(data, chat)), tokenizer)
    with _few_threads(model):
        texts = write(model, tokenizer, given, bos=bos, **vars(sampling))
    if chat:
        return texts
    return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


@contextmanager
def _few_threads(model: PreTrainedModel) -> Iterator[None]:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says how many.

    A token is a product of a matrix with a vector in each layer. Where cores are shared, two
    threads took 13 to 20 times the CPU time of one with 18 and 147 million parameters.
    """
    import torch

    before = torch.get_num_threads()
    small = model.device.type == "cpu" and model.num_parameters() <= _SMALL
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _data(run: Path | None) -> Mapping[str, Any]:
    """The options of a run's data; runs without `bos` are older, and had none."""
    return {} if run is None else {"bos": False, **read_settings(run).get("data", {})}


def _begins(data: Mapping[str, Any], chat: bool) -> Literal["auto"] | bool:
    """Whether texts begin with BOS: as a run's documents, or as a model's tokenizer adds it.

    A chat template writes its own; the built-in ones of `sft` do not.
    """
    from kdcore_sft.templates import BUILT_IN

    begins: Literal["auto"] | bool = data.get("bos", "auto")
    if chat and begins == "auto" and data.get("template") not in BUILT_IN:
        return False
    return begins


def _as_turn(
    tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any], prompt: str, place: str
) -> str:
    """The prompt in the template that a run trained with, else in the tokenizer's."""
    template = data.get("template")
    if template is None and not tokenizer.chat_template:
        raise UsageError(f"the tokenizer of {place} has no chat template; leave out --chat")
    from kdcore_sft import Dialogue, template_of

    # Limited in time and output, as for data: the template is untrusted code.
    turn = Dialogue([{"role": "user", "content": prompt}], place)
    options = data.get("chat_template_kwargs")
    return template_of(template, tokenizer, options=options).render(turn, header=True)
