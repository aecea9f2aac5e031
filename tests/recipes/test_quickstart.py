"""The quickstart's preference part on a smaller world, and what it says. Only claims that held on every seed tried."""

from __future__ import annotations

import json
import math
import struct

import pytest
import torch

from align.data.rows import world
from align.recipe import load_recipe
from align.recipes.quickstart.demo import METHODS, accuracy, align_model, learn, trajectory
from align.recipes.quickstart.measure import Masses, Scorer
from align.recipes.quickstart.running import RECIPES, Steps, calm
from align.recipes.quickstart.small_model import save_new
from align.recipes.quickstart.summary import SHOWN, as_shown, order, sentence, unseen

RUNS = {title: name.replace("_", "-") for title, name in METHODS.items()}
SMALL = world.Size(people=12, forgotten=4, background=6, strangers=2, base_epochs=12, tune_epochs=10)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, masses and printed lines of one small run; the unlearning part has tests of its own."""
    out = tmp_path_factory.mktemp("quickstart")
    lines: list[str] = []
    made = world.build(0, SMALL)
    with calm():
        masses = align_model(out, made, learn(out, made), Steps(lines.append))
    return out, masses, lines


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A model with new weights and rows to ask it about."""
    folder = tmp_path_factory.mktemp("untrained")
    made = world.build(0, SMALL)
    save_new(folder, world.corpus(made), seed=0)
    return Scorer(folder), world.candidate_rows(made.forget)[:6]


def test_the_methods_come_out_in_the_order_that_is_claimed(finished):
    _, masses, lines = finished
    assert list(masses) == ["start", "DPO", "Flex-DPO", "RPO"]
    assert masses["DPO"].chosen < masses["Flex-DPO"].chosen < masses["RPO"].chosen
    assert masses["DPO"].elsewhere > max(masses["Flex-DPO"].elsewhere, masses["RPO"].elsewhere)
    assert any(SHOWN in line for line in lines)


def test_every_method_takes_the_rejected_answer_away(finished):
    _, masses, _ = finished
    assert masses["start"].rejected > 0.05
    for title in METHODS:
        assert masses[title].rejected < masses["start"].rejected / 10
        assert masses[title].rejected_logp < masses["start"].rejected_logp
        assert masses[title].chosen_logp > masses["start"].chosen_logp  # it began as the unlikeliest


def test_probabilities_add_up(finished):
    _, masses, _ = finished
    for now in masses.values():
        assert now.chosen + now.rejected + now.others + now.elsewhere == pytest.approx(1, abs=1e-9)
        assert min(now.chosen, now.rejected, now.others, now.elsewhere) >= 0


def test_the_model_learned_those_it_was_taught_and_nothing_about_the_others(finished):
    out, _, _ = finished
    made, scorer = world.build(0, SMALL), Scorer(out / "model")
    assert scorer.recalled(made.retain) > 0.8
    assert scorer.recalled(made.forget) < 0.25  # chance is 1/12; 80 facts


def test_the_trainers_record_agrees_with_the_plain_logits(finished):
    """The change that the run's probe reports is the one that the untouched saved models show."""
    out, _, _ = finished
    pairs = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    rows = [{"prompt": pair["prompt"], "candidates": [pair["chosen"], pair["rejected"]]} for pair in pairs]
    for name in METHODS.values():
        run = out / name.replace("_", "-")
        moved = (Scorer(run / "model").logps(rows) - Scorer(out / "model").logps(rows)).mean(0).tolist()
        step, chosen, rejected = trajectory(run)[-1]
        assert step == 30  # 80 pairs, 16 in a step, 6 epochs
        assert [chosen, rejected] == pytest.approx(moved, abs=2e-3)


def test_pairs_are_the_extremes_of_the_reference(finished):
    out, _, _ = finished
    made, scorer = world.build(0, SMALL), Scorer(out / "model")
    rows = world.candidate_rows(made.forget)
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 80
    for row, pair, logps in zip(rows, pairs, scorer.logps(rows), strict=True):
        assert pair["prompt"] == row["prompt"]
        assert row["candidates"].index(pair["chosen"]) == logps.argmin()
        assert row["candidates"].index(pair["rejected"]) == logps.argmax()


def test_held_out_accuracy_is_that_of_the_saved_models(finished):
    """All methods compare d_w with d_l; what Flex-DPO makes of them with its own betas is another number."""
    out, _, _ = finished
    pairs = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    rows = [{"prompt": pair["prompt"], "candidates": [pair["chosen"], pair["rejected"]]} for pair in pairs]
    for name in ("dpo", "flex_dpo", "rpo"):
        run = out / name.replace("_", "-")
        moved = Scorer(run / "model").logps(rows) - Scorer(out / "model").logps(rows)
        assert accuracy(run) == pytest.approx((moved[:, 0] > moved[:, 1]).float().mean().item())


def test_what_it_leaves_behind(finished):
    out, masses, lines = finished
    png = (out / "quickstart.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1650, 660)
    assert {key: Masses(**value) for key, value in json.loads((out / "masses.json").read_text()).items()} == masses
    for run in ("learn-base", "learn-people", "dpo", "flex-dpo", "rpo"):
        assert (out / run / "recipe.lock.yaml").exists()
    assert max(len(line) for text in lines for line in text.splitlines()) <= 200


def test_log_probs_are_those_of_one_answer_at_a_time(untrained):
    scorer, rows = untrained
    logps = scorer.logps(rows, batch=4)
    for i, row in enumerate(rows[:2]):
        for k, text in enumerate(row["candidates"][:3]):
            prompt = scorer.tokenizer(row["prompt"]).input_ids
            answer = [*scorer.tokenizer(text, add_special_tokens=False).input_ids, scorer.tokenizer.eos_token_id]
            with torch.no_grad():
                logits = scorer.model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
            token = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]
            assert logps[i, k].item() == pytest.approx(token.sum().item(), abs=1e-4)


def test_an_untrained_model_puts_nothing_on_any_answer(untrained):
    scorer, rows = untrained
    pairs = world.preference_pairs(rows, scorer.logps(rows).tolist())
    assert scorer.masses(rows, pairs).elsewhere == pytest.approx(1, abs=1e-6)


def test_samples_are_the_same_every_time(untrained):
    scorer, rows = untrained
    first, second = scorer.samples(rows[0]["prompt"]), scorer.samples(rows[0]["prompt"])
    assert first == second
    assert len(set(first)) == 3


def test_new_weights_follow_the_seed_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    texts = world.corpus(world.build(0, SMALL))
    assert 5e5 < save_new(tmp_path / "a", texts, 1) < 6e5
    torch.rand(3)
    save_new(tmp_path / "b", texts, 1)
    save_new(tmp_path / "c", texts, 2)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    torch.manual_seed(7)
    assert torch.equal(torch.random.get_rng_state(), before)


def masses(chosen: float, rejected: float, others: float) -> Masses:
    return Masses(chosen, rejected, others, 1 - chosen - rejected - others, math.log(chosen), math.log(rejected))


ON_OTHER_TEXT = "The rejected answer fell; 95% of the probability is now on other text, 3% on the chosen answer."
ON_CHOSEN = "60% of the probability is now on the chosen answer, 30% on other text (10% at the start)."
ON_OTHER_ANSWERS = "did not fall; 50% of the probability is now on the world's other answers, 10% on the chosen answer."


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (masses(0.03, 0.001, 0.02), ON_OTHER_TEXT),
        (masses(0.6, 0.001, 0.1), ON_CHOSEN),
        (masses(0.9, 0.001, 0.05), "The rejected answer fell; 90% of the probability is now on the chosen answer."),
        (masses(0.1, 0.3, 0.5), ON_OTHER_ANSWERS),
        (
            masses(0.001, 0.001, 0.001),
            "over 99% of the probability is now on other text, under 1% on the chosen answer.",
        ),
    ],
)
def test_sentences_follow_the_numbers(now, said):
    assert said in sentence(masses(0.001, 0.2, 0.699), now)


def test_another_order_is_admitted():
    usual = {"DPO": masses(0.1, 0.01, 0.1), "Flex-DPO": masses(0.2, 0.01, 0.1), "RPO": masses(0.5, 0.01, 0.1)}
    assert as_shown(usual)
    assert order(usual).startswith(SHOWN)
    swapped = {**usual, "DPO": usual["RPO"]}
    assert not as_shown(swapped)
    assert order(swapped).startswith("This run differs")


def test_accuracy_is_called_blind_only_where_it_is():
    assert unseen({"DPO": 1.0, "RPO": 0.99}).endswith("DPO 1.00, RPO 0.99; it sees none of this.")
    assert unseen({"DPO": 1.0, "RPO": 0.8}).endswith("DPO 1.00, RPO 0.80.")


def test_the_recipes_differ_in_the_objective_alone():
    recipes = [load_recipe(RECIPES / f"{name}.yaml").dump() for name in METHODS.values()]
    for recipe in recipes:
        for key in ("name", "output", "objective"):
            recipe.pop(key)
    assert recipes[0] == recipes[1] == recipes[2]


def test_text_that_nobody_wrote_is_found_where_the_masses_say_that_it_is(finished):
    """The verdict of a run knows its samples and its reference alone; masses are sums over all answers of the world."""
    out, masses, _ = finished
    found = {t: json.loads((out / run / "verdict.json").read_text())["findings"]["astray"] for t, run in RUNS.items()}
    assert masses["DPO"].elsewhere > 0.9
    assert found["DPO"]["word"] == "yes"
    shares = {title: finding["share"]["value"] for title, finding in found.items()}
    assert shares["DPO"] > 0.5 > shares["RPO"]
    said = "of its own answers are rarer than nearly all of the pairs' and of its earlier ones (limit 50%)"
    assert said in found["DPO"]["text"]
