"""Servers that draw from a real model and answer in the layouts of vLLM, llama.cpp and `transformers serve`.

Each fills in what its original fills in where a call leaves it out, takes and refuses the keys that it takes and
refuses, and names tokens and log-probs as it does. Seen on the real ones on 2026-11-28.
"""

from __future__ import annotations

import json
import random
from typing import Any, Literal

import torch
from faulty_server import FaultyServer, Reply

Layout = Literal["vllm", "llama.cpp", "transformers"]

# what a call leaves out; of vLLM and transformers as a checkpoint's generation_config.json may say
FILLED_IN: dict[Layout, dict[str, Any]] = {
    "vllm": {"temperature": 1.0, "top_k": 8, "top_p": 1.0, "min_p": 0.0},
    "llama.cpp": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "transformers": {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "do_sample": False},
}
_KNOWN = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "logprobs", "stop", "best_of", "echo"}
_KNOWN |= {"presence_penalty", "frequency_penalty", "user", "suffix", "stream", "logit_bias", "generation_config"}


class PolicyServer(FaultyServer):
    """Serves ``model`` under the names in ``models``.

    Args:
        slots: most completions of a call in llama.cpp's layout.
        settings: what the server insists on whatever it is asked, such as ``temperature``.
        bias: added to every log-prob that it names.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layout: Layout,
        *,
        models: tuple[str, ...] = (),
        slots: int = 2,
        settings: dict[str, Any] | None = None,
        off: float = 0.0,
        known: set[str] | None = None,
    ) -> None:
        super().__init__(reply=self._reply, tokenizer=tokenizer, models=models)
        self.model, self.layout, self.slots, self.off = model.eval(), layout, slots, off
        self.settings, self.known = settings or {}, known
        self.bodies: list[dict[str, Any]] = []

    def _reply(self, path: str, body: dict[str, Any]) -> Reply | None:
        if not path.endswith("/completions") or path.endswith("/chat/completions"):
            return None
        with self.lock:
            self.bodies.append(body)
        refusal = self._refusal(body)
        if refusal is not None:
            return refusal
        count = 1 if self.layout == "transformers" else body.get("n", 1)
        return 200, {}, {"choices": [self._choice(body, index) for index in range(count)]}

    def _refusal(self, body: dict[str, Any]) -> Reply | None:
        if self.layout == "llama.cpp":
            if body.get("n", 1) > self.slots:
                said = f"Field 'n': Value must be between 1 <= value <= {self.slots}, but got {body['n']}"
                return 400, {}, {"error": {"code": 400, "message": said, "type": "invalid_request_error"}}
            return None
        if body["model"] not in self.models:
            if self.layout == "vllm":
                return 404, {}, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
            return 400, {}, {"detail": f"Server is pinned to '{self.models[0]}'; requested '{body['model']}'."}
        if self.layout == "transformers":
            if unknown := set(body) - (_KNOWN if self.known is None else self.known):
                return 422, {}, {"detail": f"Unexpected fields in the request: {unknown}"}
            if not isinstance(body["prompt"], str):
                return 400, {}, {"detail": "prompt must be a string."}
        return None

    def _choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        how = {**FILLED_IN[self.layout], **{k: v for k, v in body.items() if k != "generation_config"}}
        if self.layout == "transformers" and "generation_config" in body:
            how = {**how, **json.loads(body["generation_config"])}
        how |= self.settings
        prompt = body["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        drawn, logps = self._draw(ids, how, random.Random(body["seed"] + index))
        ended = drawn[-1] == self.tokenizer.eos_token_id
        text = self.tokenizer.decode(drawn, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": "stop" if ended else "length"}
        if self.layout == "vllm":
            choice |= {"stop_reason": None, "token_ids": drawn, "logprobs": {"token_logprobs": logps}}
        elif self.layout == "llama.cpp":
            pairs = zip(drawn, logps, strict=True)
            content = [{"id": i, "token": self.tokenizer.decode([i]), "logprob": logp} for i, logp in pairs]
            choice["logprobs"] = {"content": content}
        return choice

    def _draw(self, ids: list[int], how: dict[str, Any], source: random.Random) -> tuple[list[int], list[float]]:
        """Drawn tokens and their raw log-probs, one forward for each."""
        drawn: list[int] = []
        logps: list[float] = []
        while len(drawn) < how["max_tokens"] and drawn[-1:] != [self.tokenizer.eos_token_id]:
            with torch.no_grad():
                logits = self.model(torch.tensor([[*ids, *drawn]])).logits[0, -1].double()
            weights = warped(logits, how)
            drawn.append(source.choices(range(len(weights)), weights.tolist())[0])
            logps.append(float(logits.log_softmax(-1)[drawn[-1]]) + self.off)
        return drawn, logps


def warped(logits: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
    """Probabilities [V] after temperature, top-k, top-p and min-p, or those of the likeliest token alone."""
    if not how.get("do_sample", True):
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    p = (logits / how["temperature"]).softmax(-1)
    if how["top_k"] and how["top_k"] > 0:
        p = torch.where(p >= p.topk(min(how["top_k"], len(p))).values[-1], p, 0)
    if how["top_p"] < 1:
        order = p.argsort(descending=True)
        before = p[order].cumsum(-1) / p.sum() - p[order] / p.sum()
        p = p.index_fill(0, order[before >= how["top_p"]], 0)
    if how["min_p"]:
        p = torch.where(p >= how["min_p"] * p.max(), p, 0)
    return p / p.sum()
