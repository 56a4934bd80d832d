"""An HTTP client that retries while the server is unreachable; refusals are one sentence."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdcore import RunError, Unreachable, redact_secrets, stop_requested

if TYPE_CHECKING:
    import httpx2

ELSEWHERE = frozenset({"url", "concurrency", "timeout", "give_up_after", "key_env"})
"""Options of what asks a server that say nothing of what it answers."""

_log = logging.getLogger("kdcore")
_LONGEST_WAIT = 30.0  # seconds between two attempts
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


def sleep_until_stopped(seconds: float) -> None:
    """Sleep, but not for longer than half a second after a signal that ends the run."""
    until = time.monotonic() + seconds
    while not stop_requested() and (left := until - time.monotonic()) > 0:
        time.sleep(min(0.5, left))


class Client:
    """Requests to one address. Temporary errors are retried for `give_up_after` seconds."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        give_up_after: float,
        key_env: str | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = sleep_until_stopped,
    ) -> None:
        import httpx2  # takes half as long as torch, and every command imports this plugin

        if url.rstrip("/").endswith("/v1"):
            raise RunError(f"{url}: leave out /v1 at the end of the address, as kdcore adds it")
        self.url, self._give_up_after, self._key_env = url, give_up_after, key_env
        self._sleep = sleep
        self._waits = False  # a warning said so
        self.lost = 0  # lost connections so far: after one, another server may answer
        self._http = httpx2.Client(
            base_url=url.rstrip("/"),
            timeout=timeout,
            headers=_key(key_env),
            transport=transport,
            limits=httpx2.Limits(max_connections=None),
        )

    def get(self, path: str) -> Any:
        """The server's response, as JSON."""
        return self._answer(lambda: self._http.get(path))

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """The response to a request with a body."""
        return self._answer(lambda: self._http.post(path, json=body))

    def _answer(self, ask: Callable[[], httpx2.Response]) -> Any:
        import httpx2

        waited, wait = 0.0, 0.5
        while True:
            try:
                response = ask()
                if response.status_code not in _AGAIN:
                    self._waits = False
                    return self._checked(response)
                why = f"it answered {response.status_code}"
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                self.lost += 1
                why = str(error) or type(error).__name__
            if waited >= self._give_up_after or stop_requested():
                raise Unreachable(self._gone(why, waited))
            self._warn(why)
            self._sleep(wait)
            waited, wait = waited + wait, min(2 * wait, _LONGEST_WAIT)

    def _warn(self, why: str) -> None:
        """Say once that requests wait: a run that is quiet for ten minutes looks broken."""
        if not self._waits and self._give_up_after >= _LONGEST_WAIT:
            self._waits = True
            _log.warning(
                f"there is no answer from {self.url} ({redact_secrets(why)}); kdcore tries again "
                f"for {self._give_up_after:.0f} s (give_up_after)"
            )

    def _checked(self, response: httpx2.Response) -> Any:
        if response.status_code in (401, 403):
            raise RunError(self._locked(response.status_code))
        if response.status_code >= 400:
            raise Refused(self.url, response.status_code, response.text)
        try:
            return response.json()
        except ValueError:
            said = redact_secrets(response.text[:80])
            raise RunError(
                f"{self.url} answered with text that is not JSON ({said!r}): {_not_json(said)}"
            ) from None

    def _locked(self, status: int) -> str:
        if self._key_env is None:
            return f"{self.url} asks for a key ({status}): name its environment variable in key_env"
        return f"{self.url} refused the key in {self._key_env} ({status})"

    def _gone(self, why: str, waited: float) -> str:
        tried = f", tried for {waited:.0f} s" if waited else ""
        return (
            f"there is no answer from {self.url} ({redact_secrets(why)}){tried}: start the server, "
            f"or correct its address; then type the same command"
        )


class Refused(RunError):
    """The server understood a request and refused it."""

    def __init__(self, url: str, status: int, said: str) -> None:
        self.said, self.status = said, status
        self.is_about_content = "content_filter" in said or "content_policy" in said
        super().__init__(f"{url} refused a request ({status}): {redact_secrets(said[:300])}")


def _not_json(said: str) -> str:
    """What may be wrong with a server whose answer begins like this."""
    if said.startswith(("data:", "event:")):
        return "it streams its answers though no request asks for it; switch that off"
    return "is it the server's address, with http:// and its port?"


def _key(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    key = os.environ.get(name)
    if not key:
        raise RunError(f"the variable {name} of key_env is not set: export {name}=...")
    return {"Authorization": f"Bearer {key}"}
