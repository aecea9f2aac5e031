"""Fresh samples in the step that trains on them: HyPO and SuperHF, their files, their invariances and their guard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from training import SAMPLING, Longest, arguments, history, pairs, prompts, trainer, weights, word_tokenizer
from transformers import TrainerCallback
from zoo import tiny_model

from align.data.tokens.samples import Sample
from align.errors import Stopped, UserError
from align.objectives import DPO, NLL, HyPO, SampledKL, SimPO, SuperHF, WeightedSum
from align.recipe.sampling import Sampling, Select, Server
from align.sampling.files import read_tables
from align.trainers.collapse import Collapse
from align.trainers.hypo import HyPOTrainer
from align.trainers.superhf import SuperHFTrainer, _pairs


def drawn(folder: Path) -> list[dict]:
    return read_tables(sorted((folder / "samples").glob("*.parquet")))


def addresses(rows: list[dict]) -> dict[tuple[int, int, int], tuple]:
    return {(r["step"], r["row"], r["index"]): (tuple(r["ids"]), r["finish"], r["selected"]) for r in rows}


def test_hypo_without_its_kl_is_dpo_to_the_bit(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "dpo", DPO())
    plain.train()
    options = {"train_dataset": pairs(20), "processing_class": word_tokenizer(), "sampling": SAMPLING}
    hybrid = HyPOTrainer(tiny_model(), HyPO(kl_weight=0.0), arguments(tmp_path / "hypo"), **options)
    hybrid.train()
    assert torch.equal(weights(plain), weights(hybrid))
    assert history(plain, "loss", "grad_norm") == history(hybrid, "loss", "grad_norm")
    assert not (tmp_path / "hypo/samples").exists()


def test_every_sample_is_kept_and_its_log_ratio_is_the_metric(tmp_path: Path) -> None:
    made = trainer(tmp_path, HyPO(kl_weight=0.5), learning_rate=0.3)
    start = tiny_model()
    made.train()
    rows = drawn(tmp_path)
    assert len(rows) == len(addresses(rows)) == (8 + 8 + 4) * SAMPLING.samples
    assert {r["selected"] for r in rows} == {"kept"}
    assert {r["score"] for r in rows} == {None}
    assert all((r["finish"] == "length") == (len(r["ids"]) == 4 and r["ids"][-1] != 1) for r in rows)
    logged = history(made, "kl/sampled", "samples/tokens", "samples/truncated")
    # at the first step the policy is the reference, sample by sample
    assert logged[0][0] == pytest.approx(0, abs=1e-5)
    assert logged[2][0] > 1e-3
    for step in (1, 2, 3):
        mine = [r for r in rows if r["step"] == step]
        assert logged[step - 1][1] == pytest.approx(sum(len(r["ids"]) for r in mine) / len(mine))
        assert logged[step - 1][2] == pytest.approx(sum(r["finish"] == "length" for r in mine) / len(mine))
    # the policy of the third step is not at hand any more, but that of the second step's start can be made again
    again = trainer(tmp_path / "again", HyPO(kl_weight=0.5), learning_rate=0.3, max_steps=1)
    again.train()
    second = [r for r in rows if r["step"] == 2]
    gaps = [_logp(again.model, r) - _logp(start, r) for r in second]
    assert logged[1][0] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)


@torch.no_grad()
def _logp(model: Any, row: dict) -> float:
    ids = torch.tensor([row["prompt_ids"] + row["ids"]])
    logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return float(logp[-len(row["ids"]) :].sum())


@pytest.mark.parametrize("objective", [HyPO(kl_weight=0.5), SuperHF()], ids=["hypo", "superhf"])
def test_batches_and_accumulation_draw_the_same(tmp_path: Path, objective: Any) -> None:
    ways = {"whole": {}, "2x4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}}
    found = []
    for way, changes in ways.items():
        trainer(tmp_path / way, objective, **changes).train()
        found.append(addresses(drawn(tmp_path / way)))
    assert found[0] == found[1]
    seeded = trainer(tmp_path / "seed", objective, seed=1)
    seeded.train()
    assert addresses(drawn(tmp_path / "seed")) != found[0]


class _Dies(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("objective", [HyPO(kl_weight=0.5), SuperHF()], ids=["hypo", "superhf"])
def test_a_resumed_run_draws_what_the_uninterrupted_one_did(tmp_path: Path, objective: Any) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", objective, **options)
    whole.train()
    cut = trainer(tmp_path / "cut", objective, callbacks=[_Dies()], **options)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    # the third step was drawn and written, but its checkpoint was not
    assert max(r["step"] for r in drawn(tmp_path / "cut")) == 3
    resumed = trainer(tmp_path / "cut", objective, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))
    assert torch.equal(weights(whole), weights(resumed))
    assert len(drawn(tmp_path / "cut")) == len(drawn(tmp_path / "whole"))
    assert addresses(drawn(tmp_path / "cut")) == addresses(drawn(tmp_path / "whole"))


def test_survivors_are_the_best_by_score_and_the_loss_is_theirs(tmp_path: Path) -> None:
    made = trainer(tmp_path, SuperHF(kl_weight=0.35), max_steps=1)
    made.train()
    rows = drawn(tmp_path)
    judge = Longest()
    by_prompt: dict[int, list[dict]] = {}
    for row in rows:
        assert row["score"] == judge.score([None], [row["text"]])[0]
        by_prompt.setdefault(row["row"], []).append(row)
    kept = []
    for group in by_prompt.values():
        real = [r for r in group if r["text"].strip()]
        best = max(real, key=lambda r: (r["score"], -r["index"]))
        assert [r["index"] for r in group if r["selected"]] == [best["index"]]
        kept.append(best)
    start = tiny_model()
    total = -sum(_logp(start, r) for r in kept) / sum(len(r["ids"]) for r in kept)
    (logged,) = history(made, "loss", "kl_forward/survivor", "reward/samples", "reward/kept")
    assert logged[0] == pytest.approx(total, abs=1e-5)  # the KL is 0 at the start
    assert logged[1] == pytest.approx(0, abs=1e-6)
    assert logged[2] == pytest.approx(sum(r["score"] for r in rows) / len(rows), abs=1e-4)
    assert logged[3] == pytest.approx(sum(r["score"] for r in kept) / len(kept), abs=1e-4)


def test_a_length_penalty_and_keep_change_who_survives(tmp_path: Path) -> None:
    def survivors(name: str, **select: Any) -> dict[int, list[int]]:
        rows = {"train_dataset": prompts(8), "processing_class": word_tokenizer(), "sampling": SAMPLING}
        made = SuperHFTrainer(
            tiny_model(), SuperHF(), arguments(tmp_path / name, max_steps=1), judge=Longest(),
            select=Select(how="top", **select), **rows,
        )  # fmt: skip
        made.train()
        found: dict[int, list[int]] = {}
        for row in drawn(tmp_path / name):
            if row["selected"]:
                found.setdefault(row["row"], []).append(row["index"])
        return found

    plain = survivors("plain")
    assert survivors("both", keep=2) == {row: [0, 1] for row in plain}
    # so heavy a penalty prefers the shortest text
    assert survivors("short", length_penalty=1000.0) != plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, "sampling.temperature is 0.7, but the KL term needs samples of the policy as it is"),
        ({"top_p": 0.9}, r"sampling.top_p is 0.9"),
        ({"stop": ["w5"]}, r"sampling.stop is \['w5'\]"),
        ({"server": Server(url="http://localhost:1/v1")}, "sampling.server: a server has the weights of a checkpoint"),
    ],
)
def test_hypo_refuses_samples_of_anything_else(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        HyPOTrainer(
            tiny_model(), HyPO(), arguments(tmp_path), train_dataset=pairs(4), processing_class=word_tokenizer(),
            sampling=Sampling(**{"samples": 2, **changes}),
        )  # fmt: skip


def test_a_budget_leaves_room_for_the_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The longest row has 26 tokens and its samples may have 8 more"):
        trainer(tmp_path, HyPO(), max_tokens_per_microbatch=33)
    seen: list[int] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    made = trainer(tmp_path, HyPO(kl_weight=0.5), max_tokens_per_microbatch=34, callbacks=[Look()])
    plain = made.completed
    widths: list[int] = []

    def completed(window: list[dict]) -> list[dict]:
        out = plain(window)
        widths.extend(micro["input_ids"].shape[1] for micro in out)
        return out

    made.completed = completed
    made.train()
    assert len(seen) == 3
    assert max(widths) <= 34
    assert max(widths) > 26


def test_evaluation_scores_the_pairs_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path, HyPO(kl_weight=0.5), eval_dataset=pairs(5, seed=3))
    plain = trainer(tmp_path, DPO(), eval_dataset=pairs(5, seed=3))
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)


def test_any_loss_on_pairs_takes_the_kl_term(tmp_path: Path) -> None:
    made = trainer(tmp_path, WeightedSum(((NLL(), 1.0), (SampledKL(), 0.1))))
    made.train()
    assert len(history(made, "loss", "kl/sampled", "nll/chosen")) == 3


def test_the_guard_speaks_when_rewards_rise_and_answers_are_alike() -> None:
    class State:
        log_history: ClassVar[list[dict]] = []
        global_step = 7
        is_world_process_zero = True

    said: list[str] = []
    guard = Collapse(0.3, echo=said.append)
    state = State()

    def log(reward: float, alike: float, who: Collapse = guard) -> None:
        logs = {"reward/samples": reward, "similarity/survivors": alike}
        who.on_log(None, state, None, logs)  # type: ignore[arg-type]
        state.log_history.append(logs)

    log(1.0, 0.9)  # the first reading cannot have risen
    log(2.0, 0.3)  # the limit itself is not passed
    log(0.5, 0.9)  # alike, but without a gain
    assert said == []
    log(2.0, 0.31)
    log(3.0, 0.8)
    assert len(said) == 1
    assert "rose from 1.00 to 2.00" in said[0]
    log(3.0, 0.1)
    log(3.0, 0.5)
    assert len(said) == 2
    with pytest.raises(Stopped, match=r"Stopped at step 7: the reward rose from 1.00 to 2.00"):
        log(2.0, 0.4, Collapse(0.3, stop=True))


def test_likeness_compares_answers_to_different_prompts_alone() -> None:
    seen = [(0, "a", True), (0, "b", True), (1, "c", True)]
    pairs_ = _pairs(seen, 0)
    assert all({"c"} & set(pair) for pair in pairs_)
    assert _pairs(seen[:2], 0) == []


def test_prompts_come_from_rows_of_any_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i} w5", "chosen": "w7", "rejected": "w8"} for i in range(3, 9)]
    made = SuperHFTrainer(
        tiny_model(), SuperHF(), arguments(tmp_path, max_steps=1), train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(), sampling=SAMPLING, judge=Longest(),
    )  # fmt: skip
    made.train()
    found = drawn(tmp_path)
    assert {json.loads(r["prompt"]) for r in found} == {row["prompt"] for row in rows}
    assert all(r["prompt_ids"] == [int(w[1:]) for w in json.loads(r["prompt"]).split()] for r in found)


def test_a_kl_term_beside_a_loss_without_reference_can_be_evaluated(tmp_path: Path) -> None:
    made = trainer(tmp_path, WeightedSum(((SimPO(), 1.0), (SampledKL(), 0.1))), eval_dataset=pairs(5, seed=3))
    plain = trainer(tmp_path, SimPO(), eval_dataset=pairs(5, seed=3))
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)


def test_equal_prompts_without_numbers_get_draws_of_their_own(tmp_path: Path) -> None:
    rows = pairs(1).remove_columns("row")
    made = trainer(tmp_path, HyPO(kl_weight=0.5), Dataset.from_list([rows[0]] * 8), max_steps=1)
    made.train()
    found = drawn(tmp_path)
    assert sorted({r["row"] for r in found}) == list(range(8))
    assert len({tuple(r["ids"]) for r in found}) > SAMPLING.samples


def test_numbers_of_the_callers_own_that_repeat_are_not_taken(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": f"w{i} w5", "row": i // 3} for i in range(3, 9)])
    seen: list[tuple] = []

    def judge(prompts: list, responses: list[str]) -> list[float]:
        seen.extend(zip(prompts, responses, strict=True))
        return [float(len(text)) for text in responses]

    made = SuperHFTrainer(
        tiny_model(), SuperHF(), arguments(tmp_path, max_steps=1), train_dataset=rows,
        processing_class=word_tokenizer(), sampling=SAMPLING, judge=judge,
    )  # fmt: skip
    made.train()
    found = drawn(tmp_path)
    assert {r["row"] for r in found} == set(range(6))
    assert {prompt for prompt, _ in seen} == {f"w{i} w5" for i in range(3, 9)}
    assert all(json.loads(r["prompt"]) == " ".join(f"w{i}" for i in r["prompt_ids"]) for r in found)


def test_an_adapter_with_dropout_would_bias_the_kl(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear")
    with pytest.raises(UserError, match=r"The adapter has a dropout of 0.1"):
        trainer(tmp_path, HyPO(), peft_config=adapter)
    trainer(tmp_path, HyPO(kl_weight=0.0), peft_config=adapter)
    trainer(tmp_path, SuperHF(), peft_config=adapter)


def test_what_is_wrong_is_said_before_the_first_step(tmp_path: Path) -> None:
    options = {"train_dataset": pairs(4), "processing_class": word_tokenizer()}
    with pytest.raises(UserError, match=r"sampling is a dict; it must be align.Sampling"):
        HyPOTrainer(tiny_model(), HyPO(), arguments(tmp_path), sampling={"samples": 2}, **options)
    with pytest.raises(UserError, match="reads fresh samples alone"):
        HyPOTrainer(tiny_model(), SampledKL(), arguments(tmp_path), sampling=SAMPLING, **options)
    with pytest.raises(UserError, match="trains on the branch 'survivor' alone, but the objective reads chosen"):
        SuperHFTrainer(tiny_model(), NLL(), arguments(tmp_path), sampling=SAMPLING, judge=Longest(), **options)
    with pytest.raises(UserError, match="judge is 3; it must be a judge"):
        SuperHFTrainer(tiny_model(), None, arguments(tmp_path), sampling=SAMPLING, judge=3, **options)
    with pytest.raises(UserError, match=r"kept by score, but .* compares"):
        SuperHFTrainer(
            tiny_model(),
            None,
            arguments(tmp_path),
            sampling=SAMPLING,
            judge=lambda prompts, a, b: [0.5] * len(a),
            **options,
        )
    long = Dataset.from_list([dict(pairs(1)[0]) | {"row": 7, "prompt_ids": [5] * 128}])
    with pytest.raises(UserError, match=r"Row 7 has a prompt of 128 tokens, which leaves no room .* reads 128 at most"):
        trainer(tmp_path, HyPO(), long)


def test_a_step_without_a_survivor_trains_on_nothing(tmp_path: Path) -> None:
    made = trainer(tmp_path, SuperHF(), max_steps=1, model=tiny_model("qwen3_moe"))
    before = weights(made).clone()
    made._draw = lambda rows, step: [[Sample(0, (1,), " ", "end")] for _ in rows]
    made.train()
    assert torch.equal(weights(made), before)
    assert {r["selected"] for r in drawn(tmp_path)} == {""}


def test_a_judge_that_cannot_tell_samples_apart_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = SuperHFTrainer(
        tiny_model(), None, arguments(tmp_path, max_steps=1), train_dataset=prompts(8),
        processing_class=word_tokenizer(), sampling=SAMPLING, judge=lambda prompts, responses: [1.0] * len(responses),
    )  # fmt: skip
    made.train()
    assert "gives all 16 samples of step 1 the score 1" in capsys.readouterr().out
