"""A hub that cannot be reached: its sentence comes at once, and nothing else changes."""

import time

import huggingface_hub.constants
import pytest
from standin_hub import serving

from kdcore import RunError
from kdcore.models import locations
from kdcore.models.loading import load_config, load_tokenizer


@pytest.fixture
def online(monkeypatch):
    """A function that names the hub, as if the user had a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(locations, "_reached", set())
    return lambda url: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_name_without_a_network_is_not_retried(online, monkeypatch, tmp_path, load):
    with serving(tmp_path) as (url, _):
        online(url)  # nothing listens there any more
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(RunError, match="cannot load 'big': not a folder here and the hub cannot"):
        load("big")
    assert not waited
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked_as_usual(online, tmp_path):
    with serving(tmp_path) as (url, asked):
        online(url)
        for _ in range(2):
            with locations.without_vain_retries():
                assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert len(asked) == 1


def test_a_lost_answer_is_no_lost_network(online, monkeypatch):
    online("http://127.0.0.1:9")

    class Session:
        def head(self, address, timeout):
            raise ConnectionResetError("it closed the connection")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    with locations.without_vain_retries():
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
