"""The models of a new recipe: a usable teacher, a student that fits it, and a learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdcore.commands.drafts.served_choice import ServedModel, is_address, look_at_server
from kdcore.errors import RunError, UsageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMB])", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/|$)")  # what neither a folder nor the hub is named
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}

RATES: Mapping[str, Sequence[tuple[float, float]]] = {
    "loaded": [(2e8, 1e-4), (1e9, 2e-5), (math.inf, 1e-5)],
    "fresh": [(5e7, 1e-3), (2e8, 6e-4), (1e9, 3e-4), (math.inf, 2e-4)],
}
"""Learning rates for loaded and fresh students: (maximum parameters, rate)."""


@dataclass(frozen=True)
class Choice:
    """The teacher, and the student that learns from it."""

    teacher: str
    student: str  # a model, or "" for a fresh one
    config: Mapping[str, Any]  # of a fresh one
    parameters: int
    tokenizer: PreTrainedTokenizerBase  # the student's
    reach: int  # tokens within the reach of both
    trusted: Sequence[str] = ()
    served: ServedModel | None = None  # the teacher, if it is behind a server

    @property
    def rate(self) -> float:
        """The learning rate for a student of this size."""
        table = RATES["loaded" if self.student else "fresh"]
        return next(rate for limit, rate in table if self.parameters <= limit)


def choose(teacher: str, student: str, tokenizer: str | None = None) -> Choice:
    """Examine configs and tokenizers; loads no weights. Raises UsageError with one sentence.

    Queries a teacher given as an address; `tokenizer` is then the teacher's, if the server's name
    for the model does not lead to it.
    """
    try:
        if is_address(teacher):
            return _with_server(look_at_server(teacher, tokenizer), student)
        return _chosen(teacher, student)
    except RunError as error:
        raise UsageError(str(error).split("\n")[0]) from None


def _chosen(teacher: str, student: str) -> Choice:
    from kdcore.models.loading import load_config, load_tokenizer
    from kdcore.models.vocabulary import verify_same_ids

    if _HOST_AND_PORT.match(teacher):
        raise UsageError(f"--teacher {teacher}: the address of a server begins with http://")
    config = load_config(teacher, key="--teacher")
    _refuse_others("teacher", teacher, config)
    tokenizer = load_tokenizer(teacher)
    if size := _SIZE.fullmatch(student):
        return _fresh(teacher, size, tokenizer, _reach(config))
    own = _config_of_student(student)
    ours = load_tokenizer(student)
    verify_same_ids(ours, {"the teacher": tokenizer})
    return Choice(teacher, student, {}, _parameters(own), ours, min(_reach(config), _reach(own)))


def _fresh(
    teacher: str, size: re.Match[str], tokenizer: PreTrainedTokenizerBase, reach: int
) -> Choice:
    """A student of a given size, with the teacher's tokenizer."""
    _refuse_endless(teacher, tokenizer)
    wanted = float(size[1]) * _UNITS[size[2].upper()]
    shape = shape_of(wanted, len(tokenizer), size[0])
    shape["max_position_embeddings"] = min(reach, 2048)
    parameters = parameters_of_shape(shape, len(tokenizer))
    return Choice(teacher, "", shape, parameters, tokenizer, min(reach, 2048))


def _with_server(served: ServedModel, student: str) -> Choice:
    """The same with a teacher behind a server, whatever its tokenizer."""
    from kdcore.models.loading import load_tokenizer

    try:
        theirs = load_tokenizer(served.tokenizer)
    except RunError as error:
        said = str(error).splitlines()[0]
        raise UsageError(
            f"{served.url} serves {served.name!r}, but its tokenizer cannot be loaded ({said}): "
            "type --tokenizer FOLDER, or its name on the hub"
        ) from None
    served = replace(served, chats=theirs.chat_template is not None)
    reach = 2048 if served.length is None else served.length - 1  # one is for the completion
    if size := _SIZE.fullmatch(student):
        made = _fresh(served.tokenizer, size, theirs, reach)
        return replace(made, served=served)
    own = _config_of_student(student)
    ours, reach = load_tokenizer(student), min(reach, _reach(own))
    return Choice(served.name, student, {}, _parameters(own), ours, reach, served=served)


def _config_of_student(student: str) -> PretrainedConfig:
    from kdcore.models.loading import load_config

    try:
        own = load_config(student, key="--student")
    except RunError as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"{said}; a fresh student is a size, such as --student 20M") from None
    _refuse_others("student", student, own)
    return own


def _refuse_others(role: str, name: str, config: PretrainedConfig) -> None:
    """Masked models have a causal class too, so the architecture in the config decides."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    trained = config.architectures or []
    mapped = config.model_type in causal or bool(getattr(config, "auto_map", None))
    others = trained and not any(re.search("CausalLM|LMHead|Conditional", each) for each in trained)
    if config.is_encoder_decoder or not mapped or others:
        is_what = trained[0] if trained else config.model_type
        raise UsageError(
            f"the {role} {name!r} is not a causal language model ({is_what}): it does not predict "
            "each token from those before it"
        )


def _refuse_endless(teacher: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {teacher!r} has no end-of-text token (eos), so a fresh student "
            "would never stop: name a student model that has one"
        )


def _reach(config: PretrainedConfig) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)


def _parameters(config: PretrainedConfig) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    from kdcore.analysis.parameters import parameters_of

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return parameters_of(model)[0]


def shape_of(wanted: float, ids: int, typed: str) -> dict[str, Any]:
    """The config of a LLaMA with tied embeddings whose size is closest to `wanted` parameters.

    Among those within 5 % of it, the one whose width is closest to 48 times its depth.
    """
    shapes = [
        shape
        for width in (*range(64, 512, 32), *range(512, 8193, 64))
        if (shape := _of_width(width, wanted, ids)) is not None
    ]
    if not shapes:
        least = parameters_of_shape(_shape(64, 2), ids)
        raise UsageError(
            f"--student {typed} is too small for a vocabulary of {ids:,} ids: the embeddings of a "
            f"student of two layers take most of {least / 1e6:.1f}M, so type "
            f"--student {math.ceil(least / 1e6)}M or more"
        )
    near = [each for each in shapes if _off(each, wanted, ids) < 0.05]
    if not near:
        return min(shapes, key=lambda each: _off(each, wanted, ids))
    return min(near, key=lambda e: abs(math.log(e["hidden_size"] / e["num_hidden_layers"] / 48)))


def _of_width(width: int, wanted: float, ids: int) -> dict[str, Any] | None:
    one, two = (parameters_of_shape(_shape(width, layers), ids) for layers in (1, 2))
    layers = round((wanted - one) / (two - one)) + 1
    return _shape(width, layers) if layers >= 2 else None


def _off(shape: Mapping[str, Any], wanted: float, ids: int) -> float:
    return abs(parameters_of_shape(shape, ids) / wanted - 1)


def _shape(width: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 64 * math.ceil(width * 8 / 3 / 64),
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width(width),
        "tie_word_embeddings": True,
    }


def head_width(width: int) -> int:
    """The width of an attention head; 32 where 64 does not divide the model's."""
    return 32 if width % 64 else 64


def parameters_of_shape(shape: Mapping[str, Any], ids: int) -> int:
    """Embeddings, once; per layer four attention matrices, three MLP matrices and two norms."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    layer = 4 * width**2 + 3 * width * inner + 2 * width
    return int(ids * width + shape["num_hidden_layers"] * layer + width)
