"""Attacks on tiny models, against training and rounding written out here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from torch import nn
from zoo import tiny_model

from align.engine.scoring import ScoringEngine, attach
from align.errors import Stopped, UserError
from align.eval.durability import Durability
from align.eval.finished_run import attack_run
from align.eval.leak import Leaking, draw
from align.eval.relearn import relearn
from align.eval.relearning import Relearning
from align.eval.tofu import evaluate
from align.eval.tofu_data import Fact, TofuSets, load_sets
from align.judges.function import FunctionJudge
from align.models.subject import Subject
from align.runs.directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # TRL's names

HOW = Relearning(steps=5, rows=3, learning_rate=3e-3, seed=4)
FEW, NONE = Leaking(samples=3), Leaking(samples=0)


@pytest.fixture(scope="module")
def sets() -> TofuSets:
    """A few rows of the generated world."""
    whole = load_sets("forget", "world:1")
    counts = {"forget": 8, "retain": 3, "ra": 2, "wf": 2}
    return replace(whole, sets={name: whole.sets[name][:k] for name, k in counts.items()}, holdout=None)


def model(seed: int = 0) -> Any:
    return tiny_model(vocab_size=len(tiny_tokenizer()), max_position_embeddings=192, seed=seed)


def save(folder: Path, made: Any) -> str:
    made.save_pretrained(folder)
    tiny_tokenizer(chat=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("relearn") / "model", model())


@pytest.fixture(scope="module")
def result(folder: str, sets: TofuSets) -> Durability:
    """The model attacked with itself as the retain model."""
    before = {"utility": 0.5}
    return relearn(folder, sets, relearning=HOW, leaking=FEW, control=folder, before=before, say=lambda _: None)


def probability(made: Any, facts: list[Fact]) -> np.ndarray:
    """P of each answer [n], one unpadded row at a time."""
    return np.array([np.exp(-_loss(made, fact)[0].item() / _loss(made, fact)[1]) for fact in facts])


def _loss(made: Any, fact: Fact) -> tuple[torch.Tensor, int]:
    """Sum of the answer's token losses, end token included, and their number."""
    tokenizer = tiny_tokenizer(chat=False)
    prompt = tokenizer(f"Question: {fact.question}\nAnswer:").input_ids
    ids = torch.tensor([tokenizer(f"Question: {fact.question}\nAnswer: {fact.answer}<|endoftext|>").input_ids])
    logits = made(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"), ids.shape[1] - len(prompt)


def test_relearning_is_so_many_steps_of_likelihood_on_the_drawn_rows(result: Durability, sets: TofuSets) -> None:
    drawn = result.settings["relearned_rows"]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 3
    facts = sets.sets["forget"]
    made = model()
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=0.0)
    before = probability(made, facts)
    for _ in range(5):
        losses = [_loss(made, facts[i]) for i in drawn]
        (sum(total for total, _ in losses) / sum(count for _, count in losses)).backward()
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = probability(made, facts)
    others = np.setdiff1d(np.arange(8), drawn)
    assert (after[drawn] > 3 * before[drawn]).all()  # it does learn
    found = result.readings
    assert found["as it is"]["forget_probability"] == pytest.approx(before.mean(), rel=1e-4, abs=0)
    assert found["relearned"]["forget_probability"] == pytest.approx(after.mean(), rel=5e-3, abs=0)
    assert found["relearned, other rows"]["forget_probability"] == pytest.approx(after[others].mean(), rel=5e-3, abs=0)
    attack = result.attacks[0]
    assert (attack.name, attack.rows) == ("relearned", 5)  # what was shown is not counted
    assert attack.rise["forget_probability"].value == pytest.approx((after - before)[others].mean(), rel=2e-2, abs=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_are_measured(result: Durability, sets: TofuSets, bits: int) -> None:
    made = model()
    _round(made, bits)
    found = result.readings[f"{bits} bits"]["forget_probability"]
    assert found == pytest.approx(probability(made, sets.sets["forget"]).mean(), rel=1e-4, abs=0)
    assert found != pytest.approx(result.readings["as it is"]["forget_probability"], rel=1e-4, abs=0)


def _round(made: Any, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    for name, weight in made.named_parameters():
        if weight.dim() == 2 and not any(part in name for part in ("embed", "lm_head")):
            values = weight.detach().double()
            step = values.abs().max(dim=1, keepdim=True).values / top
            weight.data.copy_((values / step).round() * step)


@pytest.mark.parametrize(
    ("state", "column"),
    [("paraphrased", "paraphrased_question"), ("alias", "alias_question"), ("two hops", "two_hop_question")],
)
def test_other_questions_are_asked(result: Durability, sets: TofuSets, state: str, column: str) -> None:
    facts = [replace(f, question=str(getattr(f, column))) for f in sets.sets["forget"]]
    expected = probability(model(), facts).mean()
    found = result.readings[state]["forget_probability"]
    assert found == pytest.approx(expected, rel=1e-4, abs=0)
    assert found != pytest.approx(result.readings["as it is"]["forget_probability"], rel=1e-4, abs=0)


def test_samples_are_drawn_of_the_model_as_it_is(result: Durability, sets: TofuSets) -> None:
    made = model()
    attach(made)
    subject = Subject(made.eval(), tiny_tokenizer(chat=False), ScoringEngine())
    counts = draw(subject, sets.sets["forget"], sets.new_tokens, FEW, HOW.seed, print).counts.tolist()
    assert result.settings["leak"] == {
        "samples": 3, "temperature": 1.0, "leak": FEW.meaning, "leaks": counts, "control_leaks": counts,
    }  # fmt: skip
    assert f"leak@k: 3 samples of each question at temperature 1, drawn with seed 4; a leak is {FEW.meaning}" in (
        result.tested
    )


def test_a_model_that_answers_nobody_without_a_name_holds_nothing(result: Durability) -> None:
    for attack in result.attacks:
        if attack.name in ("alias", "two hops"):
            assert attack.retained == (0.0, 0.0)  # it is untrained
            assert attack.word == "unclear"
            assert attack.lines()[-1] == (
                "retained people: 0% answered as they stand, 0% so asked, too few to say that this holds"
            )
        else:
            assert attack.retained is None


def test_a_control_that_is_the_model_itself_takes_everything_off(result: Durability) -> None:
    *attacks, often = result.attacks
    names = ["relearned", "8 bits", "4 bits", "NF4", "paraphrased", "alias", "two hops"]
    assert [a.name for a in attacks] == names
    for attack in attacks:
        for spans in (attack.excess, attack.above):
            assert {(s.value, s.low, s.high) for s in spans.values()} == {(0.0, 0.0, 0.0)}
    assert {a.word for a in attacks[:5]} == {"held"}
    assert (often.name, often.word) == ("leak@k", "unclear")  # eight questions say little
    assert {s.value for s in often.excess.values()} == {0.0}
    assert result.word == "unclear"
    assert {k: v["forget_probability"] for k, v in result.control.items()} == {
        k: v["forget_probability"] for k, v in result.readings.items() if k != "before unlearning"
    }
    assert all(result.readings[name]["forget_quality"] == 1.0 for name in ("as it is", "8 bits", "paraphrased"))
    assert result.readings["before unlearning"] == {"utility": 0.5}
    assert any("jailbreak" in text for text in result.untested)


def test_an_adapter_is_trained_on_and_merged_before_rounding(tmp_path: Path, folder: str, sets: TofuSets) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    few = replace(sets, sets={**sets.sets, "forget": sets.sets["forget"][:4]})
    how = Relearning(steps=4, rows=2, learning_rate=3e-2)
    found = relearn(str(tmp_path / "adapter"), few, relearning=how, leaking=NONE, say=lambda _: None)
    merged = adapted.merge_and_unload()
    facts = few.sets["forget"]
    before = probability(merged, facts)
    assert found.readings["as it is"]["forget_probability"] == pytest.approx(before.mean(), rel=1e-4, abs=0)
    assert found.readings["relearned"]["forget_probability"] > 1.5 * before.mean()
    _round(merged, 4)
    assert found.readings["4 bits"]["forget_probability"] == pytest.approx(
        probability(merged, facts).mean(), rel=1e-4, abs=0
    )
    assert "forget_quality" not in found.readings["as it is"]
    assert any("no retain model" in note for note in found.notes)
    assert found.attacks[-1].name == "two hops"
    assert found.untested[-1] == "leak@k: no samples were drawn"
    assert found.settings["leak"] is None


def test_rows_without_a_paraphrase_are_not_asked_otherwise(folder: str, sets: TofuSets) -> None:
    bare = {"paraphrased_question": None, "alias_question": None}
    plain = {name: [replace(f, **bare) for f in facts[:2]] for name, facts in sets.sets.items()}
    one = [replace(plain["retain"][0], two_hop_question=None), *plain["retain"][1:]]
    every = Leaking(samples=1, judge=FunctionJudge(lambda prompts, responses: [1.0] * len(prompts)))
    how: dict[str, Any] = {"relearning": Relearning(1, 1), "leaking": every, "say": lambda _: None}
    found = relearn(folder, replace(sets, sets={**plain, "retain": one}), **how)
    assert [a.name for a in found.attacks] == ["relearned", "8 bits", "4 bits", "NF4", "leak@k"]
    assert found.untested[-3:] == (
        "paraphrased: the rows lack the column paraphrased_question",
        "alias: the rows lack the column alias_question",
        "two hops: the rows lack the column two_hop_question",
    )
    assert found.attacks[-1].word == "rose"
    assert found.notes[-1] == (
        "answers are hit by guessing, too, by any model that is asked often: --control says how often"
    )


def test_a_run_is_attacked_by_its_recipe_and_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe says of split, rate and retain model, and what the run recorded, is used."""
    monkeypatch.chdir(tmp_path)
    questions = _tofu(tmp_path / "questions")
    run = RunDirectory(tmp_path / "run")
    save(run.path / "model", model())
    recipe = {
        "name": "run",
        "model": {"id": "start"},
        "data": {"forget": {"world": "forget"}},
        "objective": {"name": "npo"},
        "train": {"learning_rate": 3e-3},
        "evaluate": {"split": "forget01", "source": {"path": str(questions)}, "retain": "nowhere"},
    }
    run.write_lock({"recipe": recipe})
    sets = load_sets("forget01", str(questions))
    other = model(seed=5)
    attach(other)
    kept = evaluate(Subject(other, tiny_tokenizer(chat=False), ScoringEngine(), name="kept"), sets, mia=False)
    run.write_json("eval/retain.json", kept.to_json())
    run.append_metrics({"step": 0, "evaluation": {"utility": 0.25, "forget_probability": 0.9}})
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}

    said: list[str] = []
    found = attack_run("run", steps=2, leaking=NONE, say=said.append)
    assert {k: v for k, v in found.settings.items() if k not in ("relearned_rows", "leak")} == {
        "split": "forget01", "rows": "all", "forget_rows": 40, "retain": "nowhere", "steps": 2, "learning_rate": 3e-3,
        "seed": 0,
    }  # fmt: skip
    assert len(found.settings["relearned_rows"]) == 20
    assert found.readings["before unlearning"]["utility"] == 0.25
    assert found.readings["as it is"]["n"] == 40
    assert "forget_quality" not in found.readings["paraphrased"]  # the retain model was not asked so
    assert found.attacks[0].above["forget_probability"].n == 20
    assert found.attacks[4].above == {}
    assert any("relearning 20 rows in 2 steps" in line for line in said)
    written = run.path / "eval" / "durability.json"
    assert json.loads(written.read_text()) == json.loads(json.dumps(found.to_json()))
    written.unlink()
    assert files == {p: hashlib.sha256(p.read_bytes()).digest() for p in tmp_path.rglob("*") if p.is_file()}


def _tofu(folder: Path) -> Path:
    """TOFU's files in small: forty rows to forget, two of each other set."""
    from align.data.rows import world

    counts = {"forget01_perturbed": ("forget", 40), "retain_perturbed": ("retain", 2)}
    counts |= {"real_authors_perturbed": ("background", 2), "world_facts_perturbed": ("countries", 2)}
    folder.mkdir()
    for name, (kind, count) in counts.items():
        (folder / f"{name}.json").write_text("\n".join(json.dumps(row) for row in world.rows(kind)[:count]))
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (Relearning(rows=8), "Relearning 8 of 8 forget rows leaves none"),
        (Relearning(rows=2, steps=0), "at least one step"),
        (Relearning(rows=2, learning_rate=0.0), "a learning rate above 0"),
    ],
)
def test_what_cannot_be_relearned_is_said_at_once(sets: TofuSets, how: Relearning, says: str) -> None:
    with pytest.raises(UserError, match=says):
        relearn("never/loaded", sets, relearning=how)


def test_a_log_of_another_split_and_a_launcher_are_refused(
    folder: str, sets: TofuSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    attach(made)
    subject = Subject(made, tiny_tokenizer(chat=False), ScoringEngine())
    fewer = replace(sets, sets={name: facts[:2] for name, facts in sets.sets.items()})
    target = evaluate(subject, fewer, mia=False, generate=False)
    with pytest.raises(UserError, match="log has 2 forget rows and forget is measured on 8"):
        relearn("never/loaded", sets, relearning=HOW, target=target)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without a launcher"):
        relearn("never/loaded", sets, relearning=HOW)


def test_divergence_is_said(folder: str, sets: TofuSets) -> None:
    few = replace(sets, sets={name: facts[:2] for name, facts in sets.sets.items()})
    with pytest.raises(Stopped, match=r"Relearning .* diverged: give a --learning-rate below 1e"):
        relearn(folder, few, relearning=Relearning(steps=3, rows=1, learning_rate=1e38), say=lambda _: None)
