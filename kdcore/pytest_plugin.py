"""Fixtures for the tests of plugins: `-p kdcore.pytest_plugin`, or `pytest_plugins` in conftest.py.

Heavy imports wait until a test uses a fixture. There is no pytest entry point: it would make pytest
rewrite the assertions of all of kdcore wherever kdcore is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.component import Component
    from kdcore.api.run import Run
    from kdcore.data.batch import Batch


@pytest.fixture
def kdcore_check() -> Callable[[Component], None]:
    """`kdcore.testing.check`: assert that a component keeps the contract of its kind."""
    from kdcore.testing import check

    return check


@pytest.fixture
def kdcore_run() -> Iterator[Run]:
    """`kdcore.testing.tiny_run`: a finished run of two steps, opened."""
    from kdcore.testing import tiny_run

    with tiny_run() as run:
        yield run


@pytest.fixture
def kdcore_batch() -> Batch:
    """Three rows of ten, nine and four ids, from a vocabulary of 64."""
    from kdcore.testing import make_batch

    return make_batch([range(1, 11), range(20, 29), range(40, 44)])


@pytest.fixture
def kdcore_model() -> PreTrainedModel:
    """`kdcore.testing.tiny_llama`: a fresh two-layer Llama with 64 ids."""
    from kdcore.testing import tiny_llama

    return tiny_llama()


@pytest.fixture
def kdcore_tokenizer() -> PreTrainedTokenizerBase:
    """`kdcore.testing.tiny_tokenizer`: one id per byte, and an EOS token."""
    from kdcore.testing import tiny_tokenizer

    return tiny_tokenizer()
