"""Base of data made of dialogues: their rows, and which tokens are trained."""

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
    """Dialogues whose assistant answers are trained. Subclasses provide the dialogues.

    `template` is "plain", "chatml" or a Jinja text (default: the tokenizer's own chat template).
    `system` is added to dialogues without a system turn. `train_on` "last" trains on the last
    answer only. Each answer is trained with the token that ends its turn; if the template writes
    none after the last one, `eos` appends the tokenizer's. Dialogues longer than `block` lose
    prompt text first, at the `cut` side ("right" or "left").

    `chat_template_kwargs` are template variables, such as `{enable_thinking = false}`; a record's
    own values override them. A dialogue begins as its template writes it; with `bos` true, or
    "auto" and a built-in template, the tokenizer's bos is added if missing.
    """

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """A document per dialogue, answers alone trained; documents in one row are isolated."""
        check_tokenizer(tokenizer)
        template = template_of(
            self.template, tokenizer, eos=self.eos, options=self.chat_template_kwargs
        )
        maker = Maker(self, split, tokenizer, template)
        rows = pack_documents(self, split, maker.rows, key=maker.key)
        maker.tell()
        return rows
