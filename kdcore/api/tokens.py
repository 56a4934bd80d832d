"""An optimizer step's tokens, and the components that see all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kdcore.api.component import Component
from kdcore.api.loss import Loss
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from kdcore.api.schedule import Scheduled
    from kdcore.api.teacher import Teacher


class Tokens:
    """This process's valid tokens of an optimizer step [n]. Lazy: unused values cost nothing.

    Tokens are in the order of the step's rows, however these are split into micro-batches.
    """

    step: int  # the optimizer step, from 1

    @property
    def labels(self) -> Tensor:
        """The id that each token's position predicts, int64 [n]."""
        raise NotImplementedError

    @property
    def row(self) -> Tensor:
        """The index of each token's row in the optimizer step, int64 [n]."""
        raise NotImplementedError

    @property
    def position(self) -> Tensor:
        """The index of the predicting token in its row, int64 [n]."""
        raise NotImplementedError

    @property
    def document(self) -> Tensor:
        """The index of each token's document in the split, int64 [n]."""
        raise NotImplementedError

    def column(self, name: str) -> Tensor:
        """The value of a column for the document of each predicted token [n].

        Numbers are float64, NaN where missing. Texts are int64 indices into `categories(name)`, -1
        where missing. "source" is who wrote the document, by default "data". Collective: every
        process must request the same columns.
        """
        raise NotImplementedError

    def categories(self, name: str) -> Sequence[str]:
        """The distinct texts of a column in this step, all processes, sorted; [] if numeric."""
        raise NotImplementedError

    @property
    def prompt(self) -> Tensor:
        """The prompt of each token, int64 [n]: equal for all completions of one rollout prompt.

        For tokens of data it is their document.
        """
        raise NotImplementedError

    def seen(self, loss: Loss) -> Tensor:
        """Which tokens the term of this loss sees after the selection, bool [n]."""
        raise NotImplementedError

    def count(self, loss: Loss) -> Tensor:
        """The denominator of its term over the whole step and all processes, a scalar."""
        raise NotImplementedError

    def by_document(self, values: Tensor) -> Tensor:
        """The sum of `values` over each token's document, over all processes, float64 [n]."""
        raise NotImplementedError

    def by_row(self, values: Tensor) -> Tensor:
        """The sum of `values` over each token's row in the step, float64 [n]."""
        raise NotImplementedError

    def student_nll(self) -> Tensor:
        """The student's negative log-likelihood of each label, in nats [n]."""
        raise NotImplementedError

    def old_log_probs(self) -> Tensor:
        """The log-probability of each label under its behaviour policy, when drawn, float64 [n].

        In nats, at temperature 1 over the shared ids, whatever temperature, top_k and top_p it was
        sampled with and however many steps ago. NaN where not recorded, as for tokens of data. A
        loss that is only valid on sampled tokens also sets `needs_samples`.
        """
        raise NotImplementedError

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """The negative log-likelihood of each label by a teacher (default: the run's), nats [n]."""
        raise NotImplementedError

    def score(
        self, loss: Loss, teacher: Teacher | None = None, prepared: Tensor | None = None
    ) -> Tensor:
        """The values of any loss [n], computed in chunks without gradient.

        `prepared` [n, ...] is the extra input of a `PreparedLoss`.
        """
        raise NotImplementedError

    def spans(self) -> Tensor:
        """The index of the span of text, shared with the run's teacher, of each token, int64 [n].

        Equal numbers are one span, on this process; -1: no span. Where student and teacher share
        their ids, each token that the teacher covers is a span.
        """
        raise NotImplementedError

    def span_nll(self) -> Tensor:
        """Where a span begins, the teacher's nll of its first token in the span and the sum over
        its later tokens, in nats [n, 2]; undefined elsewhere.
        """
        raise NotImplementedError

    def shared_ids(self) -> tuple[Tensor, Tensor]:
        """Ids of the same text in the student's and the teacher's vocabulary, int64 [m] each."""
        raise NotImplementedError

    def top(self, scores: Tensor, share: Scheduled) -> Tensor:
        """The ceil(share * N) highest scores over all processes, bool [n].

        N is the number of valid tokens in the step. Ties go to the earlier token; NaN is never
        kept.
        """
        raise NotImplementedError

    def over_step(self, values: Tensor) -> Tensor:
        """The values of the tokens of all processes, in the order of the step [N]."""
        raise NotImplementedError

    def random(self) -> Tensor:
        """A uniform number in [0, 1) for each token, from seed, step, row and position [n]."""
        raise NotImplementedError


class Selection(Component):
    """Chooses the tokens of an optimizer step to train on."""

    component_kind: ClassVar[str] = "selection"

    def keep(self, tokens: Tokens) -> Tensor:
        """A bool for each of this process's valid tokens [n], or floats >= 0: token weights.

        Called without gradient. A term with `on = "kept"` is the weighted mean, divided by the sum
        of the weights; `on = "dropped"` sees the tokens of weight 0.
        """
        raise NotImplementedError

    def needs_teacher(self) -> bool:
        """Whether `keep` uses the run's teacher; teachers passed as options do not count."""
        return False


class PreparedLoss(Loss):
    """A loss whose value at a token depends on more than that token, such as on a whole sequence.

    `prepare` sees the whole optimizer step, once and without gradient. A sequence-level objective
    becomes a coefficient per token: the gradient of f(sum log q) is f'(sum log q) times the sum of
    the tokens' gradients of log q.
    """

    needs_samples: ClassVar[bool] = False  # True: requires tokens sampled from the student's own q
    only_prepared: ClassVar[bool] = False  # True: `per_token_prepared` gets no teacher logits

    def prepare(self, tokens: Tokens) -> Tensor:
        """Floats for each of this process's valid tokens, [n] or [n, k] with the same k and dtype
        in every step. Runs after the selection, whatever its scope.
        """
        raise NotImplementedError

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """As `per_token`, with the rows of `prepared` for these tokens."""
        raise NotImplementedError

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Raises UsageError: the value depends on `prepare`, which needs a whole step."""
        raise UsageError(
            f"loss {self.name!r} is prepared over a whole optimizer step: it can be a [[loss]], "
            "and neither a score of a selection nor an eval"
        )
