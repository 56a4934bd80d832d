"""What every test stands on: one thread, no network, caches in a folder that goes away."""

import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# The cores may be shared: how long an example takes says nothing.
settings.register_profile("kdcore", deadline=None)
settings.load_profile("kdcore")

_CACHE = tempfile.TemporaryDirectory(prefix="kdcore-tests-")

# Before anything imports the libraries that read these.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as the command has it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """More threads than cores make everything slower."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def kdcore_logger():
    """A test that runs the command leaves the logger as it was: pytest looks at `propagate`."""
    log = logging.getLogger("kdcore")
    log.propagate = True  # a fixture of a module may have run the command
    before = log.handlers[:], log.filters[:], log.level
    yield
    log.handlers, log.filters, level = before
    log.setLevel(level)
    log.propagate = True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text that is kept beside the repository; tests that want it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real text at {folder}")
    return folder


@pytest.fixture
def byte_tokenizer():
    """One id a byte, and an eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate(ids)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
