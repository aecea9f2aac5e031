"""Consistency on planted rewards whose figures are known, and on numbers worked by hand."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from align.probes.consistency import ContrastPair, consistency, interaction, margins, scores_of
from align.probes.consistency_verdict import verdict
from align.stats import wilson

WORDS = [f"word{number}" for number in range(40)]


def pairs(count: int = 60, seed: int = 0) -> list[ContrastPair]:
    """Instructions of words, and answers that repeat more words of their own instruction than of the other one."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        shared, own, other = (draw.sample(WORDS, 3) for _ in range(3))
        texts = [" ".join([*shared, *words]) for words in (own, other)]
        answers = [" ".join(text.split()[-3:] + ["so"] * draw.randint(1, 9)) for text in texts]
        made.append(ContrastPair(texts[0], answers[0], texts[1], answers[1]))
    return [pair for pair in made if len(set(pair.response_1)) and pair.response_1 != pair.response_2]


def value(text: str) -> float:
    """A number for a text, the same in every process."""
    return random.Random(text).gauss(0, 1)


def additive(prompts, responses):
    return [3 * value(p) + value(r) for p, r in zip(prompts, responses, strict=True)]


def overlap(prompts, responses):
    """Words of the answer that its instruction has; length counts for nothing."""
    return [len(set(p.split()) & set(r.split())) for p, r in zip(prompts, responses, strict=True)]


def lengthy(prompts, responses):
    return [float(len(r)) for r in responses]


def constant(prompts, responses):
    return [1.0] * len(prompts)


def found(score, items):
    return consistency(items, scores_of(items, score))


def figure(result, metric: str, sides: str):
    return next(f for f in result.figures if (f.metric, f.sides) == (metric, sides))


def swapped(pair: ContrastPair) -> ContrastPair:
    return ContrastPair(pair.instruction_2, pair.response_2, pair.instruction_1, pair.response_1)


def test_an_additive_reward_gets_one_half_of_every_set_and_is_called_out():
    for seed in range(5):
        items = pairs(seed=seed)
        result = found(additive, items)
        for metric in ("C_res", "C_ins"):
            both = figure(result, metric, "both")
            assert both.share.greater.value == 0.5 == both.share.at_least.value
            assert both.share.ties == 0
            assert both.additive == 0.5
        assert result.interaction == pytest.approx(0, abs=1e-20)
    told = verdict(result)
    assert told[0] == (
        "C_res 0.500 [0.377, 0.623], 60 pairs: the interval covers 0.5, so the model cannot tell the answer to an "
        "instruction from the answer to its neighbour, as far as these pairs show."
    )
    assert told[1] == (
        "C_ins 0.500 [0.377, 0.623], 60 pairs: the interval covers 0.5, so the model cannot tell the instruction of "
        "an answer from its neighbour, as far as these pairs show."
    )
    assert told[2] == (
        "ADDITIVE: 0.00% of the variance of scores within pairs depends on instruction and answer together (below 1%). "
        "Scores are a(instruction) + b(answer), and no such reward gets more than 0.5 with both sides counted."
    )


def test_an_additive_reward_may_get_everything_on_the_query_side_of_a_set_without_mirrors():
    items = [ContrastPair(f"ask {n}", f"good {n}", f"tell {n}", f"bad {n}") for n in range(40)]
    result = found(lambda p, r: [float("good" in text) for text in r], items)
    query = figure(result, "C_res", "query")
    assert query.share.greater.value == 1.0
    assert query.additive is None
    assert figure(result, "C_res", "both").share.greater.value == 0.5
    assert (
        "The query side alone is no proof: an additive reward may get anything up to 1 there. Read both sides."
        in verdict(result)
    )


def test_mirrored_items_bound_the_query_side_and_count_once_on_both_sides():
    plain = pairs(10)
    items = [*plain, *map(swapped, plain[:4])]
    result = found(additive, items)
    assert (result.pairs, result.mirrored) == (10, 4)
    query, both = figure(result, "C_res", "query"), figure(result, "C_res", "both")
    assert (query.share.greater.n, both.share.greater.n) == (14, 10)
    assert query.additive == pytest.approx(10 / 14)
    assert both.share.greater.value == 0.5
    # a reward that knows the first sides of all pairs reaches the bound: of a mirrored pair it gets one item
    best = found(lambda p, r: [float(any(text == pair.response_1 for pair in plain)) for text in r], items)
    assert figure(best, "C_res", "query").share.greater.value == pytest.approx(10 / 14)
    whole = found(additive, [*plain, *map(swapped, plain)])
    assert figure(whole, "C_ins", "query").additive == 0.5 == figure(whole, "C_ins", "query").share.greater.value
    assert not any("query side alone" in sentence for sentence in verdict(whole))


def test_one_that_reads_the_instruction_tells_both_apart():
    result = found(overlap, pairs())
    for metric in ("C_res", "C_ins"):
        assert figure(result, metric, "both").share.greater.value > 0.95
        assert figure(result, metric, "query").share.greater.value > 0.95
    told = verdict(result)
    assert told[0].endswith("so the model tells the answer to an instruction from the answer to its neighbour.")
    assert told[1].endswith("so the model tells the instruction of an answer from its neighbour.")
    assert result.interaction is not None
    assert result.interaction > 0.8
    assert told[2].startswith("Interaction: ")
    assert not any(sentence.startswith(("ADDITIVE", "LENGTH", "null models")) for sentence in told)


def test_a_reading_model_is_not_called_additive_because_its_instructions_differ_more():
    items = pairs()
    result = found(lambda p, r: [100 * value(q) + o for q, o in zip(p, overlap(p, r), strict=True)], items)
    assert result.interaction is not None
    assert result.interaction < 0.01
    assert figure(result, "C_res", "both").share.greater.value > 0.95
    assert not any(sentence.startswith("ADDITIVE") for sentence in verdict(result))


def test_one_that_counts_characters_is_its_null_model_and_that_is_said():
    items = [pair for pair in pairs(80) if len(pair.response_1) != len(pair.response_2)]
    result = found(lengthy, items)
    for one in result.figures:
        assert one.share == one.nulls["longest"]
    assert result.longer is not None
    assert result.longer.value == 1.0
    told = verdict(result)
    count = 2 * len(items)
    assert (
        f"LENGTH: the longer answer scores higher in 100.0% of {count} comparisons (a rule from 90%), so the "
        "scores say little but how long an answer is."
    ) in told
    assert any(s.startswith("null models: C_res, both 0.500 [") for s in told)
    assert not any(s.startswith("null models: C_ins") for s in told)  # which looks at one answer, so they get nothing
    shorter = verdict(found(lambda p, r: [-len(text) for text in r], items))
    assert any(s.startswith("LENGTH: the shorter answer scores higher in 100.0% of ") for s in shorter)


def test_a_constant_gets_nothing_with_greater_and_everything_with_at_least():
    items = pairs()
    result = found(constant, items)
    for one in result.figures:
        assert (one.share.greater.value, one.share.at_least.value) == (0.0, 1.0)
        assert one.share.ties == one.share.greater.n * (2 if one.sides == "both" else 1)
    assert result.interaction is None
    assert result.longer is None
    told = verdict(result)
    assert told[0] == (
        "C_res 0.000 [0.000, 0.060], 60 pairs, 120 of 120 comparisons tied: only ties keep it from 0.5, so the model "
        "cannot tell the answer to an instruction from the answer to its neighbour, as far as these pairs show."
    )
    assert told[2] == "All scores within pairs are equal: they depend on neither instruction nor answer."


def test_one_that_reads_and_dislikes_it_is_told():
    told = verdict(found(lambda p, r: [-number for number in overlap(p, r)], pairs()))
    assert told[0].endswith("below 0.5 even if ties count as right, so the model has it the wrong way round.")


def test_figures_by_hand():
    items = [ContrastPair("i1", "a", "i2", "bb"), ContrastPair("i3", "cc", "i4", "d")]
    #                     R11  R12    R21  R22
    scores = np.array([[[3.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert margins(scores, "C_res").tolist() == [[2.0, 0.0], [0.0, 1.0]]
    assert margins(scores, "C_ins").tolist() == [[1.0, 1.0], [0.0, 1.0]]
    result = consistency(items, scores)
    res, ins = figure(result, "C_res", "both"), figure(result, "C_ins", "both")
    assert (res.share.greater, res.share.at_least, res.share.ties) == (wilson(1.0, 2), wilson(2.0, 2), 2)
    assert (ins.share.greater, ins.share.at_least, ins.share.ties) == (wilson(1.5, 2), wilson(2.0, 2), 1)
    query = figure(result, "C_res", "query")
    assert (query.share.greater, query.share.at_least, query.share.ties) == (wilson(1, 2), wilson(2, 2), 1)
    # longest: bb over a is wrong on the first query side, cc over d right on the second
    assert query.nulls["longest"].greater == wilson(1, 2)
    assert res.nulls["shortest"].greater == wilson(1.0, 2)
    assert ins.nulls["longest"].greater.value == 0.0
    assert ins.nulls["longest"].at_least.value == 1.0
    # contrasts (instructions, answers, together): (0, 2, 2) and (-1, -1, 1)
    assert result.interaction == pytest.approx((4 + 1) / (0 + 4 + 4 + 1 + 1 + 1))
    # scores that differ where lengths do: 3 > 1 has the shorter, 0 < 1 too (d is shorter than cc)
    assert result.longer == wilson(0, 2)
    assert json.loads(json.dumps(result.to_json()))["metrics"]["C_res"]["both"][">"] == {**vars(wilson(1.0, 2))}


def test_swapping_the_sides_permutes_the_comparisons():
    items = pairs(20)
    table = scores_of(items, lambda p, r: [value(q + t) for q, t in zip(p, r, strict=True)])
    turned = scores_of(
        [swapped(pair) for pair in items], lambda p, r: [value(q + t) for q, t in zip(p, r, strict=True)]
    )
    assert np.array_equal(turned, table[:, ::-1, ::-1])
    for metric in ("C_res", "C_ins"):
        assert np.array_equal(margins(turned, metric), margins(table, metric)[:, ::-1])
    assert interaction(turned) == pytest.approx(interaction(table))


def test_the_interaction_share_of_independent_scores_is_a_third_on_average():
    scores = np.random.default_rng(0).normal(size=(20_000, 2, 2))
    assert interaction(scores) == pytest.approx(1 / 3, abs=0.01)
    assert interaction(10 * scores + 5) == pytest.approx(interaction(scores))


def test_nothing_is_scored_twice():
    items = pairs(5)
    asked = []

    def score(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return [0.0] * len(prompts)

    talk = [{"role": "user", "content": "word1"}]
    scores_of([*items, *map(swapped, items), ContrastPair(talk, "a", "b", "c")], score)
    assert len(asked) == 4 * 6
    assert asked[-4][0] is talk


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="expected scores of shape"):
        consistency(pairs(3), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="at least one pair"):
        consistency([], np.zeros((0, 2, 2)))
