"""``align sample`` and ``align show``, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from distributed.launching import environment
from shortage import at_most
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification
from zoo import tiny_model

from align.cli.main import main
from align.data.tokens.samples import Sample
from align.export.listing import listing
from align.sampling.files import sample_row, write_table

ROWS = [{"prompt": f"Question {i}: what is it?"} for i in range(6)]
HEAVY = "{'torch', 'transformers', 'datasets', 'trl'}"


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer(chat=False)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=96, **ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A working directory with prompts, a judge and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "judging_here", raising=False)  # of another test's folder
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "ids.jsonl").write_text('{"prompt_ids": [5, 6, 7]}\n')
    code = "def longest(prompts, responses):\n    return [len(r) for r in responses]\n"
    (tmp_path / "judging_here.py").write_text(code)
    (tmp_path / "model").symlink_to(model)
    return tmp_path


def test_json_alone_goes_to_standard_output(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ("prompts.jsonl", "--model", "model", "--n", "3", "--max-new-tokens", "5", "--limit", "4", "--seed", "3")
    judge = ("--judge", "function:judging_here:longest", "--allow-code")
    capsys.readouterr()  # what making the model said
    code, out, err = call(capsys, "sample", *words, *judge, "--out", "best.parquet", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["prompts"], found["samples"], found["keep"]) == (4, 12, "best")  # kept by default where one judges
    assert found["scores"]["kept"]["mean"] >= found["scores"]["all"]["mean"]
    assert "a call that is interrupted goes on with --resume" in err
    assert (place / "best.parquet").is_file()
    card = (place / "best.parquet.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(header)["configs"][0]["data_files"] == [{"split": "train", "path": "best.parquet"}]
    said = {line.split(": ")[0][2:]: line.split("`")[1] for line in body.splitlines() if line.startswith("- ")}
    assert said.pop("model").startswith(f"{(place / 'model').resolve().name} (digest ")
    assert said == {
        **{"prompts": "prompts.jsonl", "rows": "4", "of prompts": "4", "kept": "best", "seed": "3", "samples": "3"},
        **{"judge": "function judging_here:longest", "length penalty": "0.0", "max new tokens": "5"},
        **{"temperature": "1.0", "top p": "1.0", "drawn by": "align"},
    }
    assert "\nbest.parquet: 4 rows of 4 prompts, keep best\n" in body
    assert str(place) not in card
    code, out, err = call(capsys, "sample", *words)
    assert (code, err) == (0, "")
    assert "samples.jsonl: 12 rows of 4 prompts, keep all" in out
    rows = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {row["prompt"] for row in ROWS[:4]}
    assert set(rows[0]) == {"prompt", "completion", "index", "finish"}
    assert not list(place.glob("*.parts"))
    assert listing(place / "samples.jsonl").card == (place / "samples.jsonl.md").read_text()


def test_memory_that_runs_out_costs_nothing_that_was_drawn(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.sampling.best_of.PART", 2)
    prompts = ["Why? " * (1 + i) for i in range(6)]
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = ("prompts.jsonl", "--model", "model", "--n", "4", "--max-new-tokens", "4")
    assert call(capsys, "sample", *words, "--out", "whole.jsonl")[0] == 0
    longest = len(tiny_tokenizer(chat=False)(prompts[-1]).input_ids) - 1  # the last token is read with the first drawn
    with at_most(positions=2 * longest - 1):  # both prompts of the last part are too many at a time
        code, _, err = call(capsys, "sample", *words, "--batch-size", "8")
        assert code == 3
        first, cure = err.strip().splitlines()
        assert first.startswith("Out of memory while 8 completions were drawn at a time: cpu has ")
        assert cure.startswith("Set sampling.batch_size: 4, ")
        assert 0 < len(list(place.glob("samples.jsonl.parts/samples/*.parquet"))) < 3
        code, out, _ = call(capsys, "sample", *words, "--batch-size", "4", "--resume")
        assert code == 0
        assert "sampled before: " in out
    assert (place / "samples.jsonl").read_text() == (place / "whole.jsonl").read_text()


def test_a_judge_that_does_not_fit(capsys: pytest.CaptureFixture[str], place: Path, model: Path) -> None:
    config = AutoConfig.from_pretrained(model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(place / "reward")
    tiny_tokenizer(chat=False).save_pretrained(place / "reward")
    words = ("prompts.jsonl", "--model", "model", "--n", "4", "--max-new-tokens", "4", "--batch-size", "4")
    with at_most(positions=120):  # more than one prompt has, and fewer than all of them with their samples
        code, _, err = call(capsys, "sample", *words, "--judge", "reward:reward")
    assert code == 3
    assert "\nOut of memory while answers were judged: cpu has " in f"\n{err}"
    assert err.endswith("what was drawn and judged by then is kept.\n")


def test_the_generated_world_has_prompts(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ("--model", "model", "--n", "1", "--max-new-tokens", "2", "--limit", "3")
    assert call(capsys, "sample", "world:forget:5", *words)[0] == 0
    from align.data.rows import world

    rows = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [world.prompt(row["question"]) for row in world.rows("forget", 5)[:3]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("prompts.jsonl", "--keep", "best"), "--keep best needs someone who judges: give --judge"),
        (("prompts.jsonl", "--keep", "most"), "--keep most: expected all, best, pair, top:K or above:X."),
        (("prompts.jsonl", "--keep", "top"), "--keep top: top takes a whole number, as in top:2."),
        (("prompts.jsonl", "--keep", "above:high"), "--keep above:high: above takes a number"),
        (("prompts.jsonl", "--judge", "reward"), "--judge reward: expected reward:MODEL, pair:MODEL"),
        (("prompts.jsonl", "--judge", "endpoint:http://x"), "expected endpoint:URL#MODEL, as in"),
        (("prompts.jsonl", "--judge", "reward:x", "--keep", "top:5"), "--keep top:K takes a K from 1 to --n, here 4"),
        (("prompts.jsonl", "--judge", "pair:x", "--n", "6"), "takes 2, 4, 8, 16 ... samples: --n is 6"),
        (("prompts.jsonl", "--judge", "pair:x", "--keep", "all"), "--keep all needs scores, and this judge compares"),
        (("prompts.jsonl", "--judge", "pair:x", "--length-penalty", "1"), "--length-penalty is taken off scores, and"),
        (("prompts.jsonl", "--length-penalty", "-1"), "--length-penalty: must be at least 0, got -1."),
        (("prompts.jsonl", "--judge", "reward:x", "--n", "1", "--keep", "pair"), "at least two samples of each prompt"),
        (("prompts.jsonl", "--n", "0"), "--n: must be at least 1, got 0."),
        (("prompts.jsonl", "--temperature", "0"), "--temperature: must be greater than 0, got 0."),
        (("prompts.jsonl", "--top-p", "1.5"), "--top-p: must be at most 1, got 1.5."),
        (("prompts.jsonl", "--limit", "0"), "--limit: must be at least 1, got 0."),
        (("prompts.jsonl", "--out", "out.txt"), "--out out.txt: the name must end in .jsonl or .parquet"),
        (("prompts.jsonl", "--out", "nowhere/x.jsonl"), "--out nowhere/x.jsonl: there is no folder nowhere."),
        (("prompts.jsonl", "--out", "prompts.jsonl"), "--out prompts.jsonl is there already, so it would be lost"),
        (("prompts.jsonl", "--resume"), "samples.jsonl.parts holds no samples to go on with: leave out --resume"),
        (("promts.jsonl",), "promts.jsonl: no such file or folder. Did you mean 'prompts.jsonl'?"),
        (("ids.jsonl",), "The rows are tokenised already (prompt_ids)"),
        (("world:nothing",), "The generated world has no rows of kind 'nothing'. Known kinds: full,"),
        (("world:forget:x",), "expected world:KIND or world:KIND:SEED, as in world:forget:0."),
        (("prompts.jsonl", "--judge", "function:judging_here:longest"), "then add --allow-code to the command."),
        (("prompts.jsonl", "--judge", "function:judging_here:lo", "--allow-code"), "lo does not exist in"),
        (("prompts.jsonl", "--judge", "reward:./rward"), "./rward: no such folder."),
        (("prompts.jsonl", "--model", "./modle"), "./modle: no such folder. Did you mean 'model'?"),
        (("prompts.jsonl", "--stop", ""), "an empty text"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], place: Path, words: tuple[str, ...], says: str
) -> None:
    before = sorted(p.name for p in place.iterdir() if p.name != "__pycache__")
    if "--model" not in words:
        words = (*words, "--model", "model")
    code, out, err = call(capsys, "sample", *words)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == before
    assert says in json.loads(call(capsys, "sample", *words, "--json")[1])["error"]


def test_mistakes_in_options_need_no_torch(place: Path) -> None:
    code = (
        "import sys; from align.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        f"assert not {HEAVY} & set(sys.modules), 'a heavy import'\n"
        "sys.exit(code)"
    )
    for words in (("--top-p", "2"), ("--keep", "most"), ("--judge", "reward")):
        command = [sys.executable, "-c", code, "sample", "prompts.jsonl", "--model", "model", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr


@pytest.mark.slow
def test_two_processes_write_what_one_writes(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    rows = [{"prompt": f"Question {i}: what is it?"} for i in range(70)]  # three parts
    (place / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sample", "many.jsonl", "--model", "model", "--n", "2", "--max-new-tokens", "4", "--keep", "pair"]
    words += ["--judge", "function:judging_here:longest", "--allow-code"]
    assert call(capsys, *words, "--out", "one.jsonl")[0] == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "align"]
    for options, code in ((["--out", "two.jsonl"], 0), (["--out", "two.jsonl"], 2)):
        done = subprocess.run(
            [*launch, *words, *options],
            env=environment("ddp"),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]
        if code == 0:
            assert done.stdout.count("two.jsonl: ") == 1
            assert "70 prompts, keep pair" in done.stdout
            assert "140 samples" in done.stdout
    assert (place / "two.jsonl").read_bytes() == (place / "one.jsonl").read_bytes()
    assert not list(place.glob("*.parts"))


# ---- show


@pytest.fixture
def run(tmp_path: Path) -> Path:
    prompt = {"row": 4, "prompt": '"why?"', "prompt_ids": [1]}
    lines = [sample_row(2, prompt, Sample(i, (3, 1), f"because {i}", "end"), score=float(i)) for i in range(3)]
    write_table(tmp_path / "run" / "samples" / "000002-r0.parquet", lines)
    (tmp_path / "empty").mkdir()
    return tmp_path / "run"


def test_show_samples(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, out, _ = call(capsys, "show", "samples", str(run))
    assert code == 0
    assert f"{run}: 3 samples of 1 prompt, 0.0% cut at the limit, mean score 1 (n 3)" in out
    assert "step 2, row 4: why?\n  [0] score 0, ended, 2 tokens\n      because 0\n" in out
    found = json.loads(call(capsys, "show", "samples", str(run), "--worst", "--n", "2", "--json")[1])
    assert [row["text"] for row in found["samples"]] == ["because 0", "because 1"]
    assert found["samples"][0]["prompt"] == "why?"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("empty",), "empty has no samples: neither"),
        (("rnu",), "rnu: no such folder. Did you mean 'run'?"),
        (("run", "--round", "1"), "run did not go in rounds"),
        (("run", "--step", "1"), "run has no samples of step 1. There are samples of steps 2."),
        (("run", "--n", "0"), "--n: must be at least 1, got 0."),
    ],
)
def test_mistakes_of_showing(
    capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(run.parent)
    code, out, err = call(capsys, "show", "samples", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize("words", [("show",), ("show", "pairs", "run"), ("show", "samples"), ("sample", "x.jsonl")])
def test_usage(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: align")


@pytest.mark.parametrize("words", [("sample",), ("show",), ("show", "samples")])
def test_help_is_short_and_ends_in_examples(words: tuple[str, ...]) -> None:
    code = (
        "import sys; from align.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: assert not {HEAVY} & set(sys.modules), 'a heavy import'"
    )
    command = [sys.executable, "-c", code, *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.rstrip().split("\n")
    assert len(lines) <= 40
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) in (2, 3)
    assert all(line.startswith("  align ") for line in examples)
