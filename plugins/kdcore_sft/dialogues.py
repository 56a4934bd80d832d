"""Data that is dialogues: how they become rows, and which of their tokens are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcore import Rows, component, pack_documents
from kdcore_sft.making import Maker
from kdcore_sft.masking import check_tokenizer
from kdcore_sft.options import DialogueOptions
from kdcore_sft.templates import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@component
class Dialogues(DialogueOptions):
    """Dialogues of which the assistant's answers are learned. Subclasses say where they come from.

    `template` is the tokenizer's own chat template, "plain", "chatml" or a Jinja text. `system` is
    put before dialogues without a system turn. `train_on` "last" learns the last answer only. Each
    answer is learned with the token that ends its turn; where the template writes none after the
    last one, `eos` appends the tokenizer's. Dialogues longer than `block` lose text of the prompt
    first, at its `cut` side ("right" or "left").

    `chat_template_kwargs` are variables that the template reads, as `{enable_thinking = false}`;
    what a record has itself goes before them. A dialogue begins as its template writes it; with
    `bos` true, or "auto" and a built-in template, with the tokenizer's bos, if it has none.
    """

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """Each dialogue in one row, its answers alone learned; several in a row are isolated."""
        check_tokenizer(tokenizer)
        template = template_of(
            self.template, tokenizer, eos=self.eos, options=self.chat_template_kwargs
        )
        maker = Maker(self, split, tokenizer, template)
        rows = pack_documents(self, split, maker.rows, key=maker.key)
        maker.tell()
        return rows
