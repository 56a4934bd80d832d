"""`kdcore generate`: text from a finished run, a model folder or a hub model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="The k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="Tokens of this mass; 1: all."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are user turns.")] = False,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Generate text from a prompt, with one model or several to compare."""
    sampling = _Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    found = [named(name, out) for name in models]
    places = [each.model() for each in found]
    for each, place in zip(found, places, strict=True):
        if len(found) > 1:
            print(f"--- {each.name}")
        begins = _begins(each.run)
        print("\n\n".join(_written(place, prompts, chat, begins, sampling)))
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
    begins: Literal["auto"] | bool,
    sampling: _Sampling,
) -> list[str]:
    """A model's continuation of each prompt; for a dialogue, only the answer."""
    import torch

    from kdcore.models.generation import generate as write
    from kdcore.models.loading import dtype_of, load_model, load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(place)
    given = [_as_turn(tokenizer, prompt, place) for prompt in prompts] if chat else prompts
    model = load_model(place, dtype=dtype_of("auto", device), device=device)
    # A chat template adds its own.
    bos = [] if chat else bos_of(Data(bos=begins), tokenizer)
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


def _begins(run: Path | None) -> Literal["auto"] | bool:
    """Whether texts begin with BOS: as a run's documents, or as a model's tokenizer adds it.

    Runs without that setting are older, and had none.
    """
    begins: Literal["auto"] | bool = "auto"
    if run is not None:
        begins = read_settings(run).get("data", {}).get("bos", False)
    return begins


def _as_turn(tokenizer: PreTrainedTokenizerBase, prompt: str, place: str) -> str:
    if not tokenizer.chat_template:
        raise UsageError(f"the tokenizer of {place} has no chat template; leave out --chat")
    from kdcore_sft import Dialogue, template_of

    # Limited in time and output, as for data: the template is untrusted code.
    turn = Dialogue([{"role": "user", "content": prompt}], place)
    return template_of(None, tokenizer).render(turn, header=True)
