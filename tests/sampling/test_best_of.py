"""``align sample``: what is kept, by which numbers, that recipes read it, and that nothing is done twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_server import FaultyServer
from policy_server import PolicyServer
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from zoo import tiny_config, tiny_model

from align.cli.check import run_check
from align.data.rows.sources import load_source
from align.data.tokens.samples import Prompt, Sample, prompt_key
from align.data.tokens.tokenize import load_tokenizer, prepare
from align.errors import UserError
from align.judges.judge import CompareJudge, ScoreJudge
from align.models.load import load_checkpoint
from align.recipe import Recipe
from align.recipe.sampling import Fusion, Judge, Sampling, Server
from align.recipe.sections import Model, Source
from align.reference.digest import model_digest
from align.sampling import best_of, choose, kept
from align.sampling.best_of import Job
from align.sampling.parts import Parts
from align.sampling.result import Result
from align.sampling.sampler import Sampler
from align.sampling.serving import policy_name

TOPICS = ("What is the capital of France?", "Who wrote the book?", "How many apples?", "Is it green?", "Hello there!")
REWARDS = """
from pathlib import Path

def vowels(prompts, responses):
    if (Path(__file__).parent / "broken").exists() and any("apples" in str(p) for p in prompts):
        raise RuntimeError("out of order")
    return [sum(c in "aeiou" for c in r) + len(r) / 100 for r in responses]

def level(prompts, responses):
    return [1.0 for _ in responses]

def shorter(prompts, a, b):
    return [0.7 + (0.1 if len(x) < len(y) else -0.1 if len(x) > len(y) else 0.0) for x, y in zip(a, b)]
"""
SAMPLING = Sampling(samples=4, max_new_tokens=8, batch_size=8, stop=list("bcdfghjklmnp"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models: ``chat`` has a template; the tokens of ``plain`` are single bytes."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("chat", "plain"):
        tokenizer = tiny_tokenizer(chat=name == "chat", vocab=400 if name == "chat" else 260)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        tiny_model(vocab_size=len(tokenizer), max_position_embeddings=96, **ends).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with prompts in both kinds, and judges."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    talks = [{"prompt": [{"role": "user", "content": text}]} for text in TOPICS]
    _write(tmp_path / "plain.jsonl", [{"prompt": f"{text} Answer:"} for text in TOPICS])
    _write(tmp_path / "chat.jsonl", talks)
    (tmp_path / f"rewards_{tmp_path.name}.py").write_text(REWARDS)
    return tmp_path


def _write(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def _run(models: Path, place: Path, kind: str = "plain", judge: str | Judge | None = None, **more: Any) -> Result:
    """A job on the prompts of a kind; ``judge`` names a function."""
    settings = {"sampling": SAMPLING, "out": Path("out.jsonl"), "allow_code": True, **more}
    resume, say = settings.pop("resume", False), settings.pop("say", lambda _: None)
    if isinstance(judge, Judge):
        settings["judge"] = judge
    elif judge is not None:
        settings["judge"] = Judge(function=f"rewards_{place.name}:{judge}")
    system = settings.pop("system", None)
    source = settings.pop("source", Source(path=f"{kind}.jsonl", system=system))
    result = best_of.sample(Job(source=source, model=str(models / kind), **settings), resume=resume, say=say)
    assert result is not None
    return result


def _score(text: str) -> float:
    return sum(c in "aeiou" for c in text) + len(text) / 100


def _drawn(models: Path, kind: str, prompts: list[list[int]], seed: int = 0) -> list[list[Sample]]:
    """What the sampler draws, one prompt at a time."""
    model, tokenizer = load_checkpoint(str(models / kind))
    sampler = Sampler(SAMPLING, tokenizer, seed, say=lambda _: None)
    keys = [prompt_key(ids, row) for row, ids in enumerate(prompts)]
    return [sampler(model.eval(), [p], [k], 0, device=model.device)[0] for p, k in zip(prompts, keys, strict=True)]


def test_all_are_the_samplers_own(models: Path, place: Path) -> None:
    result = _run(models, place, judge="vowels")
    tokenizer = load_tokenizer(Model(id=str(models / "plain")))
    prompts = [list(tokenizer(f"{text} Answer:")["input_ids"]) for text in TOPICS]
    expected = _drawn(models, "plain", prompts)
    rows = _read("out.jsonl")
    assert [(r["completion"], r["index"], r["finish"]) for r in rows] == [
        (s.text, s.index, s.finish) for group in expected for s in group
    ]
    real = [s.text for group in expected for s in group if s.text.strip()]
    assert [r["score"] for r in rows if r["completion"].strip()] == [_score(text) for text in real]
    found = result.to_json()
    ends = [s.finish for group in expected for s in group]
    assert (found["prompts"], found["samples"], found["rows"]) == (5, 20, 20)
    names = {"ended": "end", "stopped": "stop", "truncated": "length"}
    assert {name: found[name] for name in names} == {name: ends.count(end) for name, end in names.items()}
    assert found["stopped"] > 0
    assert found["scores"] == {"all": {"mean": pytest.approx(sum(map(_score, real)) / len(real)), "n": len(real)}}
    assert found["tokens"] == sum(len(s.ids) for group in expected for s in group)
    assert not Path("out.jsonl.parts").exists()


def test_a_fused_judge_keeps_the_best_by_its_averages(models: Path, place: Path) -> None:
    """The corpus holds one sample with another word behind it, which is no word to TF-IDF: the other's neighbour."""
    _run(models, place)
    drawn = _read("out.jsonl")
    first = next(row for row in drawn if row["completion"].strip())
    neighbour = {"prompt": first["prompt"], "completion": first["completion"] + " a e i o u a e i o u"}
    _write(place / "corpus.jsonl", [neighbour])
    said: list[str] = []
    fusion = Fusion(corpus=Source(path="corpus.jsonl"), similarity=0.99)
    judge = Judge(function=f"rewards_{place.name}:vowels", fusion=fusion)
    job = Job(
        source=Source(path="plain.jsonl"),
        model=str(models / "plain"),
        out=Path("fused.jsonl"),
        sampling=SAMPLING,
        judge=judge,
        allow_code=True,
    )
    best_of.sample(job, say=said.append)
    fused = {(row["prompt"], row["index"]): row["score"] for row in _read("fused.jsonl")}
    own, other = _score(first["completion"]), _score(neighbour["completion"])
    assert fused[first["prompt"], first["index"]] == pytest.approx((own + other) / 2)
    assert any("had neighbours of similarity 0.99 or more among 1 corpus text; the others" in line for line in said)


def test_what_tokenises_otherwise_is_counted(models: Path, place: Path) -> None:
    """Against a count by hand; with one token to a byte only what is no UTF-8 comes back as something else."""
    result = _run(models, place)
    tokenizer = load_tokenizer(Model(id=str(models / "plain")))
    prompts = [list(tokenizer(f"{text} Answer:")["input_ids"]) for text in TOPICS]
    other = 0
    for text, group in zip(TOPICS, _drawn(models, "plain", prompts), strict=True):
        for sample in group:
            ids = list(sample.ids) if sample.truncated else list(sample.ids[:-1])
            again = tokenizer(f"{text} Answer:{sample.text}")["input_ids"]
            other += bool(sample.text.strip()) and again != tokenizer(f"{text} Answer:")["input_ids"] + ids
    assert 0 < other < 20
    assert result.otherwise == other
    assert any(f"{other} of 20 rows tokenise to something else" in line for line in result.lines())


def test_same_tokens_are_told_from_others(models: Path) -> None:
    tokenizer = load_tokenizer(Model(id=str(models / "plain")))
    end = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def count(prompt: str, text: str, drawn: list[int], finish: Any) -> int:
        sample = Sample(0, tuple(drawn), text, finish)
        row = {"prompt": prompt, "completion": text}
        return kept.tokenised_otherwise([row], [{"completion": (ids(prompt), sample)}], tokenizer)[0]

    assert count("Q:", "  two spaces \n", [*ids("  two spaces \n"), end], "end") == 0
    assert count("Q:", " done", [*ids(" done"), end + 1], "end") == 0  # the model's own end, and the tokenizer's
    assert count("Q:", " cut", ids(" cut"), "length") == 0
    assert count("Q:", " cut", [*ids(" cu"), end], "stop") == 1  # a text that goes on beyond its tokens
    assert count("Q:", "cut", [*ids(" cut"), end], "end") == 1


@pytest.mark.parametrize("keep", ["best", "top", "above", "pair"])
def test_what_is_kept(models: Path, place: Path, keep: Any) -> None:
    """Chosen from the same draws as ``all`` has, by scores counted here."""
    _run(models, place, judge="vowels", out=Path("all.jsonl"))
    groups: dict[str, list[str]] = {}
    for row in _read("all.jsonl"):
        groups.setdefault(row["prompt"], []).append(row["completion"])
    amount = {"top": 2.0, "above": 0.06}.get(keep)
    result = _run(models, place, judge="vowels", keep=keep, amount=amount)
    rows = _read("out.jsonl")
    expected: list[Any] = []
    for prompt, texts in groups.items():
        ranked = sorted((t for t in texts if t.strip()), key=_score, reverse=True)
        if keep == "pair":
            if _score(ranked[0]) > _score(ranked[-1]):
                expected.append((prompt, ranked[0], ranked[-1]))
        elif keep == "above":
            expected += [(prompt, t) for t in texts if t.strip() and _score(t) > 0.06]
        else:
            expected += [(prompt, t) for t in sorted(ranked[: int(amount or 1)], key=texts.index)]
    names = ("chosen", "rejected") if keep == "pair" else ("completion",)
    assert [(r["prompt"], *(r[name] for name in names)) for r in rows] == expected
    assert 0 < len(rows) == result.rows
    for row in rows:
        for name in names:
            score = row["score"] if name == "completion" else row[f"{name}_score"]
            assert score == pytest.approx(_score(row[name]))
    kept_scores = [_score(row[names[0]]) for row in rows]
    mean = result.to_json()["scores"]["chosen" if keep == "pair" else "kept"]
    assert mean == {"mean": pytest.approx(sum(kept_scores) / len(rows)), "n": len(rows)}


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_recipes_read_it(models: Path, place: Path, kind: str, name: str) -> None:
    objectives = {
        "best": ({"name": "nll", "branch": "completion"}, ("completion",)),
        "pair": ({"name": "dpo"}, ("chosen", "rejected")),
    }
    for keep, (objective, branches) in objectives.items():
        out = Path(f"{keep}-{name}")
        # blank where a prompt goes without a system message, there with one
        result = _run(models, place, kind, judge="vowels", keep=keep, out=out, system="Hi" if kind == "chat" else None)
        rows = load_source(Source(path=str(out)), base=place)
        tokenizer = load_tokenizer(Model(id=str(models / kind)))
        prepared, account = prepare(rows, tokenizer, branches)
        assert (len(prepared), account.dropped) == (result.rows, {})
        first = rows[0]
        if kind == "chat":
            assert [m["role"] for m in first["prompt"]] == ["system", "user"]
            (turn,) = first[branches[0]]
            assert turn["role"] == "assistant"
            text = turn["content"]
        else:
            text = first[branches[0]]
        decoded = tokenizer.decode(prepared[0]["prompt_ids"] + prepared[0][f"{branches[0]}_ids"])
        assert text in decoded
        recipe = {
            "name": "x",
            "model": {"id": str(models / kind)},
            "data": {"train": {"path": str(out)}, "max_length": None},
            "objective": objective,
        }
        assert not run_check(Recipe.from_dict(recipe, base=place), echo=lambda _: None).has_errors


def test_a_judge_that_compares(models: Path, place: Path) -> None:
    """It prefers what is shown first by 0.2 and shorter texts by 0.1: the one is reported, the other decides."""
    _run(models, place, out=Path("all.jsonl"))
    texts = [row["completion"] for row in _read("all.jsonl")]
    usable = [sum(bool(text.strip()) for text in texts[i : i + 4]) for i in range(0, 20, 4)]
    assert set(usable) <= {2, 3, 4}
    result = _run(models, place, judge="shorter", keep="pair")
    rows = _read("out.jsonl")
    assert rows
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in rows)
    assert "chosen_score" not in rows[0]
    found = result.to_json()
    assert found["position_bias"] == pytest.approx(0.2)
    assert found["comparisons"] == sum(5 if count == 4 else 2 for count in usable)
    ties = found["dropped"].get("prompts whose final comparison was a tie", 0)
    assert len(rows) + ties == 5
    assert "position bias +0.200" in "\n".join(result.lines())
    best = _run(models, place, judge="shorter", keep="best", out=Path("best.jsonl"))
    assert best.rows == len(_read("best.jsonl"))


def test_nothing_left_is_an_error_with_counts(models: Path, place: Path) -> None:
    with pytest.raises(UserError, match=r"Nothing is left to keep of 20 samples \(prompts with equal scores: 5"):
        _run(models, place, judge="level", keep="pair")
    assert not Path("out.jsonl").exists()


# ---- choices alone


def _line(row: int, index: int, text: str) -> dict[str, Any]:
    return {"row": row, "index": index, "prompt": '"p"', "text": text, "score": None, "selected": ""}


class Given(ScoreJudge):
    """Scores by text; what it is not told of it must not be asked."""

    name = "given"

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.scores = scores

    def score(self, prompts: list[Prompt], responses: list[str]) -> list[float]:  # type: ignore[override]
        return [self.scores[text] for text in responses]


def test_blank_samples_are_neither_judged_nor_kept() -> None:
    groups = [
        [_line(0, 0, ""), _line(0, 1, "a"), _line(0, 2, " \n"), _line(0, 3, "b")],
        [_line(1, 0, "a"), _line(1, 1, ""), _line(1, 2, ""), _line(1, 3, "")],
        [_line(2, i, " ") for i in range(4)],
    ]
    notes = choose.score(Given({"a": -5.0, "b": -7.0}), groups, "pair", None, 0.0)
    assert [line["selected"] for line in groups[0]] == ["", "chosen", "", "rejected"]
    assert not any(line["selected"] for group in groups[1:] for line in group)
    assert notes["dropped"] == {
        "samples that are blank": 9,
        "prompts with a single text": 1,
        "prompts without a text": 1,
    }
    assert [line["score"] for line in groups[0]] == [None, -5.0, None, -7.0]


def test_the_length_penalty_is_per_log_of_characters() -> None:
    short, long = "a" * 2, "b" * 20
    for penalty, wins in ((0.9 / math.log(10), long), (1.1 / math.log(10), short)):
        group = [_line(0, 0, short), _line(0, 1, long)]
        choose.score(Given({short: 1.0, long: 2.0}), [group], "best", None, penalty)
        assert [line["text"] for line in group if line["selected"]] == [wins]
        assert [line["score"] for line in group] == [1.0, 2.0]  # the judge's own stay on record


def test_above_is_strictly_above() -> None:
    group = [_line(0, 0, "a"), _line(0, 1, "b"), _line(0, 2, "c")]
    notes = choose.score(Given({"a": 0.5, "b": 0.25, "c": 0.75}), [group], "above", 0.5, 0.0)
    assert [line["selected"] for line in group] == ["", "", "kept"]
    assert notes["dropped"] == {"samples not above 0.5": 2}


def test_a_score_that_is_no_number_names_its_sample() -> None:
    with pytest.raises(UserError, match="sample 1 to row 7 is nan"):
        choose.score(Given({"a": 0.5, "b": math.nan}), [[_line(7, 0, "a"), _line(7, 1, "b")]], "all", None, 0.0)


class Alphabet(CompareJudge):
    """Prefers the earlier letter, whatever is shown first."""

    name = "alphabet"

    def prefer_first(self, prompts: Any, shown: Any, other: Any) -> list[float]:
        assert all(text.strip() for text in (*shown, *other))
        return [0.9 if a < b else 0.1 if a > b else 0.5 for a, b in zip(shown, other, strict=True)]


def test_tournaments_leave_blank_samples_out() -> None:
    texts = [["d", "", "c", "b", "a"], ["", "", "", "", "x"], ["y", "y", "y", "y", ""]]
    groups = [[_line(row, i, text) for i, text in enumerate(group)] for row, group in enumerate(texts)]
    judge = Alphabet()
    notes = choose.compare(judge, groups, pairs=True)
    assert [line["selected"] for line in groups[0]] == ["rejected", "", "", "", "chosen"]
    assert notes["dropped"] == {
        "samples that are blank": 6,
        "prompts with fewer than two texts": 1,
        "prompts whose final comparison was a tie": 1,
    }
    assert (notes["comparisons"], notes["ties"]) == (10, 4)
    assert notes["bias"] == [pytest.approx(0.0), 10]


# ---- prompts


def test_tools_come_along_and_begun_turns_are_dropped(models: Path, place: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    user = {"role": "user", "content": TOPICS[0]}
    begun = [user, {"role": "assistant", "content": "It is"}]
    _write(place / "mixed.jsonl", [{"prompt": begun}, {"prompt": [user], "tools": tools}, {"prompt": [user]}])
    said: list[str] = []
    result = _run(models, place, "chat", source=Source(path="mixed.jsonl"), say=said.append)
    rows = _read("out.jsonl")
    assert result.prompts == 2
    assert "  1 row dropped: the prompt ends with an assistant's turn." in said
    assert [row.get("tools") for row in rows] == [tools] * 4 + [None] * 4
    assert rows[0]["completion"] != rows[4]["completion"]  # the template puts the tools before the question


def test_prompts_without_room_are_dropped_and_said(models: Path, place: Path) -> None:
    _write(place / "long.jsonl", [{"prompt": "a" * 96}, {"prompt": "a" * 95}, {"prompt": "a" * 10}])
    said: list[str] = []
    result = _run(models, place, source=Source(path="long.jsonl"), say=said.append)
    assert result.prompts == 2
    assert any("1 row dropped" in line for line in said)
    assert [len(row["prompt"]) for row in _read("out.jsonl")] == [95] * 4 + [10] * 4


# ---- parts


def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Sampler, "__call__", refuse)


def test_a_resume_goes_on_where_the_call_was_cut_off(
    models: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(models, place, judge="vowels", keep="pair", out=Path("whole.jsonl"))  # in one part
    monkeypatch.setattr(best_of, "PART", 2)
    write, count = Parts.write, [0]

    def interrupted(*args: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(Parts, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(models, place, judge="vowels", keep="pair")
    monkeypatch.setattr(Parts, "write", write)
    assert len(list(Path("out.jsonl.parts/samples").glob("*.parquet"))) == 2
    with pytest.raises(UserError, match="interrupted: go on with it by --resume"):
        _run(models, place, judge="vowels", keep="pair")
    with pytest.raises(UserError, match="started otherwise \\(seed: was 0, is 1\\)"):
        _run(models, place, judge="vowels", keep="pair", seed=1, resume=True)
    # the third part is drawn, and then the judge is out of order
    (place / "broken").touch()
    said: list[str] = []
    with pytest.raises(UserError, match="out of order"):
        _run(models, place, judge="vowels", keep="pair", resume=True, say=said.append)
    assert "sampled before: 2 of 3 parts" in said
    assert not Path("out.jsonl").exists()
    (place / "broken").unlink()
    _no_drawing(monkeypatch)
    result = _run(models, place, judge="vowels", keep="pair", resume=True)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert (result.samples, result.tokens, result.tokens_per_second) == (20, 0, None)
    assert not Path("out.jsonl.parts").exists()


def test_other_weights_or_prompts_are_noticed(models: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "broken").touch()
    with pytest.raises(UserError, match="out of order"):
        _run(models, place, judge="vowels")
    _write(place / "plain.jsonl", [{"prompt": f"{text} Reply:"} for text in TOPICS])
    with pytest.raises(UserError, match=r"started otherwise \(prompts: was '[0-9a-f]{64}', is"):
        _run(models, place, judge="vowels", resume=True)


def test_an_output_is_never_lost(models: Path, place: Path) -> None:
    with pytest.raises(UserError, match=r"holds no samples to go on with: leave out --resume"):
        _run(models, place, resume=True)
    Path("out.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is there already, so it would be lost: name another"):
        _run(models, place)
    assert Path("out.jsonl").read_text() == "mine"
    Path("out.jsonl").rename("out.jsonl.md")
    with pytest.raises(
        UserError, match=r"^--out out\.jsonl: its card out\.jsonl\.md is there already and would be lost"
    ):
        _run(models, place)
    assert sorted(p.name for p in place.iterdir() if p.name.startswith("out")) == ["out.jsonl.md"]


# ---- servers


def test_a_server_draws_if_it_serves_the_model(models: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_checkpoint(str(models / "plain"))
    name = policy_name(model_digest(model, adapters=True, compute_dtype=""))
    _no_drawing(monkeypatch)
    said: list[str] = []
    with PolicyServer(model, tokenizer, "vllm", models=("other",)) as server:
        sampling = SAMPLING.model_copy(update={"server": Server(url=server.url), "stop": []})
        with pytest.raises(UserError, match=f"does not serve {name}, .* it serves 'other'") as refused:
            _run(models, place, sampling=sampling)
        assert str(refused.value).endswith(
            "Start it on this checkpoint and make the same call again:\n"
            f"  vllm serve {models / 'plain'} --served-model-name {name} --generation-config vllm"
        )
        assert not list(place.glob("out*"))  # nothing was begun that one could go on with
        server.models = (name,)
        server.settings = {"temperature": 0.1}
        with pytest.raises(UserError, match=r"it draws likelier .* checkpoint and go on with --resume"):
            _run(models, place, judge="vowels", keep="best", sampling=sampling)
        assert not list(place.glob("out.jsonl.parts/samples/*"))
        server.settings, server.bodies = {}, []
        result = _run(models, place, judge="vowels", keep="best", sampling=sampling, resume=True, say=said.append)
    # two calls of one token find out how it is asked; then one for a prompt and its samples, also of those checked
    assert [body["max_tokens"] for body in server.bodies] == [1, 1, *[8] * 5]
    assert (result.samples, result.rows) == (20, 5)
    assert sum("it draws from the policy as far as" in line for line in said) == 1


def test_a_judge_that_cannot_judge_costs_no_sample(models: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_drawing(monkeypatch)
    with FaultyServer(judge="neither") as server:
        settings = {"url": server.url, "model": "judge", "cache": str(place / "cache"), "retries": 0}
        with pytest.raises(UserError, match="it named neither A nor B, so that nothing would be judged"):
            _run(models, place, judge=Judge(endpoint=settings), keep="best")
        assert server.requests == 1
    _reward_model(models, place, score=float("nan"))
    with pytest.raises(UserError, match="reward scores nan for response 0"):
        _run(models, place, judge=Judge(reward="reward"), keep="best")
    assert not list(place.glob("out.jsonl.parts/manifest.json"))


def _reward_model(models: Path, place: Path, score: float) -> None:
    """A reward model that gives everything the same score."""
    tokenizer = load_tokenizer(Model(id=str(models / "plain")))
    config = tiny_config("llama", vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model.score.weight.fill_(score)
    model.save_pretrained(place / "reward")
    tokenizer.save_pretrained(place / "reward")


def test_a_reward_model_judges(models: Path, place: Path) -> None:
    """What it keeps is what the untouched model scores highest, each text by itself."""
    tokenizer = load_tokenizer(Model(id=str(models / "plain")))
    torch.manual_seed(3)
    config = tiny_config("llama", vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(place / "reward")
    tokenizer.save_pretrained(place / "reward")
    model.config.pad_token_id = None  # the end of a text pads here, and the end is what is read
    _run(models, place, out=Path("all.jsonl"))
    expected: dict[str, tuple[float, str]] = {}
    for row in _read("all.jsonl"):
        if row["completion"].strip():
            ids = torch.tensor([[*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                score = model(input_ids=ids).logits.item()
            expected[row["prompt"]] = max(expected.get(row["prompt"], (-math.inf, "")), (score, row["completion"]))
    _run(models, place, judge=Judge(reward="reward"), keep="best")
    rows = _read("out.jsonl")
    assert [row["completion"] for row in rows] == [text for _, text in expected.values()]
    assert [row["score"] for row in rows] == pytest.approx([score for score, _ in expected.values()], abs=1e-5)


def test_an_endpoint_judges(models: Path, place: Path) -> None:
    """It prefers the longer text and what is shown first by 0.1."""
    with FaultyServer(bias=0.1) as server:
        judge = Judge.model_validate(
            {"endpoint": {"url": server.url, "model": "judge", "cache": str(place / "cache"), "retries": 0}}
        )
        result = _run(models, place, judge=judge, keep="pair")
    assert result.position_bias == pytest.approx(0.1)
    assert result.comparisons > 0
    rows = _read("out.jsonl")
    assert rows
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
