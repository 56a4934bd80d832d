"""The special tokens of a tokenizer, whose names texts may contain."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from kdcore.errors import RunError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_FIRST = 0x100000  # start of the last plane of the private use area
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what is not in the vocabulary becomes these


class SpecialTokens:
    """Finds the names of a tokenizer's special tokens in texts, and keeps them text.

    Most vocabularies split such a name into several tokens. Others have it as a word or a piece,
    so that the name becomes the special token even where special tokens are not parsed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder.values()
        special = {each.content for each in added if each.special} | {*tokenizer.all_special_tokens}
        self.names: list[str] = sorted(sorted(filter(None, special)), key=len, reverse=True)
        """All of them, the longest first."""
        self._tokenizer = tokenizer

    @cached_property
    def meant(self) -> frozenset[str]:
        """Names that a text means: letters and words of the vocabulary, and what a BPE merges."""
        made = self._made
        if not self._has_words:
            return frozenset(name for name in made if len(name) == 1)
        meant = {name for name in made if len(name) == 1 or name.isalnum()}
        return frozenset(meant | (self._merged if made - meant else set()) & made)

    @cached_property
    def mistaken(self) -> frozenset[str]:
        """Names that are words of the vocabulary although no text means them."""
        return self._made - self.meant if self._has_words else frozenset()

    @cached_property
    def letters(self) -> frozenset[str]:
        """Names of one character that a text may contain and that are not in the vocabulary."""
        return frozenset(name for name in self.names if len(name) == 1) - self.meant

    @cached_property
    def renamable(self) -> list[str]:
        """Names that a copy of the tokenizer may rename: neither meant nor bytes."""
        names = [name for name in self.names if name not in self.meant]
        return [name for name in names if not _BYTE.fullmatch(name)]

    def has_one(self, text: str) -> bool:
        """Whether a text contains a name that may have to remain text."""
        # Searching for two characters is ten times faster than for every name.
        return any(each in text for each in self._begins) and self.first(text) is not None

    def first(self, text: str) -> str | None:
        """The first such name that a text contains."""
        found = self._pattern.search(text)
        return found and found[0]

    @cached_property
    def as_text(self) -> PreTrainedTokenizerBase:
        """The tokenizer, changed so that with `split_special_tokens` each of these is text."""
        if not self._tokenizer.is_fast:
            return self._tokenizer
        names = [name for name in self.renamable if len(name) > 1]
        if self._has_words:
            names = [name for name in names if name in self.mistaken]
        if not names:
            return self._tokenizer
        from transformers import PreTrainedTokenizerFast

        others = {name: chr(_FIRST + n) for n, name in enumerate(names)}
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=self.renamed(others)
        )

    def renamed(self, others: Mapping[str, str]) -> Tokenizer:
        """A copy of a fast tokenizer in which special tokens have other names and their ids.

        RunError where the tokenizer cannot be changed so.
        """
        from tokenizers import Tokenizer

        backend = self._tokenizer.backend_tokenizer
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        for token in state["added_tokens"]:
            token["content"] = others.get(token["content"], token["content"])
        model = state["model"]
        vocabulary = model.get("vocab", {})
        if isinstance(vocabulary, dict):
            model["vocab"] = {others.get(key, key): id for key, id in vocabulary.items()}
        else:
            model["vocab"] = [[others.get(key, key), *rest] for key, *rest in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = others.get(model["unk_token"], model["unk_token"])
        renamed: Tokenizer = Tokenizer.from_str(json.dumps(state))
        for name, other in others.items():
            if renamed.token_to_id(other) != backend.token_to_id(name):
                raise RunError(
                    f"the tokenizer {self._tokenizer.name_or_path!r} cannot tell {name} in a text "
                    'from the token; set special_tokens = "parse" in [data]'
                )
        return renamed

    @cached_property
    def _has_words(self) -> bool:
        """Whether a name in the vocabulary may be a word; Unigram has all tokens as pieces."""
        fast = self._tokenizer.is_fast
        return fast and type(self._tokenizer.backend_tokenizer.model).__name__ != "Unigram"

    @cached_property
    def _made(self) -> frozenset[str]:
        """Names that the vocabulary has, so that their text becomes the special token."""
        if not self._tokenizer.is_fast:
            return frozenset()
        backend = self._tokenizer.backend_tokenizer
        before, backend.encode_special_tokens = backend.encode_special_tokens, True
        try:
            return frozenset(
                name
                for name in self.names
                if backend.token_to_id(name) in backend.encode(name, add_special_tokens=False).ids
            )
        finally:
            backend.encode_special_tokens = before

    @cached_property
    def _merged(self) -> set[str]:
        """What the merges of a BPE make."""
        model = json.loads(self._tokenizer.backend_tokenizer.to_str())["model"]
        merges = model.get("merges") or []
        return {"".join(each if isinstance(each, list) else each.split(" ")) for each in merges}

    @cached_property
    def _looked_for(self) -> list[str]:
        # Names of several letters may be words, but a word that contains them is another one.
        return [name for name in self.names if len(name) > 1 or name in self.letters]

    @cached_property
    def _begins(self) -> tuple[str, ...]:
        return tuple({each[:2] for each in self._looked_for})

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._looked_for)) or "(?!)")
