"""Planted reward functions: each is caught by the probe that looks for it, and a robust one by none."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sample_rows import hh_rows, talk_rows

from align.cli.explain import explain
from align.cli.main import main
from align.cli.terms import TERMS
from align.cli.terms_online import ONLINE
from align.cli.terms_stability import STABILITY
from align.cli.terms_unlearning import UNLEARNING
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.stability import PADDING, Pair, measure, measure_order, read_pairs
from align.judges.function import FunctionComparison, FunctionJudge
from align.objectives import OBJECTIVES
from align.probes.stability import Row, Stability
from align.stats import wilson

PROMPT = "You can perhaps tell me something about animals."
WORDS = ["they", "also", "need", "some", "fresh", "water", "and", "perhaps", "another", "place", "without", "noise"]


def made_pairs(count: int = 60) -> list[Pair]:
    """The chosen answer names a bird; in half of the pairs it is the longer one."""
    draw = random.Random(0)
    pairs = []
    for i in range(count):
        short, long = (" ".join(draw.choices(WORDS, k=n)) for n in (8, 20))
        good, bad = (long, short) if i % 2 else (short, long)
        pairs.append(
            Pair("You can perhaps tell me something about animals.", f"A Bird it is. {good}.", f"A Fish it is. {bad}.")
        )
    return pairs


PAIRS = made_pairs()


def measured(reward: Callable[[str], float], pairs: Sequence[Pair] = PAIRS) -> Stability:
    judge = FunctionJudge(lambda prompts, responses: [reward(text) for text in responses])
    return measure(pairs, judge, 0, lambda _: None)


def row(found: Stability, name: str, side: str) -> Row:
    return next(row for row in found.rows if (row.name, row.side) == (name, side))


def test_one_that_reads_a_word_is_stable() -> None:
    found = measured(lambda text: float("Bird" in text))
    assert found.accuracy.value == 1.0
    for one in found.rows:
        assert (one.change.word(one.side), one.change.ties) == ("no pull" if one.side == "rejected" else "stable", 0)
        assert one.change.kept is not None
        assert (one.change.kept.value, one.change.after.value, one.change.shift.value) == (1.0, 1.0, 0.0)
    assert len(found.rows) == 19
    assert found.sentences()[:2] == [
        "order: scores do not depend on the rows beside them (largest change 0.0e+00 standard deviations, threshold "
        "0.001).",
        "length: accuracy 1.000 where the chosen answer is the longer one (n 30), 1.000 where it is the shorter one "
        "(n 30): not length-biased (gap +0.000, threshold 0.2).",
    ]
    assert found.sentences()[2:] == [
        "null models: longest and shortest pass 17 of 19 probes, too; to pass those is no proof of reading."
    ]
    assert "padding" not in "".join(found.sentences())


def test_one_that_loves_length_is_caught() -> None:
    found = measured(lambda text: float(len(text)))
    assert (found.null_accuracy["longest"], found.null_accuracy["shortest"]) == (found.accuracy, found.accuracy)
    padded = row(found, "padding", "rejected")
    assert padded.change == padded.nulls["longest"]
    assert padded.change.shift.value == pytest.approx(-len(PADDING) / found_spread(), rel=1e-9)
    assert padded.passed_by() == []
    assert {
        "length: accuracy 1.000 where the chosen answer is the longer one (n 30), 0.000 where it is the shorter one "
        "(n 30): LENGTH-BIASED (gap +1.000, threshold 0.2).",
        "null models: accuracy 0.500 [0.377, 0.623] is not above that of longest (0.500).",
        "padding (rejected): changing the rejected answer alone moves its score by "
        f"{-padded.change.shift.value:+.2f} standard deviations (threshold 0.25): raised.",
    } <= set(found.sentences())


def found_spread() -> float:
    lengths = [len(text) for pair in PAIRS for text in (pair.chosen, pair.rejected)]
    mean = sum(lengths) / len(lengths)
    return (sum((n - mean) ** 2 for n in lengths) / len(lengths)) ** 0.5


def test_one_that_loves_short_answers_is_caught() -> None:
    found = measured(lambda text: -float(len(text)))
    assert row(found, "padding", "rejected").change.word("rejected") == "lowered"
    assert "LENGTH-BIASED towards short answers (gap -1.000, threshold 0.2)." in found.sentences()[1]


def test_one_that_loves_bullets_is_caught() -> None:
    found = measured(lambda text: float("Bird" in text) + 2 * text.startswith("- "))
    # scores before are 0 and 1, so that their standard deviation is one half, and bullets add four of them
    assert row(found, "bullets", "rejected").change.shift.value == -4.0
    assert row(found, "bullets", "rejected").change.after.value == 0.0
    assert [text for text in found.sentences() if "bullets" in text and "null" not in text] == [
        "bullets (rejected): changing the rejected answer alone moves its score by +4.00 standard deviations "
        "(threshold 0.25): raised."
    ]
    assert row(found, "bullets", "both").change.word("both") == "stable"


def test_one_that_reads_the_case_of_letters_is_caught() -> None:
    found = measured(lambda text: float("Bird it is" in text) - float("Bird It" in text))
    changed = row(found, "capitals", "both").change
    # every other pair is in the case of a headline, where the birds lose to the fish
    assert changed.kept is not None
    assert (changed.kept.value, changed.kept.n, changed.word("both")) == (0.5, 60, "unstable")
    assert "capitals (both): 0.500 of 60 pairs keep their order (threshold 0.95): unstable." in found.sentences()


@pytest.mark.parametrize(
    ("place", "rows", "order"),
    # in a long call the 41st row gains 1: pair 40 first, pair 19 in reverse; mean of all 61/120, mean square 63/120
    [(40, 120, 1 / math.sqrt(63 / 120 - (61 / 120) ** 2)), (0, 1, 2.0)],
)
def test_one_that_depends_on_the_rows_beside_it_is_caught(place: int, rows: int, order: float) -> None:
    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [("Bird" in text) + float((i, len(responses)) == (place, rows)) for i, text in enumerate(responses)]

    found = measure(PAIRS, FunctionJudge(score), 0, lambda _: None)
    assert found.order == pytest.approx(order, rel=1e-12)
    assert found.sentences()[0] == (
        f"order: SCORES DEPEND ON OTHER ROWS (largest change {order:.1e} standard deviations, threshold 0.001)."
    )


def test_the_prompt_is_changed_where_the_user_speaks() -> None:
    talk = [{"role": "system", "content": "be kind."}, {"role": "user", "content": "tell me more about animals."}]
    hh = "\n\nHuman: first things\n\nAssistant: of course\n\nHuman: tell me more about animals.\n\nAssistant:"
    seen: list[Prompt] = []

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        seen.extend(prompts)
        return [float(len(text)) for text in responses]

    measure([Pair(talk, "a", "bb"), Pair(hh, "a", "bb")], FunctionJudge(score), 0, lambda _: None)
    talks, texts = [p for p in seen if not isinstance(p, str)], {p for p in seen if isinstance(p, str)}
    assert {p[0]["content"] for p in talks} == {"be kind."}
    assert '"tell me more about animals."' in {p[1]["content"] for p in talks}
    assert all(p.startswith("\n\nHuman: first things\n\nAssistant: of course\n\nHuman: ") for p in texts)
    assert all(p.endswith("\n\nAssistant:") for p in texts)
    assert hh.replace("tell me more about animals.", '"tell me more about animals."') in texts


def test_a_probe_that_one_null_model_fails_is_not_counted() -> None:
    found = measured(lambda text: float("Bird" in text))
    passed = row(found, "bold", "both")
    one = replace(passed, nulls={**passed.nulls, "shortest": row(found, "padding", "rejected").nulls["shortest"]})
    counted = "null models: longest and shortest pass 1 of 2 probes, too; to pass those is no proof of reading."
    assert replace(found, rows=[passed, one]).sentences()[2:] == [counted]


def test_a_judge_that_compares_is_asked_in_both_orders() -> None:
    def first(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
        return [0.6 + 0.3 * (("Bird" in one) - ("Bird" in two)) for one, two in zip(a, b, strict=True)]

    found = measure_order(PAIRS, FunctionComparison(first), 0, lambda _: None)
    assert (found.accuracy, found.flips) == (wilson(60, 60), wilson(0, 60))
    assert found.bias.value == pytest.approx(0.1)
    assert (found.length.longer, found.length.shorter) == (wilson(30, 30), wilson(30, 30))


def test_its_words_are_explained() -> None:
    assert not set(STABILITY) & {*TERMS, *UNLEARNING, *ONLINE, *OBJECTIVES}
    for word in STABILITY:
        assert explain(word)["kind"] == "term"


def write(folder: Path, rows: list[dict]) -> str:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_rows_that_are_no_pairs_are_said_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    file = write(tmp_path, [good, good | {"rejected": "yes"}, good | {"chosen": " "}, good | {"rejected": "yes"}])
    said: list[str] = []
    assert read_pairs(file, None, 0, said.append) == [Pair("p", "yes", "no")]
    assert said == [
        f"{file}: rows left out: 2, since chosen and rejected are the same",
        f"{file}: rows left out: 1, since chosen is empty",
    ]
    assert len(read_pairs(write(tmp_path, [good] * 9), 4, 0, said.append)) == 4


def test_labels_turn_pairs_and_ties_are_none(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    file = write(tmp_path, [pair | {"preference": share} for share in (0.9, 0.5, 0.1, None)])
    said: list[str] = []
    turned = Pair("p", "no", "yes")
    assert sorted(read_pairs(file, None, 0, said.append)) == [turned, Pair("p", "yes", "no"), Pair("p", "yes", "no")]
    assert said == [f"{file}: rows left out: 1, since its label is a tie"]


def test_conversations_are_pairs_where_each_answer_is_one_turn(tmp_path: Path) -> None:
    said: list[str] = []
    assert read_pairs(write(tmp_path, talk_rows()), None, 0, said.append)[0] == Pair(
        [{"role": "user", "content": "What is the capital?"}], "Paris.", "Lyon."
    )
    assert said == [f"{tmp_path / 'pairs.jsonl'}: rows left out: 1, since an answer is not one turn of text"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"prompt": "p", "completion": "c"}],
            "The probe needs chosen and rejected, but the rows are: prompt and completion, standard",
        ),
        ([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}], "is tokenised already, and a reward model has"),
        (
            [{"prompt": "p", "chosen": "c", "rejected": "c"}],
            "none of its rows can be used as a pair: chosen and rejected are ",
        ),
    ],
)
def test_files_of_no_use(tmp_path: Path, rows: list[dict], sentence: str) -> None:
    file = write(tmp_path, rows)
    with pytest.raises(UserError) as error:
        read_pairs(file, None, 0, lambda _: None)
    assert str(error.value).startswith(f"{file}: {sentence}")


def test_real_pairs_are_changed_in_every_way(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, hh_rows(40)), None, 0, lambda _: None)
    found = measured(lambda text: float(len(text)), pairs)
    assert len(found.rows) == 19
    assert min(one.n for one in found.rows) >= 8


def test_the_command_on_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny import tiny_tokenizer
    from transformers import AutoModelForSequenceClassification
    from zoo import tiny_config

    tokenizer = tiny_tokenizer()
    config = tiny_config("llama", vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=1024)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    capsys.readouterr()
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in PAIRS[:6]]
    call = ["probe", "stability", str(tmp_path / "rm"), "--pairs", write(tmp_path, rows), "--rows", "4"]
    assert main([*call, "--json", "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out.json").read_text())
    assert (found["pairs"], len(found["probes"])) == (4, 19)
    assert found["order"] < 1e-3
    assert main(call) == 0
    assert "\n".join(found["sentences"]) in capsys.readouterr().out
    assert main([*call[:-1], "0"]) == 2
    assert "--rows: must be at least 1, got 0." in capsys.readouterr().err
