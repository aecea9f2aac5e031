"""What the policy writes by itself while it trains: draws and scores against its plain logits, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from training import pairs, trainer
from zoo import tiny_model, token_ids

from align.objectives import DPO, KTO, NLL, HyPO, SimPO
from align.probes.own_text import rare
from align.runs.directory import RunDirectory
from align.trainers.own_text import OwnAnswers
from align.trainers.probing import PairProbe
from align.trainers.watch import Watch

LORA = {"r": 4, "target_modules": "all-linear"}
Samples = list[dict[str, Any]]


def watched(
    folder: Path, objective: Any, *, answers: int = 4, rows: Any = None, every: int = 9, **options: Any
) -> tuple[Any, Any]:
    """A trainer with a watch on eight pairs, trained for a step or more; and the run's records."""
    made = trainer(folder, objective, **{"max_steps": 1, **options})
    run = RunDirectory(folder)
    rows = [dict(row) for row in pairs(8, seed=3)] if rows is None else rows
    made.add_callback(Watch(made, run, rows, answers=answers, every=every, echo=lambda line: None))
    made.train()
    return made, run.metrics()


def readings(records: list[dict], name: str = "own_text") -> list[tuple[int, dict]]:
    return [(record["step"], record[name]) for record in records if name in record]


def kept(folder: Path) -> Samples:
    return json.loads((folder / "unseen.json").read_text())["samples"]


def by_hand(model: Any, prompt: list[int], ids: list[int]) -> tuple[float, float]:
    """Log-prob and summed entropy of an answer from a model's plain logits, float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    logp = logits.log_softmax(-1)
    taken = logp.gather(-1, torch.tensor(ids)[:, None]).sum().item()
    return taken, -(logp.exp() * logp).sum().item()


def sums(model: Any, prompts: list[list[int]], samples: Samples) -> np.ndarray:
    """[n, 2]: log-prob and entropy of every sample."""
    return np.array([by_hand(model, prompts[sample["prompt"]], sample["ids"]) for sample in samples])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict], Path]:
    folder = tmp_path_factory.mktemp("trained")
    made, records = watched(folder, DPO(beta=0.1), learning_rate=0.3, max_steps=3, every=1)
    return made, records, folder


def test_samples_of_the_start_are_kept_and_are_the_unseen_answers(trained: Any) -> None:
    made, records, folder = trained
    samples = kept(folder)
    answers = OwnAnswers(made, RunDirectory(folder), [dict(row) for row in pairs(8, seed=3)], 4)
    assert len(samples) == 2 * len(answers.prompts) == 8
    at_start = sums(tiny_model(), answers.prompts, samples)
    assert [sample["logp"] for sample in samples] == pytest.approx(at_start[:, 0].tolist(), abs=1e-4)
    now = sums(made.model.eval(), answers.prompts, samples)
    tokens = sum(len(sample["ids"]) for sample in samples)
    step, last = readings(records, "probe")[-1]
    assert (step, last["drift_of"]) == (3, "samples that the starting policy drew at these prompts")
    assert last["drift"]["value"] == pytest.approx((now - at_start)[:, 0].sum() / tokens, abs=1e-4)
    assert last["drift"]["n"] == 4
    assert abs(last["drift"]["value"]) > 1e-2  # the policy has moved
    probe = json.loads((folder / "probe.json").read_text())
    assert sum(probe["end"]["unseen_tokens"]) == tokens
    assert probe["end"]["unseen"] == pytest.approx(now[:, 0].reshape(4, 2).sum(1).tolist(), abs=1e-4)


def test_the_reading_is_that_of_plain_logits(trained: Any) -> None:
    made, records, folder = trained
    rows = [dict(row) for row in pairs(8, seed=3)]
    answers = OwnAnswers(made, RunDirectory(folder), rows, 4)
    drawn = answers.draw(3)
    samples = [{"prompt": i, "ids": list(sample.ids)} for i, group in enumerate(drawn) for sample in group]
    policy = sums(made.model.eval(), answers.prompts, samples)
    reference = sums(tiny_model(), answers.prompts, samples)[:, 0]
    tokens = np.array([len(sample["ids"]) for sample in samples])
    step, last = readings(records)[-1]
    assert (step, last["n"], last["prompts"], last["against"], last["why"]) == (3, 8, 4, "reference", "")
    assert last["reverse_kl"]["value"] == pytest.approx((policy[:, 0] - reference).mean(), abs=1e-4)
    assert last["reverse_kl_per_token"]["value"] == pytest.approx(
        (policy[:, 0] - reference).sum() / tokens.sum(), abs=1e-4
    )
    assert last["reference_logp"]["value"] == pytest.approx(reference.sum() / tokens.sum(), abs=1e-4)
    assert last["entropy"]["value"] == pytest.approx(policy[:, 1].sum() / tokens.sum(), abs=1e-4)
    assert last["tokens"]["value"] == pytest.approx(tokens.mean())
    # twice the longest answer of the pairs
    assert last["limit"] == answers.limit == 2 * max(len(r[f"{s}_ids"]) for r in rows for s in ("chosen", "rejected"))
    assert last["cut"] == np.mean([sample.truncated for group in drawn for sample in group])
    start = json.loads((folder / "probe.json").read_text())["start"]
    written = [np.divide(start[side], start[f"{side}_tokens"]) for side in ("chosen", "rejected")]
    own = [sample["logp"] / len(sample["ids"]) for sample in kept(folder)]
    assert last["bar"] == pytest.approx(rare(np.concatenate(written), np.array(own)), abs=1e-6)
    assert last["astray"]["value"] == pytest.approx((reference / tokens < last["bar"]).mean())


def test_at_the_start_the_policy_is_the_reference(trained: Any) -> None:
    _, records, _ = trained
    (step, first), *others = readings(records)
    assert (step, [other for other, _ in others]) == (0, [1, 2, 3])
    assert first["reverse_kl"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert first["astray"]["value"] <= 0.125  # the bar is the 5 % quantile, and there are eight samples
    assert others[-1][1]["reverse_kl"]["value"] > 0.1


def test_draws_depend_on_the_step_and_on_no_batch(trained: Any, tmp_path: Path) -> None:
    made = trained[0]
    rows = [dict(row) for row in pairs(8, seed=3)]
    one, other = (OwnAnswers(made, RunDirectory(tmp_path), rows, 4) for _ in range(2))
    other._sampler.size.size = 3
    assert one.draw(3) == other.draw(3)
    assert one.draw(3) != one.draw(2)
    # fewer prompts are a part of more, with the same draws
    few = OwnAnswers(made, RunDirectory(tmp_path), rows[:4], 4)
    few.limit = one.limit
    shared = [prompt for prompt in few.prompts if prompt in one.prompts]
    assert shared
    for prompt in shared:
        mine, theirs = few.draw(3)[few.prompts.index(prompt)], one.draw(3)[one.prompts.index(prompt)]
        cut = min(len(mine[0].ids), len(theirs[0].ids))
        assert mine[0].ids[:cut] == theirs[0].ids[:cut]


def test_a_resumed_run_has_the_same_samples(trained: Any, tmp_path: Path) -> None:
    made, _, folder = trained
    rows = [dict(row) for row in pairs(8, seed=3)]
    again = OwnAnswers(made, RunDirectory(folder), rows, 4)
    again.restore()
    assert again.start is not None
    assert again.start_logp is not None
    assert [list(sample.ids) for group in again.start for sample in group] == [s["ids"] for s in kept(folder)]
    assert again.start_logp.ravel().tolist() == [s["logp"] for s in kept(folder)]
    # the policy has moved since, so new draws would be others
    assert again.draw(0) != again.start
    older = OwnAnswers(made, RunDirectory(tmp_path), rows, 4)  # of a version that kept none
    older.restore()
    assert older.unseen() == {}


def test_an_adapter_is_switched_off_for_the_reference(tmp_path: Path) -> None:
    made, records = watched(tmp_path, DPO(), peft_config=LoraConfig(**LORA), learning_rate=1.0)
    last = readings(records)[-1][1]
    assert last["against"] == "reference"
    prompts = OwnAnswers(made, RunDirectory(tmp_path), [dict(row) for row in pairs(8, seed=3)], 4)
    samples = [{"prompt": i, "ids": list(s.ids)} for i, group in enumerate(prompts.draw(1)) for s in group]
    gap = sums(made.model.eval(), prompts.prompts, samples) - sums(tiny_model(), prompts.prompts, samples)
    assert last["reverse_kl"]["value"] == pytest.approx(gap[:, 0].mean(), abs=1e-4)
    assert abs(last["reverse_kl"]["value"]) > 1e-3


@pytest.mark.parametrize(
    ("options", "against", "why"),
    [
        ({"objective": SimPO()}, "", "no model of the start is kept"),
        ({"objective": SimPO(), "peft_config": LoraConfig(**LORA)}, "start", ""),
        (
            {"objective": SimPO(), "peft_config": LoraConfig(**LORA, init_lora_weights=False)},
            "",
            "the model without its adapter is not that of the start",
        ),
        ({"objective": DPO(), "reference_sync": (1, 0.5), "reference": "copy"}, "", "the reference moves"),
    ],
)
def test_what_own_answers_are_compared_with(tmp_path: Path, options: dict, against: str, why: str) -> None:
    _, records = watched(tmp_path, **options)
    last = readings(records)[-1][1]
    assert (last["against"], last["why"]) == (against, why)
    measured = {last[name] is not None for name in ("reverse_kl", "reverse_kl_per_token", "reference_logp", "astray")}
    assert measured == {bool(against)}
    assert last["entropy"]["value"] > 0


def test_a_reference_whose_rows_are_all_stored_is_kept_where_it_is_asked_about_other_text(tmp_path: Path) -> None:
    watched(tmp_path / "first", DPO(), store_dir=tmp_path / "store", max_steps=3)
    options: dict[str, Any] = {"store_dir": tmp_path / "store"}
    _, without = watched(tmp_path / "second", DPO(), **options)
    assert readings(without)[-1][1]["why"] == "no reference model is kept"
    asked, with_model = watched(tmp_path / "third", DPO(), **options, reference_asked=True)
    assert readings(with_model)[-1][1]["against"] == "reference"
    assert asked.reference.rows_computed == 0  # the pairs still come from the store


def test_hypo_draws_for_the_probe_only_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    _, records = watched(tmp_path, HyPO(), max_steps=3, every=1)
    assert [step for step, _ in readings(records)] == [0, 3]
    assert [step for step, _ in readings(records, "probe")] == [0, 1, 2, 3]
    assert len([r for r in records if "kl/sampled" in r]) == 3


def test_labelled_answers_are_asked_by_the_prompt_of_the_desirable_one(tmp_path: Path) -> None:
    ids = token_ids(5)
    rows = [
        {"prompt_ids": ids(4), "chosen_ids": ids(5), "rejected_ids": ids(3)}
        | {"chosen_prompt_ids": ids(6), "rejected_prompt_ids": ids(2)}
        for _ in range(3)
    ]
    made, records = watched(tmp_path, KTO(), rows=rows)
    answers = OwnAnswers(made, RunDirectory(tmp_path), rows, 4)
    assert answers.prompts == [row["chosen_prompt_ids"] for row in rows]
    assert readings(records)[-1][1]["n"] == 6


def test_prompts_that_are_alike_are_asked_once_and_those_without_room_not_at_all(tmp_path: Path) -> None:
    ids = token_ids(6)
    rows = [{"prompt_ids": ids(n), "chosen_ids": ids(5), "rejected_ids": ids(3)} for n in (4, 118, 119)]
    made = trainer(tmp_path, DPO(), model=tiny_model(max_position_embeddings=128))
    answers = OwnAnswers(made, RunDirectory(tmp_path), [rows[0], rows[0], *rows], 5)
    assert answers.limit == 10
    assert [len(prompt) for prompt in answers.prompts] == [4, 118]
    none = Watch(made, RunDirectory(tmp_path), [rows[2]], answers=5)
    assert [probe.name for probe in none.probes] == ["probe"]
    assert [probe.name for probe in Watch(made, RunDirectory(tmp_path), rows, answers=0).probes] == ["probe"]
    assert Watch(made, RunDirectory(tmp_path), [], answers=5).probes == []


def test_one_prompt_has_no_likeness_and_no_interval(tmp_path: Path) -> None:
    row = dict(pairs(1, seed=3)[0])
    _, records = watched(tmp_path, DPO(), rows=[row, dict(row)])
    last = readings(records)[-1][1]
    assert (last["n"], last["prompts"], last["likeness"], last["reverse_kl"]["low"]) == (2, 1, None, None)


def test_a_run_whose_weights_are_no_numbers_says_so_with_nulls(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO())
    run = RunDirectory(tmp_path)
    watch = Watch(made, run, [dict(row) for row in pairs(8, seed=3)], answers=4, echo=lambda line: None)
    made.get_ready(made.model_wrapped)
    watch.drawn.begin()
    for probe in watch.probes:
        probe.read(0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(float("nan"))
    assert watch.own is not None
    data = json.loads(json.dumps(watch.own.read(1), allow_nan=False))
    assert data["reverse_kl"]["value"] is data["entropy"]["value"] is None
    assert data["against"] == "reference"


def test_ten_answers_are_written_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    rows = [dict(row) for row in pairs(14, seed=3)]
    made, records = watched(tmp_path, NLL(), answers=12, rows=rows, learning_rate=0.5)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 10 + [1] * 10
    first, last = lines[:10], lines[10:]
    assert [line["prompt"] for line in first] == [line["prompt"] for line in last]
    assert len({line["prompt"] for line in first}) == 10
    asked = {made.processing_class.decode(row["prompt_ids"]) for row in rows}
    assert {line["prompt"] for line in first} <= asked
    assert [line["text"] for line in first] != [line["text"] for line in last]
    counts = [r["answer_tokens"] for r in records if "answer_tokens" in r]
    assert [len(tokens) for tokens in counts] == [12, 12]


def test_pairs_of_two_runs_are_told_apart_by_their_text(trained: Any, tmp_path: Path) -> None:
    made, _, folder = trained
    rows = [dict(row) for row in pairs(8, seed=3)]
    again = [dict(row) for row in Dataset.from_list(rows)]
    changed = [*rows[:7], rows[7] | {"rejected_ids": rows[6]["rejected_ids"]}]
    first, second, third = (PairProbe(made, RunDirectory(tmp_path), some).digests() for some in (rows, again, changed))
    saved = json.loads((folder / "probe.json").read_text())
    assert saved["rows"] == first == second
    assert len(set(first)) == 8
    assert [a == b for a, b in zip(first, third, strict=True)] == [True] * 7 + [False]
    # what is paired are the scores at the end, one for each pair
    change = np.subtract(saved["end"]["chosen"], saved["start"]["chosen"])
    assert change.mean() == pytest.approx(readings(trained[1], "probe")[-1][1]["chosen"]["value"], abs=1e-9)
