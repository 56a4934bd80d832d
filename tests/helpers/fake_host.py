"""A host with a handful of components, for tests of the recipe language; it loads no plugin."""

from types import SimpleNamespace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from kdcore.api.component import component
from kdcore.api.data import Data, Tokenizer
from kdcore.api.kinds import KINDS
from kdcore.api.loss import Loss
from kdcore.api.observers import Eval, Logger
from kdcore.api.student import Patch
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import Selection
from kdcore.errors import did_you_mean

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@component
class CrossEntropy(Loss):
    name = "ce"
    needs_teacher = False


@component
class Divergence(Loss):
    name = "kl"
    temperature: Positive = 1.0
    scale_by_t2: bool = True


@component
class Skewed(Divergence):
    name = "skew-kl"
    skew: float = 0.1

    @field_validator("skew")
    @classmethod
    def _below_one(cls, skew):
        if not 0 <= skew < 1:
            raise ValueError(f"skew lies in [0, 1), and {skew} does not")
        return skew


@component
class Loaded(Teacher):
    name = "hf"
    model: str
    dtype: Literal["auto", "fp32"] = "auto"
    device: str | None = None


@component
class Remote(Teacher):
    name = "remote"
    elsewhere = frozenset({"address"})
    url: Annotated[str, Field(alias="address")]
    model: str


@component
class Stored(Teacher):
    name = "stored"
    kind: Literal["nll", "topk"] = "nll"
    teacher: Teacher

    def gives_logits(self):
        return self.kind != "nll"

    def faults(self, recipe):
        if recipe.data.fresh_each_epoch:
            yield "rows that are fresh each epoch cannot be stored"


@component
class Ensemble(Teacher):
    name = "ensemble"
    members: Annotated[list[Teacher], Field(min_length=1)]
    weights: list[float] | None = None
    by_name: dict[str, Teacher] | None = None


@component
class Top(Selection):
    name = "top"
    share: Annotated[Share, Field(alias="keep")]
    reference: Teacher | None = None

    def needs_teacher(self):
        return self.reference is None


@component
class Draw(Selection):
    name = "random"
    share: Annotated[Share, Field(alias="keep")]


@component
class Text(Data):
    name = "text"
    path: str
    config: str | None = None


@component
class Fresh(Data):
    name = "fresh"
    fresh_each_epoch = True


@component
class Mix(Data):
    name = "mix"
    parts: list[Data]


@component
class Pairs(Tokenizer):
    name = "bpe"
    vocab_size: Annotated[int, Field(ge=256)] = 8000


@component
class Scheme(Patch):
    name = "init"
    scheme: Literal["normal", "uniform"] = "normal"


@component
class Perplexity(Eval):
    name = "perplexity"
    always = True


@component
class Agreement(Eval):
    name = "agreement"
    needs_teacher = True
    always: ClassVar[bool] = False


@component
class Samples(Eval):
    name = "samples"
    prompts: list[str] = Field(default_factory=list)
    top_k: int | Literal["all"] = "all"


@component
class Files(Logger):
    name = "files"
    always = True
    folder: str | None = None


@component
class Tracker(Logger):
    name = "tracker"
    to: Literal["tensorboard", "trackio"] = "tensorboard"


CLASSES = (
    *(CrossEntropy, Divergence, Skewed),
    *(Loaded, Remote, Stored, Ensemble),
    *(Top, Draw),
    *(Text, Fresh, Mix),
    *(Pairs, Scheme, Perplexity, Agreement, Samples, Files, Tracker),
)


class FakeHost:
    """What the recipe reader asks of `kdcore.plugin.manager.Host`."""

    def __init__(self, off=(), broken=(), twice=()):
        self.broken = dict(broken)
        self.twice = dict(twice)  # a kind to the class that two plugins bring
        self.found = {
            kind: {
                cls.name: SimpleNamespace(cls=cls)
                for cls in CLASSES
                if issubclass(cls, base) and cls.name not in off
            }
            for kind, base in KINDS.items()
        }

    def provided(self, kind):
        return self.found[kind]

    def conflicts(self, kind):
        cls = self.twice.get(kind)
        return {cls.name: [SimpleNamespace(cls=cls)] * 2} if cls else {}

    def why_missing(self, kind, name):
        if name in {cls.name for cls in self.twice.values()}:
            return f"the {kind} {name!r} comes from two plugins"
        if name in self.broken:
            return f"the plugin that brings {name!r} is broken: {self.broken[name]}"
        return f"no {kind} is named {name!r}{did_you_mean(name, self.found[kind])}"
