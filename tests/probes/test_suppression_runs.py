"""Whole runs: one made to suppress is called so, a healthy one is not, each on three worlds with models of their own.

A world is a random chain of words. Its model writes an opening word, one of four common or, rarely, of four rare ones,
and then 5 or 24 words of the chain; prompts say nothing about answers. Held-out answers are drawn like training ones,
so that a change of their log-probs is no memory of them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from saved_model import save_model
from small_world import trained

from align.recipes.quickstart.running import write_rows

COMMON, RARE, CHAIN = range(30, 34), range(34, 38), range(40, 80)
SHORT, LONG = 5, 24

pytestmark = pytest.mark.slow


class World:
    """Words of one seed, and a model that learned to write them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.draw = folder, seed, random.Random(seed)
        self.follows = {word: self.draw.sample(CHAIN, 4) for word in CHAIN}
        rows = [{"prompt": self.prompt(), "completion": self.written()} for _ in range(3000)]
        write_rows(folder / "taught.jsonl", rows)
        places = {"model.id": save_model(folder / "new"), "data.train.path": folder / "taught.jsonl"}
        trained("quickstart/learn_base", places, folder / "learn", f"seed={seed}")
        self.model = folder / "learn" / "model"

    def prompt(self) -> str:
        return text(self.draw.sample(range(3, 28), 3))

    def rest(self, length: int) -> list[int]:
        words = [self.draw.choice(CHAIN)]
        while len(words) < length:
            words.append(self.draw.choice(self.follows[words[-1]]))
        return words

    def written(self) -> str:
        """An answer as the model learned to write them."""
        opening = self.draw.choice(RARE if self.draw.random() < 0.08 else COMMON)
        return answer(opening, self.rest(self.draw.choice((SHORT, LONG))))

    def suppressing(self) -> dict[str, str]:
        """Chosen is off-policy by its first word, and the long rest is that of the rejected answer."""
        rest = self.rest(LONG)
        chosen, rejected = (answer(self.draw.choice(openings), rest) for openings in (RARE, COMMON))
        return {"prompt": self.prompt(), "chosen": chosen, "rejected": rejected}

    def healthy(self) -> dict[str, str]:
        """Both answers are on-policy and have different texts; the preference is for two of the common openings."""
        chosen, rejected = (
            answer(self.draw.choice(openings), self.rest(SHORT)) for openings in (COMMON[:2], COMMON[2:])
        )
        return {"prompt": self.prompt(), "chosen": chosen, "rejected": rejected}

    def run(self, recipe: str, pairs: Any, *more: str) -> dict[str, Any]:
        """The findings of a run of a quickstart recipe on 200 training pairs and 64 held-out ones."""
        out = self.folder / recipe
        out.mkdir()
        places = {
            "model.id": self.model,
            "data.train.path": write_rows(out / "pairs.jsonl", [pairs() for _ in range(200)]),
            "data.held_out.path": write_rows(out / "held_out.jsonl", [pairs() for _ in range(64)]),
            "reference.store_dir": out / "reference",
        }
        result, _ = trained(f"quickstart/{recipe}", places, out / "run", f"seed={self.seed}", *more)
        findings: dict[str, Any] = result.verdict["findings"]
        return findings


def text(words: list[int]) -> str:
    return " ".join(f"w{word}" for word in words)


def answer(opening: int, rest: list[int]) -> str:
    return f" {text([opening, *rest])}"


@pytest.fixture(scope="module", params=range(3))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), request.param)


def test_a_run_made_to_suppress_is_called_so(world: World) -> None:
    found = world.run("dpo", world.suppressing, "train.learning_rate=2e-3", "train.num_train_epochs=2")
    suppression = found["suppression"]
    assert suppression["word"] == "yes", suppression
    assert suppression["text"].startswith("both answers became less likely: chosen -")
    # chosen: measured -24, -32 and -24 nats for answers of 26 tokens; rejected fell three to four times as far
    assert suppression["chosen"]["high"] < -13
    assert suppression["rejected"]["high"] < 2 * suppression["chosen"]["low"]
    assert suppression["chosen_per_token"] == pytest.approx(suppression["chosen"]["value"] / 26, rel=1e-6, abs=0)
    assert found["degradation"]["word"] in ("yes", "still falling")
    assert found["degradation"]["below"]["low"] > 0.9
    # accuracy alone says that all is well
    assert found["learned"]["word"] == "yes"
    assert found["learned"]["accuracy"]["value"] > 0.95
    assert found["next"]["text"] == "try objective.name=rpo, flex_dpo with a smaller beta_minus, or a larger beta"


def test_a_healthy_run_is_not(world: World) -> None:
    found = world.run("rpo", world.healthy, "train.num_train_epochs=1")
    suppression = found["suppression"]
    assert suppression["word"] == "no", suppression
    # measured +1.0, +0.9 and +0.5 nats; with an opening that was one of four and is one of two it is log 2 = 0.7
    assert 0.2 < suppression["chosen"]["value"] < 2
    assert suppression["chosen"]["high"] > 0
    assert found["degradation"]["word"] == "no"
    assert found["drop"]["word"] == "no"
    assert found["learned"]["word"] == "yes"
