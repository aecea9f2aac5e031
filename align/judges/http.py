"""The one HTTP client: an OpenAI-compatible server is asked many things at once, and every answer lands once.

An answer is written to disk the moment it comes, whole or not at all, under a digest of what was asked; whoever asks
the same again, after a kill or in another process, finds it there. The key comes from the environment and goes out as a
header to the server's own address, nowhere else: redirects are not followed, and where a server repeats it, it is
blotted out.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from align.errors import UserError
from align.judges.answers import Answers, question_key
from align.judges.calls import Calls
from align.judges.waiting import Call, Waiting
from align.runs.retry import retry_after

if TYPE_CHECKING:
    from align.recipe.sampling import Server

Usable = Callable[[Any], bool]  # whether an answer, read from JSON, is what was asked for
Body = Mapping[str, Any]
Send = Callable[[str, str, Body | None, Usable], Any]  # method, path, what is posted; one answer
# an answer to a body, by means of what posts one: some servers give it in several calls
Through = Callable[[Body, Callable[[Body, Usable], Any]], Any]

_AGAIN = {408, 409, 425, 429}  # and all of 5xx
_LONGEST = 60.0  # seconds of a pause of our own
_PATIENCE = 600.0  # seconds that a server may ask us to wait before we give up instead
_LARGEST = 64 * 2**20  # bytes of an answer
_SHOWN = 300  # characters of a server's message
_READ = 20_000  # characters of a refusal that are read for what it names
_SECRET = 8  # a shorter key (EMPTY, none) is no secret, and blotting it out would garble answers


class Refused(UserError):
    """A server refused a call for good.

    Attributes:
        status: of its answer.
        said: its words, as long as they are read.
    """

    def __init__(self, sentence: str, status: int, said: str) -> None:
        super().__init__(sentence)
        self.status, self.said = status, said


class _Again(Exception):
    """A failure that may pass: what was seen, and the seconds that the server asks us to wait."""

    def __init__(self, seen: str, wait: float | None = None) -> None:
        super().__init__(seen)
        self.wait = wait


class Client:
    """Asks one server.

    Args:
        server: address, environment variable of the key, calls under way at a time, timeout, retries.
        cache: folder of answers, shared by any number of processes; None keeps none.
        budget: counts requests, retries among them, and says when there may be no more; no limit unless given.
        say: where sentences go.
        pause: seconds before the first retry; doubled for each one after it.

    Attributes:
        calls: requests that this client made, retries among them; ``budget.made`` may count others' too.
        retries: requests that were made again.
        cached: answers found on disk.

    Raises ``UserError`` where the address is not one that can be asked, or the variable holds no key.
    """

    def __init__(
        self,
        server: Server,
        cache: Path | None = None,
        *,
        budget: Calls | None = None,
        say: Callable[[str], Any] = print,
        pause: float = 1.0,
    ) -> None:
        self.server, self.say, self.pause = server, say, pause
        self.budget = Calls(None) if budget is None else budget
        self.answers = Answers(cache)
        self.url, self.host = _address(server.url)
        self._key = _key(server.key_env)
        self._secret = _spellings(self._key) if len(self._key) >= _SECRET else None
        self.calls = self.retries = self.cached = 0
        self._lock = threading.Lock()
        if self._key and self.url.startswith("http:") and self.host not in ("localhost", "127.0.0.1", "::1"):
            say(f"{self.host}: the key of {server.key_env} goes there unencrypted; https:// would not.")

    def get(self, path: str, usable: Usable) -> Any:
        """The answer to GET of ``path``, never kept. Raises like ``post``."""
        return self._all({"": lambda send: send("GET", path, None, usable)})[""]

    def ask(self, path: str, body: Body, usable: Usable) -> Any:
        """The answer to POST of one body, never kept. Raises like ``post``."""
        return self._all({"": lambda send: send("POST", path, body, usable)})[""]

    def post(
        self,
        path: str,
        bodies: Sequence[Body],
        usable: Usable,
        before: Callable[[list[Body]], Any] | None = None,
        through: Through | None = None,
    ) -> list[Any]:
        """Answers to POST of each body, in their order; equal bodies are asked once.

        Args:
            path: what follows the address, such as ``/completions``.
            usable: answers that it refuses are asked for again, and not kept.
            before: called with the bodies that are not on disk, before the first of them is asked.
            through: makes an answer to a body with calls of its own. It is kept under the body.

        Raises:
            Refused: where the server refuses a call.
            UserError: where a call fails for good, or ``limit`` is reached. Calls under way are waited for, and what
                they bring is kept.
        """
        keys = [question_key(self.url, path, body) for body in bodies]
        landed: dict[str, Any] = {}
        wanted: dict[str, Body] = {}
        for key, body in zip(keys, bodies, strict=True):
            if key in landed or key in wanted:
                continue
            answer = self.answers.read(key)
            if answer is not None and usable(answer):
                landed[key] = answer
            else:
                wanted[key] = body
        if before is not None:
            before(list(wanted.values()))
        self.cached += len(landed)
        if wanted:
            self.answers.require_writable()
            landed |= self._all({key: self._job(key, path, body, usable, through) for key, body in wanted.items()})
        return [landed[key] for key in keys]

    # ---- asking

    def _http(self) -> httpx2.Client:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        limits = httpx2.Limits(max_connections=self.server.concurrency)
        return httpx2.Client(headers=headers, timeout=self.server.timeout, limits=limits, follow_redirects=False)

    def _job(self, key: str, path: str, body: Body, usable: Usable, through: Through | None) -> Callable[[Send], Any]:
        """What asks for one answer and keeps it."""

        def job(send: Send) -> Any:
            if through is None:
                answer = send("POST", path, body, usable)
            else:
                answer = through(body, lambda part, fits: send("POST", path, part, fits))
            self.answers.keep(key, answer)
            return answer

        return job

    def _all(self, jobs: Mapping[str, Callable[[Send], Any]]) -> dict[str, Any]:
        """What each job brings, by its key; so many at a time as the server's settings say."""
        stop, landed = threading.Event(), {}
        failed: list[BaseException] = []
        waiting = Waiting(self.host, self.server.retries, len(jobs), self.say)
        with self._http() as http, ThreadPoolExecutor(min(self.server.concurrency, len(jobs))) as pool:

            def one(job: Callable[[Send], Any]) -> Any:
                try:
                    with waiting.call() as call:
                        return job(partial(self._ask, http, stop, call))
                except BaseException as error:
                    failed.append(error)
                    stop.set()  # nothing is begun or tried again; what is under way elsewhere may still land
                    raise

            futures: dict[Future[Any], str] = {pool.submit(one, job): key for key, job in jobs.items()}
            try:
                for future in waiting.done(futures):
                    if future.exception() is not None:
                        raise failed[0]  # the others may only say that they were not asked
                    landed[futures[future]] = future.result()
            finally:  # an interrupt, too, leaves the pool only when what is under way has landed
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return landed

    def _ask(
        self,
        http: httpx2.Client,
        stop: threading.Event,
        call: Call,
        method: str,
        path: str,
        body: Body | None,
        usable: Usable,
    ) -> Any:
        """One answer, after as many tries as it takes."""
        content = None if body is None else json.dumps(body).encode()
        salt, call.last = hashlib.sha256(content or b"").hexdigest(), ""
        for attempt in range(self.server.retries + 1):
            if stop.is_set():
                raise UserError(f"{self.url}{path} is not asked, since another call has failed.")
            self._count(attempt)
            call.tries = attempt + 1
            try:
                return self._once(http, method, path, content, usable)
            except _Again as again:
                call.last, wait = str(again), again.wait
            if wait is not None and wait > _PATIENCE:
                raise UserError(
                    f"{self.url}{path} asks to be called again in {wait:.0f} s ({call.last}).{self.answers.kept()}"
                ) from None
            if attempt < self.server.retries:
                stop.wait(max(self._delay(salt, attempt), wait or 0.0))
        raise UserError(
            f"{self.url}{path} gave no answer that can be used in {attempt + 1} {'try' if not attempt else 'tries'}; "
            f"the last: {call.last}.{self.answers.kept()}"
        )

    def _once(self, http: httpx2.Client, method: str, path: str, content: bytes | None, usable: Usable) -> Any:
        try:
            status, headers, text = self._exchange(http, method, path, content)
        except httpx2.TimeoutException:
            raise _Again(f"no answer within {self.server.timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Again(self._short(str(error)) or type(error).__name__) from None
        if status >= 500 or status in _AGAIN:
            raise _Again(f"status {status}: {self._message(text)}", retry_after(headers))
        if not 200 <= status < 300:
            raise Refused(self._refusal(method, path, status, headers, text), status, text[:_READ])
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise _Again(f"an answer that is not JSON ({self._short(text) or 'empty'})") from None
        if not usable(answer):
            raise _Again(f"an answer that is not what was asked for ({self._message(text)})")
        return answer

    def _exchange(
        self, http: httpx2.Client, method: str, path: str, content: bytes | None
    ) -> tuple[int, Mapping[str, str], str]:
        deadline, size, parts = time.monotonic() + self.server.timeout, 0, []
        with http.stream(method, self.url + path, content=content) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > _LARGEST:
                    raise UserError(f"{self.url}{path} sends more than {_LARGEST >> 20} MiB as one answer.")
                if time.monotonic() > deadline:  # the library's own timeout is one of each read
                    raise httpx2.ReadTimeout("too slow")
        text = b"".join(parts).decode("utf-8", errors="replace")
        return response.status_code, response.headers, self._blotted(text)

    def _count(self, attempt: int) -> None:
        with self._lock:
            if not self.budget.claim():
                raise UserError(
                    f"{self.url}: all {self.budget.limit:,} calls that are allowed were made, {self.retries:,} of them "
                    f"because an earlier one had failed.{self.answers.kept()}"
                )
            self.calls += 1
            self.retries += attempt > 0

    def _delay(self, salt: str, attempt: int) -> float:
        """Seconds before the next try: twice as long each time, and up to half of it off, by what is asked."""
        return min(self.pause * 2 ** min(attempt, 16), _LONGEST) * random.Random(f"{salt}{attempt}").uniform(0.5, 1.0)

    # ---- sentences

    def _blotted(self, text: str) -> str:
        return text if self._secret is None else self._secret.sub("***", text)

    def _short(self, text: str) -> str:
        """A server's words, fit to be shown: one line, no control characters, no key, not too long."""
        words = " ".join("".join(c if c.isprintable() else " " for c in self._blotted(text)).split())
        return words if len(words) <= _SHOWN else words[:_SHOWN] + "…"

    def _message(self, text: str) -> str:
        """What an answer in JSON says went wrong, or the answer itself."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        return self._short(found if isinstance(found, str) else text) or "nothing more"

    def _refusal(self, method: str, path: str, status: int, headers: Mapping[str, str], text: str) -> str:
        said = f"{method} {self.url}{path} was refused with status {status}: {self._message(text)}."
        if 300 <= status < 400:
            place = self._short(headers.get("location", "another place"))
            return f"{self.url}{path} redirects to {place}, which is not followed: set url to where the server is."
        if status in (401, 403):
            there = "" if self._key else ", which is not set"
            said += f" The key is read from the environment variable {self.server.key_env}{there}."
        if status == 404:
            said += " Check url (it often ends in /v1) and the model's name."
        # what is wrong with the call itself is not mended by making it again
        return said if status in (400, 422) else said + self.answers.kept()


def _address(url: str) -> tuple[str, str]:
    """An address without a slash at its end, and its host."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(f"url: expected an address such as http://localhost:8000/v1 ({error}).") from None
    if parsed.userinfo:
        raise UserError("url: it holds a name or password; a key is read from the environment variable key_env.")
    wrong = parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 80) > 65535
    if wrong or parsed.query or parsed.fragment:
        raise UserError(f"url: expected an address such as http://localhost:8000/v1, got {url.split('?')[0]!r}.")
    return str(parsed).rstrip("/"), parsed.host


def _key(name: str) -> str:
    """The key in an environment variable, empty where there is none."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"key_env: the environment variable {name} holds characters that no key has.")
    return key


def _spellings(key: str) -> re.Pattern[str]:
    """A key as it stands, and with any of its characters as URLs or JSON may spell them."""
    return re.compile("".join(rf"(?:{re.escape(c)}|(?i:%{ord(c):02x}|\\u{ord(c):04x}))" for c in key))
