"""Redaction of secrets, local paths and user names."""

from __future__ import annotations

import getpass
import logging
import os
import re

_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:[\\/]+Users)[\\/]+[^\\/\s\"'#,]+")
_ROOT = re.compile(r"(?<![\w.])/root(?![\w.-])")
_OTHERS_HOME = re.compile(r"(?<![\w.])~[\w.-]+")

# A quoted path may contain spaces; one in a comment ends at the next space.
_QUOTED_PLACE = re.compile(r"""(["'])(?:/|[A-Za-z]:[\\/])(?:[^"'\n]*[\\/])([^"'\n\\/]+)[\\/]*\1""")
_PLACE = re.compile(r"(?<![\w.:/~\\])/(?:[\w.@+-]+/)+([\w.@+-]*)")
_FINAL = re.compile(r"""(["'])[^"'\n]*?([\w-]+)(?:\.([\w.-]+))?-[0-9a-f]{8}(?:-\d+)?/final\1""")

_TOKENS = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{16,}|gh[oprsu]_\w{16,}|github_pat_\w{16,}|xox[abprs]-[\w-]{8,}"
    r"|AKIA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)

_SECRET_KEY = re.compile(
    r"""((?:^|[{,])\s*["']?(?:(?:[\w-]+\.)*token|(?:[\w.-]*[._-])?(?:"""
    r"""(?:api|auth|access|hf|bearer|refresh|wandb)_?token|secret|secret_?key|password|passwd"""
    r"""|api_?key|access_?key|private_?key|credentials?))["']?"""
    r"""\s*=\s*)(["']).*?\2""",
    re.IGNORECASE | re.MULTILINE,
)

_SECRET_NAME = re.compile(
    r"token|secret|passw|credential|(?:api|access|private|auth)_?key|(?:^|_)key$", re.IGNORECASE
)

_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+@")

_ASKED_WITH = re.compile(
    r"([?&](?:[\w-]*(?:token|key|signature|credential|secret|password)|sig)=)[^&\s\"']+",
    re.IGNORECASE,
)


def redact_own_secrets(text: str) -> str:
    """The text with the values of tokens, keys and passwords in the environment as `***`."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name) and value in text:
            text = text.replace(value, "***")
    return _TOKENS.sub("***", text)


class Redacted(logging.Filter):
    """A log filter that redacts the environment's secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record's text."""
        record.msg, record.args = redact_own_secrets(record.getMessage()), ()
        return True


def redact_secrets(text: str) -> str:
    """The text with anything that looks like a token, key or password as `***`."""
    text = redact_own_secrets(text)
    text = _TOKENS.sub("***", text)
    text = _SECRET_KEY.sub(r"\1\2***\2", text)
    text = _IN_ADDRESS.sub("", text)
    text = _ASKED_WITH.sub(r"\1***", text)
    known = _own_token()
    return text.replace(known, "***") if known else text


def redact_paths(text: str) -> str:
    """The text without local paths and the user's name.

    A run's final weights become the stage's `"@NAME"`; other absolute paths keep their last part,
    and a home folder becomes `~`.
    """
    text = _FINAL.sub(lambda m: f"{m[1]}@{m[3] or m[2]}{m[1]}", text)
    for home in (_HOME, _ROOT, _OTHERS_HOME):
        text = home.sub("~", text)
    text = _QUOTED_PLACE.sub(r"\1.../\2\1", text)
    text = _PLACE.sub(r".../\1", text)
    user = _user()
    return re.sub(rf"(?<=/){re.escape(user)}(?=[/\"'\s]|$)", "...", text) if user else text


def _own_token() -> str | None:
    """The token that the hub library would send."""
    from huggingface_hub import get_token

    return get_token()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user id has no name, as in some containers
        return ""
