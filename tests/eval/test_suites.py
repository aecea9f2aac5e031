"""Suites on tiny models: the values of the verbs, items for comparisons, and no row worked on twice after a kill."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges.test_models import save_reward
from tiny import TEXTS, tiny_tokenizer
from transformers import AutoModelForCausalLM
from zoo import tiny_model

from align.data.rows import world
from align.errors import UserError
from align.eval import muse, muse_metrics, tofu
from align.eval.kept import Kept
from align.eval.result import Result
from align.eval.suites import measuring
from align.eval.suites.preference import _enter, _gaps
from align.eval.suites.reading import load_suite
from align.eval.suites.run import lines, run_suites
from align.eval.tofu_data import load_sets
from align.eval.tofu_metrics import metrics
from align.models.subject import Subject
from align.probes.consistency import ContrastPair, consistency
from align.recipe.sampling import Judge
from align.runs.directory import RunDirectory
from align.runs.processes import World
from align.runs.record import load_run
from align.stats import wilson

WORLD = World(0, 1, torch.device("cpu"))
PAIRS = [
    {
        "prompt": f"Question {i}: what is it?",
        "chosen": " It is the sea" + " and more" * (i % 3),
        "rejected": " It was a stone" + " or less" * (i % 2),
    }
    for i in range(9)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starting model, and another that is the model of runs."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(chat=False)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for seed, name in enumerate(("start", "trained")):
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512, seed=seed, **ends)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def muse_texts(folder: Path) -> None:
    texts = [text for line in TEXTS for text in line.split(". ")]
    files = {f"knowmem/{name}": [{"question": f"What of {name}?", "answer": "a fox"}] * 2 for name in muse._KNOWMEM}
    files |= {"verbmem/forget": [{"prompt": text[:20], "gt": text[20:]} for text in TEXTS[:3]]}
    files |= {"privleak/forget": [{"text": text} for text in texts[:4]]}
    files |= {"privleak/holdout": [{"text": text} for text in texts[4:7]]}
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture
def place(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows of all kinds, and a run that held nine pairs out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(measuring, "Kept", partial(Kept, size=8))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "questions").mkdir()
    sets = {"forget01": ("forget", 40), "retain": ("retain", 3), "real_authors": ("background", 2)}
    for name, (kind, count) in {**sets, "world_facts": ("countries", 2)}.items():
        rows = "\n".join(json.dumps(row) for row in world.rows(kind)[:count])
        (tmp_path / "questions" / f"{name}_perturbed.json").write_text(rows)
    (tmp_path / "tofu.yaml").write_text("kind: tofu\nsplit: forget01\nsource: questions\n")
    muse_texts(tmp_path / "texts")
    (tmp_path / "muse.yaml").write_text("kind: muse\nsource: texts\n")
    recipe = {
        "name": "run",
        "model": {"id": str(models / "start")},
        "data": {"train": {"path": "held.jsonl"}, "held_out": {"path": "held.jsonl"}},
        "objective": {"name": "dpo"},
    }
    run = RunDirectory(tmp_path / "run")
    run.write_lock({"recipe": recipe, "base": str(tmp_path)})
    shutil.copytree(models / "trained", run.path / "model")
    return tmp_path


def measured(*names: str, model: str = "run", **more: Any) -> tuple[list[dict[str, Any]], list[str]]:
    said: list[str] = []
    suites = [load_suite(name) for name in names]
    return run_suites(model, suites, world=WORLD, say=said.append, **more), said


class Counter:
    """Counts the rows that models work on, and ends the work at one of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_at: int | None = None) -> None:
        self.rows: list[str] = []
        self.calls, self.ends_at = 0, ends_at
        for name in ("_score", "_generate"):
            monkeypatch.setattr(Subject, name, self.counted(name, getattr(Subject, name)))

    def counted(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(subject: Subject, prompts: Any, *rest: Any) -> Any:
            self.calls += 1
            if self.calls == self.ends_at:
                raise KeyboardInterrupt
            found = work(subject, prompts, *rest)
            about = rest[0] if name == "_score" else [rest[0]] * len(prompts)
            reads = [read.name for read in rest[1]] if name == "_score" else []
            self.rows += [json.dumps([name, prompt, of, reads]) for prompt, of in zip(prompts, about, strict=True)]
            return found

        return call


def test_a_suite_that_was_killed_goes_on_without_repeating_a_row(
    place: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        first = Counter(patched, ends_at=9)
        with pytest.raises(KeyboardInterrupt):
            measured("tofu.yaml")
    assert not (place / "run/eval/tofu.json").exists()
    with monkeypatch.context() as patched:
        second = Counter(patched)
        (found,), said = measured("tofu.yaml")
    assert any("scored before: 5 of 5 parts" in line for line in said)
    whole = first.rows + second.rows
    assert len(whole) == len(set(whole)) == 40 + 3 + 2 + 2 + 47 + 40
    assert len(first.rows) > 40
    assert sorted(path.name for path in (place / "run/eval").iterdir()) == ["tofu.json"]

    sets = load_sets("forget01", str(place / "questions"))
    expected = metrics(tofu.evaluate(Subject.load(str(models / "trained"), echo=lambda _: None), sets))
    assert set(found["figures"]) == set(expected.values)
    for name, value in expected.values.items():
        assert found["figures"][name]["value"] == pytest.approx(value, rel=1e-5, abs=1e-7)
    span = expected.intervals["forget_Q_A_Prob"]
    assert found["figures"]["forget_Q_A_Prob"]["low"] == pytest.approx(span.low, rel=1e-4, abs=0)
    assert found["figures"]["forget_Q_A_Prob"]["n"] == span.n == 40
    assert found["main"] == ["model_utility", "forget_Q_A_Prob", "forget_Q_A_ROUGE"]
    items = found["items"]["forget_Q_A_Prob"]
    assert sum(items.values()) / 40 == pytest.approx(found["figures"]["forget_Q_A_Prob"]["value"], rel=1e-12, abs=0)
    assert found["missing"]["forget_quality"]
    assert {"torch", "transformers", "align-llm"} - {"align-llm"} <= set(found["versions"])
    assert found["seconds"] > 0
    assert "limit" not in found

    with monkeypatch.context() as patched:
        third = Counter(patched)
        (again,), said = measured("tofu.yaml")
    assert third.rows == []
    assert said == [
        f"tofu: measured before with these settings and weights ({found['ended']}); "
        "remove run/eval/tofu.json to measure again"
    ]
    assert again == found
    assert load_run(place / "run").evaluations["tofu"] == found


def test_the_retain_models_log_that_a_run_kept_is_compared_with(place: Path) -> None:
    sets = load_sets("forget01", str(place / "questions"))
    log = tofu.evaluate(Subject.load("run", echo=lambda _: None), sets)
    RunDirectory(place / "run").write_json("eval/retain.json", log.to_json())
    lock = {**RunDirectory(place / "run").lock}
    lock["recipe"]["evaluate"] = {"split": "forget01", "source": {"path": "questions"}, "retain": "gone"}
    lock["recipe"]["data"] = {"forget": {"world": "forget"}}
    lock["recipe"]["objective"] = {"name": "npo"}
    RunDirectory(place / "run").write_lock(lock)
    (found,), said = measured("tofu.yaml")
    assert found["figures"]["forget_quality"]["value"] == pytest.approx(1.0, abs=1e-9)
    assert any("compared with the retain model's log that the run kept" in line for line in said)


def test_muse_gives_what_the_verb_gives(place: Path) -> None:
    (found,), _ = measured("muse.yaml")
    log = muse.evaluate(Subject.load("run", echo=lambda _: None), muse.load_sets(str(place / "texts")))
    expected = muse_metrics.metrics(log).values
    assert {name: figure["value"] for name, figure in found["figures"].items()} == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )


@torch.no_grad()
def log_prob(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """log p(answer, end | prompt) by the model's own logits."""
    ids = tokenizer(prompt)["input_ids"]
    answered = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([ids + answered])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(answered))


def test_held_out_pairs_by_hand(place: Path, models: Path) -> None:
    tokenizer = tiny_tokenizer(chat=False)
    gaps = {}
    for name in ("start", "trained"):
        model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval()
        gaps[name] = [
            log_prob(model, tokenizer, row["prompt"], row["chosen"])
            - log_prob(model, tokenizer, row["prompt"], row["rejected"])
            for row in PAIRS
        ]
    margins = [mine - theirs for mine, theirs in zip(gaps["trained"], gaps["start"], strict=True)]
    (found,), _ = measured("preference-heldout")
    assert list(found["items"]["margin"].values()) == pytest.approx(margins, abs=1e-4)
    assert found["figures"]["margin"]["value"] == pytest.approx(sum(margins) / 9, abs=1e-4)
    right = sum(margin > 0 for margin in margins)
    assert found["figures"]["accuracy"] == wilson(right, 9).to_json()
    alone = sum(gap > 0 for gap in gaps["trained"])
    assert found["figures"]["accuracy without reference"] == wilson(alone, 9).to_json()
    assert "a set of 9 pairs is too small to say anything about accuracy" in found["notes"]

    (place / "own.yaml").write_text("kind: preference\npairs: held.jsonl\n")
    (bare,), _ = measured("own.yaml", model=str(models / "trained"), out=place / "results")
    assert bare["figures"]["accuracy without reference"] == found["figures"]["accuracy without reference"]
    assert bare["missing"]["accuracy"] == "needs a reference: a run's starting model, or one that the suite file names"


def test_only_targets_count_where_not_every_token_is_one() -> None:
    class Told:
        def score(self, prompts: Any, branches: Any, *, where: str) -> Any:
            logps = {"chosen": np.array([-1.0, -2.0, -4.0]), "rejected": np.array([-0.5, -0.25])}
            return [{side: {"logp": logps[side][: len(ids)]} for side, ids in row.items()} for row in branches]

    told: Any = Told()
    ids = {"prompt_ids": [1], "chosen_ids": [2, 3, 4], "rejected_ids": [5, 6]}
    masked = {**ids, "chosen_mask": [1, 0, 1], "rejected_mask": [0, 1]}
    assert _gaps(told, [ids, masked]).tolist() == [-7.0 + 0.75, -5.0 + 0.25]


def test_the_model_itself_as_its_reference_is_no_better_than_chance(place: Path, models: Path) -> None:
    (place / "own.yaml").write_text(f"kind: preference\nreference: {models / 'trained'}\n")
    (found,), _ = measured("own.yaml")
    assert found["figures"]["accuracy"] == wilson(4.5, 9).to_json()
    assert any(note.startswith("null models: accuracy 0.500") for note in found["notes"])


def test_consistency_of_a_reward_model(place: Path) -> None:
    save_reward(place / "reward")
    rows = [
        {"instruction_j": f"say x{n}", "response_j": f"x{n} it is", "instruction_k": f"say y{n}", "response_k": f"y{n}"}
        for n in range(6)
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "reads.yaml").write_text("kind: consistency\npairs: pairs.jsonl\n")
    (found,), _ = measured("reads.yaml", model="reward", out=place / "results")
    from align.eval.contrast import Form
    from align.judges.loading import load_judge
    from align.probes.consistency import scores_of

    judge: Any = load_judge(Judge(reward="reward"), say=lambda _: None)
    form = Form.of(judge.tokenizer, None)
    sides = [[form.put(row[f"instruction_{x}"], row[f"response_{x}"]) for x in "jk"] for row in rows]
    pairs = [ContrastPair(*first, *second) for first, second in sides]
    expected = consistency(pairs, scores_of(pairs, judge.score))
    for figure in expected.figures:
        assert found["figures"][figure.name] == figure.share.greater.to_json()
    mean = sum(found["items"]["C_res, both"].values()) / 6
    assert mean == pytest.approx(found["figures"]["C_res, both"]["value"], abs=1e-12)
    assert found["verdict"]


def test_alpaca_with_a_judge_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "judging_suite", raising=False)
    (place / "judging_suite.py").write_text(
        "def longest(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    rows = [{"instruction": f"Say {i}.", "output": "so " * (3 * i), "generator": "ref"} for i in range(7)]
    (place / "reference.json").write_text(json.dumps(rows))
    (place / "mine.yaml").write_text("kind: alpaca\nreference: reference.json\nmax_new_tokens: 6\n")
    judge = Judge(function="judging_suite:longest")
    with pytest.raises(UserError) as caught:
        measured("preference-heldout", "mine.yaml")
    assert not (place / "run/eval").exists()  # said before the first suite is measured
    assert str(caught.value) == (
        "suite mine: nobody judges: give --judge, such as endpoint:URL#MODEL, or name one in a copy of the suite file."
    )
    (found,), _ = measured("mine.yaml", judge=judge, allow_code=True)
    answers = json.loads((place / "run/eval/mine/model_outputs.json").read_text())
    wins = [
        100 * ((len(a["output"]) > len(row["output"])) + (len(a["output"]) == len(row["output"])) / 2)
        for a, row in zip(answers, rows, strict=True)
    ]
    assert list(found["items"]["win_rate"].values()) == wins
    assert found["figures"]["win_rate"]["value"] == pytest.approx(sum(wins) / 7, abs=1e-9)
    assert found["name"] == "AlpacaEval's instructions, judged by judging_suite:longest: not AlpacaEval 2"
    assert found["settings"]["judge"]["function"] == "judging_suite:longest"


def test_trials_are_marked_and_take_no_results_place(place: Path, models: Path) -> None:
    (trial,), _ = measured("preference-heldout", limit=4)
    assert (trial["limit"], trial["figures"]["accuracy"]["n"]) == (4, 4)
    assert lines(trial)[0] == "limited to 4 rows: no result"
    (whole,), _ = measured("preference-heldout", limit=9)
    assert "limit" not in whole
    with pytest.raises(UserError) as caught:
        measured("preference-heldout", limit=4)
    assert str(caught.value) == (
        "run/eval/preference-heldout.json holds a result on all rows, and one on 4 would take its place: "
        "leave out --limit, or name another folder with --out."
    )


def test_other_weights_are_measured_anew(place: Path, models: Path) -> None:
    (first,), _ = measured("preference-heldout")
    shutil.copytree(models / "start", place / "run/model", dirs_exist_ok=True)
    (second,), _ = measured("preference-heldout")
    assert second["weights"] != first["weights"]
    assert second["figures"]["margin"]["value"] == 0.0


def test_files_whose_content_has_changed_are_measured_anew(place: Path) -> None:
    (first, _), _ = measured("preference-heldout", "tofu.yaml")
    (place / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:5]))
    file = place / "questions/retain_perturbed.json"
    file.write_text(file.read_text().replace("?", "!", 1))
    (second, _), said = measured("preference-heldout", "tofu.yaml")
    assert not any("measured before" in line for line in said)
    assert [found["figures"]["margin"]["n"] for found in (first, second)] == [9, 5]
    _, said = measured("preference-heldout", "tofu.yaml")
    assert sum("measured before" in line for line in said) == 2


def test_a_retain_model_that_was_trained_again_is_another(place: Path, models: Path) -> None:
    shutil.copytree(models / "trained", place / "kept")
    (place / "beside.yaml").write_text("kind: preference\nreference: kept\n")
    (first,), _ = measured("beside.yaml")
    assert first["figures"]["margin"]["value"] == 0.0
    shutil.copytree(models / "start", place / "kept", dirs_exist_ok=True)
    (second,), _ = measured("beside.yaml")
    assert second["figures"]["margin"]["value"] != 0.0


def test_a_reference_with_another_tokenizer_is_refused(place: Path, models: Path) -> None:
    shutil.copytree(models / "start", place / "other")
    file = place / "other/tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(told))
    (place / "beside.yaml").write_text("kind: preference\nreference: other\n")
    with pytest.raises(UserError) as caught:
        measured("beside.yaml")
    assert str(caught.value) == (
        f"suite beside: {place / 'other'} has another tokenizer: token {vocabulary['a']} is 'e' to the model and 'a' "
        "to it, so it would score other texts. Name a reference with the same one."
    )


def test_pairs_without_a_number_are_in_no_figure() -> None:
    result = Result()
    _enter(result, "accuracy", np.array([1.0, math.nan, -2.0, 0.0, -math.inf]), list("abcde"))
    assert result.intervals == {"accuracy": wilson(1.5, 3)}
    assert result.items == {"accuracy": {"a": 1.0, "c": 0.0, "d": 0.5}}
    assert result.notes == ["accuracy is over 3 of 5 pairs; the others hold no number"]
    _enter(result, "alone", np.array([math.nan]), ["a"])
    assert result.missing == {"alone": "no pair holds a number"}
    assert "alone" not in result.values


def test_what_cannot_be_measured(place: Path, models: Path) -> None:
    trained = str(models / "trained")
    no_rows = "is no run, so no rows are held out: copy the suite file and name rows in it."
    for sentence, name, out in (
        (
            f"{trained} is no run, which would keep its results in its folder: name one with --out FOLDER.",
            "muse.yaml",
            None,
        ),
        (f"suite preference-heldout: {trained} {no_rows}", "preference-heldout", place / "out"),
    ):
        with pytest.raises(UserError) as caught:
            measured(name, model=trained, out=out)
        assert str(caught.value) == sentence
