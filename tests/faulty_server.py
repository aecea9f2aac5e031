"""A real HTTP server of this machine that speaks the OpenAI protocol and fails as it is told to.

As a judge it prefers the longer answer: P(A) = 1/2 + 0.3 tanh(difference in characters / 10), plus a constant for what
is shown first. As a policy it draws tokens by the seed that it is sent. It counts every request.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import LocalServer

FAULTS = ("timeout", "busy", "broken", "garbled", "half", "dropped", "trickle", "other", "slow")
SLEEP = 0.8  # seconds; more than the timeout that tests give their clients, save for "slow"
TIMEOUT = 0.4

Reply = tuple[int, dict[str, str], Any]  # status, headers, what is sent as JSON


def preference(first: str, second: str) -> float:
    """P(first is better) without a bias of place."""
    return 0.5 + 0.3 * math.tanh((len(first) - len(second)) / 10)


def mixed(seed: int, most: int = 4) -> Callable[[str, int], str]:
    """Faults drawn by what is asked and how often it was: at most ``most`` in a row for one and the same."""
    return lambda asked, attempt: (
        random.Random(f"{seed}{asked}{attempt}").choice((*FAULTS, "", "")) if attempt < most else ""
    )


class FaultyServer(LocalServer):
    """A context manager; ``url`` is the address while it runs.

    Args:
        fault: for what is asked (its body) and how often it was asked before, the name of a fault or nothing.
        reply: answers instead of the server's own ones, by path and body; None falls back to them.
        bias: added to the probability of what is shown first.
        judge: ``logprobs``, ``text`` (no log-probs) or ``neither`` (an answer with neither letter).
        delay: seconds that every answer takes.
        tokenizer: of the policy that draws.
        ids: whether token ids are returned.
        models: names that are served.
    """

    below = "/v1"

    def __init__(
        self,
        fault: Callable[[str, int], str] = lambda asked, attempt: "",
        *,
        reply: Callable[[str, dict], Reply | None] = lambda path, body: None,
        bias: float = 0.0,
        judge: str = "logprobs",
        delay: float = 0.0,
        tokenizer: Any = None,
        ids: bool = True,
        models: tuple[str, ...] = (),
    ) -> None:
        self.fault, self.reply, self.bias, self.judge, self.delay = fault, reply, bias, judge, delay
        self.tokenizer, self.ids, self.models = tokenizer, ids, models
        self.asked: Counter[str] = Counter()  # by body, every request that came in whole
        self.answered: Counter[str] = Counter()  # by body, those that got a right answer, whole
        self.faults: Counter[str] = Counter()
        self.authorizations: set[str | None] = set()
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()

    @property
    def requests(self) -> int:
        """How many POSTs came in."""
        return self.asked.total()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _handler(self)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self.lock:
                self._at_once -= 1

    # ---- right answers

    def right(self, path: str, body: dict) -> Reply:
        if path.endswith("/chat/completions"):
            return 200, {}, self.verdict(body["messages"][0]["content"])
        if path.endswith("/completions"):
            return 200, {}, {"choices": self.completions(body)}
        return 404, {}, {"error": {"message": f"there is no {path}"}}

    def verdict(self, question: str) -> dict:
        mark = re.findall(r"^(### [0-9a-f]{8}) answer A$", question, re.M)[-1]
        _, first, second = (part.split("\n", 1)[1][:-1] for part in question.split(f"\n{mark} ")[1:4])
        p = preference(first, second) + self.bias
        if self.judge == "text":
            return {"choices": [{"message": {"content": "A" if p > 0.5 else "B"}, "logprobs": None}]}
        # both letters in several spellings, differently shared out, and a fifth of the probability elsewhere
        shares = {"A": p * 0.5, " A": p * 0.2, "a": p * 0.3, "B": (1 - p) * 0.9, "\u2581b": (1 - p) * 0.1}
        spread = {"The": 0.2} | {token: 0.8 * share for token, share in shares.items()}
        if self.judge == "neither":
            spread = {"The": 0.9, "Both": 0.1}
        top = [{"token": token, "logprob": math.log(share)} for token, share in spread.items()]
        content = [{**max(top, key=lambda entry: entry["logprob"]), "top_logprobs": top}]
        return {"choices": [{"message": {"content": content[0]["token"]}, "logprobs": {"content": content}}]}

    def completions(self, body: dict) -> list[dict]:
        """Choices in reverse order, each with as many tokens as its draw says, ended or cut."""
        found = []
        for index in range(body["n"]):
            draw = random.Random(body["seed"] + index)
            most, end = body["max_tokens"], self.tokenizer.eos_token_id
            count = draw.randint(1, most + 2)
            ids = [draw.randrange(10, 100) for _ in range(min(count, most))]
            if count <= most:
                ids[-1] = end
            choice = {
                "index": index,
                "text": self.tokenizer.decode(ids, skip_special_tokens=True),
                "finish_reason": "stop" if count <= most else "length",
                "stop_reason": None,
            }
            if self.ids:
                choice |= {"token_ids": ids, "logprobs": {"token_logprobs": [-(i % 7) - 0.5 for i in ids]}}
            found.append(choice)
        return found[::-1]


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            with server.lock:
                server.authorizations.add(self.headers.get("Authorization"))
            body = {"data": [{"id": name} for name in server.models]}
            self._send(*(server.reply(self.path, {}) or (200, {}, body)))

        def do_POST(self) -> None:
            with server.counted():
                self._post()

        def _post(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with server.lock:
                attempt = server.asked[asked]
                server.asked[asked] += 1
                server.authorizations.add(self.headers.get("Authorization"))
                fault = server.fault(asked, attempt)
                server.faults[fault] += 1
            time.sleep({"timeout": SLEEP, "slow": TIMEOUT / 4}.get(fault, 0.0) + server.delay)
            body = json.loads(asked)
            right = server.reply(self.path, body) or server.right(self.path, body)
            if fault in ("", "slow", "timeout"):
                with server.lock:
                    server.answered[asked] += fault != "timeout" and right[0] == 200
                self._send(*right)
            elif fault == "busy":
                self._send(429, {"Retry-After": "0.05"}, {"error": {"message": "slower, please"}})
            elif fault == "broken":
                self._send(500, {}, {"error": {"message": "out of memory"}})
            elif fault == "other":
                self._send(200, {}, {"error": {"message": "no worker is free"}})
            elif fault != "dropped":
                self._cut(fault, json.dumps(right[2]).encode())
            self.close_connection = self.close_connection or fault == "dropped"

        def _send(self, status: int, headers: dict[str, str], value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, said in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, said)
            self.end_headers()
            self.wfile.write(data)

        def _cut(self, fault: str, data: bytes) -> None:
            """Half of an answer: as all of it, with the connection closed in the middle, or ever slower."""
            half = data[: len(data) // 2]
            self.send_response(200)
            self.send_header("Content-Length", str(len(half) if fault == "garbled" else len(data)))
            self.end_headers()
            self.wfile.write(half)
            self.close_connection = True
            if fault == "trickle":  # each byte comes within the timeout, all of them do not
                for byte in data[len(half) :]:
                    time.sleep(1.5 * TIMEOUT / len(data[len(half) :]))
                    self.wfile.write(bytes([byte]))

    return Handler
