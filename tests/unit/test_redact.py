"""What is made public tells no secret, no user's name and no place of a machine."""

import pytest

from kdcore import redact
from kdcore.redact import redact_paths, redact_secrets

HF = "hf_abcdefghijKLMNOP1234"


@pytest.mark.parametrize(
    "text, kept",
    [
        ('path = "/home/alice/texts/a b.txt"', 'path = "~/texts/a b.txt"'),
        ('path = "/Users/alice"', 'path = "~"'),
        (r'path = "C:\\Users\\alice\\a.txt"', r'path = "~\\a.txt"'),
        ('path = "~alice/a.txt"', 'path = "~/a.txt"'),
        ('path = "~/a.txt"', 'path = "~/a.txt"'),
        ('path = "/root/a.txt"', 'path = "~/a.txt"'),
        ('path = "/scratch/alice/my texts/a.txt"', 'path = ".../a.txt"'),
        ('path = "/scratch/alice/texts/"', 'path = ".../texts"'),
        (r'path = "D:\\alice\\a.txt"', 'path = ".../a.txt"'),
        ('path = ["/data/alice/a.txt", "b.txt"]', 'path = [".../a.txt", "b.txt"]'),
        ("# from /data/alice/a.txt, shortened", "# from .../a.txt, shortened"),
        ('model = "runs/two.teacher-12ab34cd/final"', 'model = "@teacher"'),
        ('model = "/data/alice/runs/two.teacher-12ab34cd-2/final"', 'model = "@teacher"'),
        ('model = "runs/fox-12ab34cd/final"', 'model = "@fox"'),
    ],
)
def test_places(text, kept):
    assert redact_paths(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        'model = "Qwen/Qwen2.5-0.5B"',
        'path = "data/texts.txt"',
        'path = "../texts/final"',
        'separator = "/"',
        'system = "/no_think"',
        "# https://example.org/a/b/c and either/or",
        "weight = 1 / 2",
        "lr = 1e-3  # 3/4 of it",
        'model = "@teacher"',
    ],
)
def test_what_is_no_place_stays(text):
    assert redact_paths(text) == text


def test_the_users_own_name(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    assert redact_paths('path = "../alice/b.txt"') == 'path = "../.../b.txt"'
    assert redact_paths('model = "alice/qwen"') == 'model = "alice/qwen"'  # a name on the hub


def test_a_user_without_a_name(monkeypatch):
    def nameless():
        raise KeyError("uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert redact_paths('path = "../a/b.txt"') == 'path = "../a/b.txt"'


@pytest.mark.parametrize(
    "text, kept",
    [
        (f'path = "hub://{HF}/x"', 'path = "hub://***/x"'),
        (f"# my token {HF}!", "# my token ***!"),
        ('key = "sk-abcdefghijklmnop1234"', 'key = "***"'),
        ('token = "fox"', 'token = "***"'),
        ('hub.my_hf_token = "fox"', 'hub.my_hf_token = "***"'),
        ('x = [{use = "a", api_key = "fox"}]', 'x = [{use = "a", api_key = "***"}]'),
        ('password = "fox"', 'password = "***"'),
        ('  api_key = "fox"', '  api_key = "***"'),
        ("wandb.api_key = 'fox'", "wandb.api_key = '***'"),
        ('path = "https://alice:fox@example.org/a"', 'path = "https://example.org/a"'),
        (
            'path = "https://example.org/a?x=1&token=fox"',
            'path = "https://example.org/a?x=1&token=***"',
        ),
    ],
)
def test_secrets(text, kept):
    assert redact_secrets(text) == kept


@pytest.mark.parametrize(
    "text", ['eos_token = "<|end|>"', "max_new_tokens = 12", 'column = "key"', "tokens = 1e6"]
)
def test_what_is_no_secret_stays(text):
    assert redact_secrets(text) == text


def test_the_token_that_the_hubs_library_would_send(monkeypatch):
    monkeypatch.setattr(redact, "_own_token", lambda: "of-another-kind")
    assert redact_secrets("x = 'of-another-kind'") == "x = '***'"


def test_a_token_in_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-another-kind")
    assert redact_secrets("x = 'of-another-kind'") == "x = '***'"
