"""Recipes that sample: what goes together, and a sentence with the key for what does not."""

from __future__ import annotations

from typing import Any

import pytest

from align.errors import UserError
from align.recipe import Recipe

PAIRS = {"train": {"path": "pairs.jsonl"}}
ROUNDS: dict[str, Any] = {
    "objective": {"name": "inpo"},
    "sampling": {"samples": 8},
    "judge": {"reward": "me/reward"},
    "rounds": {"count": 3, "prompts": 100},
}
HYPO: dict[str, Any] = {"objective": {"name": "hypo"}, "sampling": {"samples": 2}}
SUPERHF: dict[str, Any] = {
    "objective": {"name": "superhf"},
    "sampling": {"samples": 4},
    "judge": {"reward": "me/reward"},
    "select": {"how": "top", "keep": 2},
}
SERVER = {"url": "http://localhost:8000/v1"}
ENDPOINT = {**SERVER, "model": "judge"}
FUSION = {"corpus": {"path": "pairs.jsonl"}}


def made(values: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe of these sections; a section that is None is left out."""
    whole = {"name": "r", "model": {"id": "m"}, "data": PAIRS, **values, **changes}
    return Recipe.from_dict({key: value for key, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    "values",
    [
        ROUNDS,
        {**ROUNDS, "objective": {"name": "orpo"}},  # which reads chosen answers with their prompts, too
        {**ROUNDS, "objective": {"name": "dpo"}, "select": {"how": "best_worst", "length_penalty": 0.1}},
        {**ROUNDS, "judge": {"pair": "me/pair", "dtype": "bfloat16"}, "select": {"how": "tournament"}},
        {**ROUNDS, "judge": {"endpoint": ENDPOINT}, "select": {"how": "tournament"}},
        {**ROUNDS, "judge": {"function": "mine:compare"}, "select": {"how": "tournament"}},
        {**ROUNDS, "sampling": {"samples": 8, "server": SERVER, "temperature": 0.7, "top_p": 0.9}},
        HYPO,
        {**HYPO, "objective": [{"name": "ipo"}, {"name": "sampled_kl", "weight": 0.1}]},
        SUPERHF,
        {**SUPERHF, "select": None},
        {**SUPERHF, "judge": {"reward": "me/reward", "fusion": FUSION}},
        {**SUPERHF, "sampling": {"samples": 4, "temperature": 0.7}},
        {"objective": {"name": "inpo"}},
        {"objective": {"name": "dpo"}, "reference": {"rows": "initial"}},
    ],
)
def test_what_goes_together_is_accepted_and_written_out_the_same(values: dict[str, Any]) -> None:
    recipe = made({key: value for key, value in values.items() if value is not None})
    assert Recipe.from_dict(recipe.dump()).dump() == recipe.dump()


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        # rounds
        (ROUNDS, {"sampling": None}, "sampling: missing: rounds need it"),
        (ROUNDS, {"judge": None}, "judge: missing: rounds need it"),
        (ROUNDS, {"select": {"how": "top"}}, "select.how: rounds need pairs"),
        (ROUNDS, {"sampling": {"samples": 1}}, "sampling.samples: a pair needs two samples"),
        (ROUNDS, {"objective": {"name": "nll", "branch": "completion"}}, "objective: rounds make pairs"),
        (ROUNDS, {"objective": {"name": "hypo"}}, "rounds: the objective draws samples of its own"),
        (
            ROUNDS,
            {"data": {"train": {"path": "a"}, "held_out": {"path": "b"}}},
            "data.held_out: rounds know",
        ),
        (ROUNDS, {"data": {"train": {"path": "a", "streaming": True}}, "train": {"max_steps": 3}}, "train.streaming"),
        (ROUNDS, {"data": {"train": [{"path": "a"}, {"path": "b", "weight": 2.0}]}}, "data.train.1.weight: every"),
        (ROUNDS, {"data": {"forget": {"path": "a"}}}, "data.forget: rounds sample answers"),
        (ROUNDS, {"evaluate": {}}, "evaluate: no suite is run between rounds"),
        (
            ROUNDS,
            {"rounds": {"load": "sharded"}, "model": {"id": "m", "load_in": "4bit", "lora": {}}},
            "rounds.load: quantised weights are not cut up; remove it, or set rounds.load: first.",
        ),
        (ROUNDS, {"reference": {"strategy": "copy"}}, "reference.strategy: rounds keep log-probs"),
        (ROUNDS, {"reference": {"rows": "initial"}}, "reference.rows: rounds keep log-probs"),
        (ROUNDS, {"sampling": {"samples": 4, "max_new_tokens": 1024}}, "sampling.max_new_tokens: 1024 new tokens"),
        # judges
        (ROUNDS, {"judge": {}}, "judge: says no judge"),
        (ROUNDS, {"judge": {"reward": "a", "pair": "b"}}, "judge: gives reward and pair; keep one"),
        (ROUNDS, {"judge": {"function": "a:b", "revision": "main"}}, "judge.revision: a judge by function loads no"),
        (ROUNDS, {"judge": {"pair": "a"}}, "select.how: best_worst needs a judge that scores"),
        (ROUNDS, {"select": {"how": "tournament"}}, "select.how: a tournament needs a judge that compares"),
        (
            ROUNDS,
            {"judge": {"pair": "a"}, "select": {"how": "tournament"}, "sampling": {"samples": 6}},
            "sampling.samples: a tournament needs a power of two, such as 8; got 6",
        ),
        (
            ROUNDS,
            {"judge": {"pair": "a"}, "select": {"how": "tournament", "length_penalty": 0.5}},
            "select.length_penalty: a tournament has no scores",
        ),
        (ROUNDS, {"select": {"keep": 2}}, "select.keep: goes with how: top"),
        (
            ROUNDS,
            {"data": {**PAIRS, "convex": {}}},
            "data.convex: rewrites training pairs, and rounds make their own; remove it.",
        ),
        # fusion
        (
            ROUNDS,
            {"judge": {"pair": "a", "fusion": FUSION}, "select": {"how": "tournament"}},
            "judge.fusion: scores are averaged, and this judge compares answers; remove it.",
        ),
        (
            ROUNDS,
            {"judge": {"endpoint": ENDPOINT, "fusion": FUSION}, "select": {"how": "tournament"}},
            "judge.fusion: scores are averaged, and this judge compares answers; remove it.",
        ),
        (
            SUPERHF,
            {"judge": {"reward": "a", "fusion": {"corpus": {"path": "a", "id": "b"}}}},
            "judge.fusion.corpus: gives id and path; give one of id, path and world.",
        ),
        (
            SUPERHF,
            {"judge": {"reward": "a", "fusion": {"corpus": {}}}},
            "judge.fusion.corpus: gives no source; give one of id, path and world.",
        ),
        (
            SUPERHF,
            {"judge": {"reward": "a", "fusion": {"corpus": {"id": "a", "streaming": True}}}},
            "judge.fusion.corpus.streaming: the corpus is searched for neighbours; set rows: 10000 instead of",
        ),
        (
            SUPERHF,
            {"judge": {"reward": "a", "fusion": {"corpus": {"id": "a", "weight": 2.0}}}},
            "judge.fusion.corpus.weight: every text of the corpus counts once; remove it.",
        ),
        # fresh samples
        (HYPO, {"sampling": None}, "sampling: missing: the objective reads fresh samples"),
        (HYPO, {"sampling": {"temperature": 0.7}}, "sampling.temperature: the KL term needs draws from the policy as"),
        (HYPO, {"sampling": {"top_p": 0.9}}, "sampling.top_p: the KL term"),
        (HYPO, {"sampling": {"top_k": 50}}, "sampling.top_k: the KL term"),
        (HYPO, {"sampling": {"min_p": 0.1}}, "sampling.min_p: the KL term"),
        (HYPO, {"sampling": {"stop": ["\n"]}}, "sampling.stop: the KL term"),
        (HYPO, {"sampling": {"server": SERVER}}, "sampling.server: a server has the weights of a checkpoint"),
        (HYPO, {"judge": {"reward": "a"}}, "judge: nothing is judged"),
        # survivors
        (SUPERHF, {"judge": None}, "judge: missing: the objective keeps the best by score"),
        (SUPERHF, {"judge": {"pair": "a"}}, "judge.pair: compares answers"),
        (SUPERHF, {"select": {"how": "best_worst"}}, "select.how: survivors are the best"),
        (SUPERHF, {"select": {"how": "top", "keep": 5}}, "select.keep: keeps 5 of sampling.samples 4"),
        (SUPERHF, {"sampling": {"server": SERVER}}, "sampling.server: a server has the weights"),
        # neither
        ({"objective": {"name": "dpo"}}, {"sampling": {"samples": 4}}, "sampling: nothing is sampled"),
        ({"objective": {"name": "dpo"}}, {"select": {"how": "top"}}, "select: nothing is judged"),
        # a reference in the rows
        (
            {"objective": {"name": "dpo"}},
            {"reference": {"rows": "initial", "strategy": "copy"}},
            "reference.strategy: reference.rows keeps no reference model",
        ),
        (
            {"objective": {"name": "dpo"}},
            {"reference": {"rows": "initial", "sync_every": 3}},
            "reference.sync_every: reference.rows takes log-probs from the rows",
        ),
        (
            {"objective": {"name": "npo"}, "data": {"forget": {"path": "a"}}},
            {"reference": {"rows": "initial"}},
            "reference.rows: rows to forget bring no log-probs along",
        ),
    ],
)
def test_contradictions_are_said_with_the_key_to_change(
    values: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        made(values, **changes)
    lines = str(caught.value).splitlines()
    assert [line for line in lines if said in line], lines
    assert len(lines) == 2 or "forget" in said  # alone, but for what other checks say about rows to forget


def test_processes_of_rounds_wait_for_each_other_longer_than_half_an_hour() -> None:
    def timeout(**sections: Any) -> int:
        base = {"name": "n", "model": {"id": "m"}, "data": PAIRS, "objective": {"name": "dpo"}}
        train = {"use_cpu": True, **sections.pop("train", {})}
        return Recipe.from_dict({**base, **sections, "train": train}).training_arguments().ddp_timeout

    assert timeout() == 1800
    assert timeout(**ROUNDS) == 7 * 24 * 3600
    assert timeout(**ROUNDS, train={"ddp_timeout": 60}) == 60
