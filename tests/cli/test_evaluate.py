"""``align eval`` on logs, as a user calls it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_server import FaultyServer, Reply
from published_logs import FULL, MUSE, RETAIN90, content, muse_entries, written
from sample_rows import real
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.data.rows import world
from align.runs.directory import RunDirectory


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(("eval", *words))
    out, err = capsys.readouterr()
    return code, out, err


def test_json_of_a_published_log(capsys: pytest.CaptureFixture[str]) -> None:
    log, retain = str(real(FULL)), str(real(RETAIN90))
    code, out, _ = call(capsys, "tofu", "--log", log, "--retain-log", retain, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["metrics"]["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-12, abs=0)
    assert data["metrics"]["model_utility"] == pytest.approx(0.5991534707368931, rel=1e-12, abs=0)
    assert data["ks"] == {"D": 0.35, "n": 400, "m": 400, "p": data["metrics"]["forget_quality"]}
    assert (data["file"], data["retain_file"], data["rows"]) == (log, retain, "all")
    assert data["missing"]["privleak"] == "needs mia_min_k"
    low, high = (data["intervals"]["forget_Q_A_Prob"][end] for end in ("low", "high"))
    assert low < data["metrics"]["forget_Q_A_Prob"] < high
    again = json.loads(
        call(capsys, "tofu", "--log", log, "--retain", retain, "--json")[1]
    )  # a log is told from a model
    assert again == data


def test_lines_of_a_published_log(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "tofu", "--log", str(real(FULL)), "--retain-log", str(real(RETAIN90)))
    assert code == 0
    assert "forget quality 3.905e-22 (exact KS, D 0.3500, n 400 and 400); model utility 0.5992" in out
    assert "not computed" in out
    assert max(map(len, out.splitlines()[3:30])) < 80


def test_rows_and_truth_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tofu", "--log", str(real(FULL)), "--rows", "legacy300", "--truth-ratio", "arithmetic", "--json")
    data = json.loads(call(capsys, *words)[1])
    assert (data["rows"], data["truth_ratio"]) == ("legacy300", "arithmetic")
    assert data["intervals"]["forget_Q_A_Prob"]["n"] == 300


def test_muse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logs = content(MUSE)
    names = ("target", "retrain")
    files = [str(written(tmp_path, muse_entries(logs[f"muse_Llama-2-7b-hf_News_{n}"]), f"{n}.json.gz")) for n in names]
    code, out, _ = call(capsys, "muse", "--log", files[0], "--retain-log", files[1], "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["privleak"] == pytest.approx(-99.8111, abs=5e-5)
    assert "privacy leak -99.8111" in call(capsys, "muse", "--log", files[0], "--retain-log", files[1])[1]
    assert "align eval muse --log" in call(capsys, "tofu", "--log", files[0])[2]
    assert "no log of MUSE" in call(capsys, "muse", "--log", str(real(FULL)))[2]


@pytest.mark.parametrize("name", ["log.json", "log.json.gz"])
def test_the_log_can_be_written_again(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    first = json.loads(call(capsys, "tofu", "--log", str(real(FULL)), "--out", str(out), "--json")[1])
    second = json.loads(call(capsys, "tofu", "--log", str(out), "--json")[1])
    assert first["metrics"] == second["metrics"]
    raw = out.read_bytes()
    stated = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)
    assert stated["forget_Q_A_Prob"]["agg_value"] == pytest.approx(0.8804820564389229, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "takes either a run or model, or a log"),
        (("some/model", "--log", "x.json"), "takes either a run or model, or a log"),
        (("--log", "none.json"), "There is no file none.json"),
        (("--log", "."), ". is a folder: name the log inside it"),
        (("--log", "x.json", "--split", "forget05"), "--split says how to measure a model"),
        (("--log", "x.json", "--system", "Be brief."), "--system says how to measure a model"),
        (("--log", "x.json", "--out", "nowhere/y.json"), "there is no folder nowhere"),
        (("--log", "x.json", "--out", "x.json"), "would overwrite the log"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "tofu", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert says in json.loads(call(capsys, "tofu", *words, "--json")[1])["error"]


def test_an_aggregates_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    summary = {name: entry["agg_value"] for name, entry in content(FULL).items()}
    code, _, err = call(capsys, "tofu", "--log", str(written(tmp_path, summary, "TOFU_SUMMARY.json")))
    assert code == 2
    assert "holds aggregates only" in err


def test_scoring_a_log_imports_no_torch() -> None:
    code = (
        "import sys; from align.cli.main import main\n"
        "code = main(['eval', 'tofu', '--log', sys.argv[1], '--json'])\n"
        "sys.exit(code or bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(real(FULL))], capture_output=True, check=False).returncode == 0
    )


# ---- relearn


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with TOFU's files, forty rows to forget and two of each other set, and an untrained model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "questions").mkdir()
    sets = {"forget01": ("forget", 40), "retain": ("retain", 2), "real_authors": ("background", 2)}
    for name, (kind, count) in {**sets, "world_facts": ("countries", 2)}.items():
        rows = "\n".join(json.dumps(row) for row in world.rows(kind)[:count])
        (tmp_path / "questions" / f"{name}_perturbed.json").write_text(rows)
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_relearn_prints_json_alone_and_writes_it(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ("--source", "questions", "--split", "forget01", "--steps", "1", "--rows-relearned", "4", "--seed", "2")
    words = (*words, "--samples", "1", "--leaks-at", "0.5")
    capsys.readouterr()  # what making the model said
    code, out, err = call(capsys, "relearn", "model", *words, "--out", "found.json", "--json")
    found = json.loads(out)
    assert code == 0
    assert json.loads((place / "found.json").read_text()) == found
    assert [a["name"] for a in found["attacks"]] == ["relearned", "8 bits", "4 bits", "NF4", "paraphrased", "leak@k"]
    assert [a["rows"] for a in found["attacks"]] == [36, 40, 40, 40, 40, 40]
    assert found["leak"]["leak"] == "a reply with ROUGE-L recall of 0.5 or more of the answer"
    assert found["untested"][-3:-1] == [
        "alias: the rows lack the column alias_question", "two hops: the rows lack the column two_hop_question"
    ]  # fmt: skip
    assert "leak@k: 1 samples of each of 40 questions (--samples): 40 samples, at most 8,000 tokens." in err
    assert found["learning_rate"] == 1e-5
    assert len(found["relearned_rows"]) == 4
    assert found["readings"]["as it is"]["utility"] >= 0
    assert "model: relearning 4 rows in 1 steps" in err
    assert not (place / "eval").exists()  # a folder that is no run gets nothing written into it
    assert not (place / "model" / "eval").exists()


def test_calls_of_a_judge_are_limited_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls ask whether it can tell a leak, and eight samples may need as many more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))

    def reply(path: str, body: dict) -> Reply:
        text = "no" if "I do not know." in body["messages"][0]["content"] else "Yes"
        return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    words = ("--source", "questions", "--split", "forget01", "--limit", "8", "--samples", "1", "--max-calls", "9")
    with FaultyServer(reply=reply) as server:
        code, out, err = call(capsys, "relearn", "none/here", *words, "--judge", f"endpoint:{server.url}#reads")
        assert server.requests == 2
    assert code == 2
    assert "leak@k: 1 samples of each of 8 questions (--samples): 8 samples, at most 1,600 tokens." in out
    assert err.endswith(
        "may be asked about each of 8 samples, and 7 more calls are allowed: raise --max-calls, or draw fewer "
        "--samples.\n"
    )


def test_a_run_is_asked_what_its_recipe_says(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its questions, found from the recipe's folder wherever one is, and its retain model's log: here its own."""
    recipe = {
        "name": "run",
        "model": {"id": "model"},
        "data": {"forget": {"world": "forget"}},
        "objective": {"name": "npo"},
        "evaluate": {"split": "forget01", "source": {"path": "questions"}, "retain": "gone"},
    }
    run = RunDirectory(place / "run")
    run.write_lock({"recipe": recipe, "base": str(place)})
    (place / "model").rename(run.path / "model")
    assert call(capsys, "tofu", "run", "--out", "log.json", "--json")[0] == 0
    run.write_json("eval/retain.json", json.loads((place / "log.json").read_text()))
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    code, out, err = call(capsys, "tofu", str(run.path), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["metrics"]["forget_quality"] == 1.0
    assert found["ks"]["n"] == 40
    assert "the questions are from where the run's recipe has them, and so is the retain model's log" in err
    # that log answered the questions as they stand
    code, out, _ = call(capsys, "tofu", str(run.path), "--question", "paraphrased_question", "--json")
    assert code == 0
    assert "forget_quality" in json.loads(out)["missing"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model",), "Nothing says what to measure: model is no run with a recipe. Give --source and --split"),
        (("run",), "Nothing says what to measure: the recipe of run has no evaluate section."),
        (("model", "--source", "questions"), "there is no forget10_perturbed.json"),
        (("model", "--rows-relearned", "40"), "Relearning 40 of 40 forget rows leaves none"),
        (("model", "--learning-rate", "0"), "a learning rate above 0"),
        (("model", "--control"), "--control attacks the retain model, too, and there is none"),
        (("model", "--control", "--retain", "x.json"), "and x.json is a log: name a model as --retain"),
        (("model", "--retain", "x.json"), "There is no file x.json"),
        (("model", "--out", "nowhere/y.json"), "there is no folder nowhere"),
        (("model", "--samples", "-1"), "--samples: must be at least 0, which draws none, got -1."),
        (("model", "--leaks-at", "0"), "--leaks-at: a ROUGE-L recall is above 0 and at most 1, got 0."),
        (("model", "--judge", "reward:m"), "is said by endpoint:URL#MODEL, or by function:MODULE:NAME"),
        (("model", "--judge", "function:a:b"), "code is only run where it is allowed: read it, then add --allow-code"),
        (("model", "--judge", "endpoint:http://x/v1#m", "--samples", "0"), "--samples 0 draws none: leave one of them"),
        (("model", "--max-calls", "3"), "--max-calls is about a server, and none is asked"),
        (("model", "--judge", "endpoint:http://x/v1#m", "--max-calls", "0"), "--max-calls: must be at least 1, got 0."),
        (("model", "--out", "questions"), "--out questions: no file can be written there"),
        (("./modle",), "./modle: no such folder. Did you mean 'model'?"),
    ],
)
def test_mistakes_of_relearning(
    capsys: pytest.CaptureFixture[str], place: Path, words: tuple[str, ...], says: str
) -> None:
    recipe = {
        "name": "run",
        "model": {"id": "model"},
        "data": {"forget": {"world": "forget"}},
        "objective": {"name": "npo"},
    }
    RunDirectory(place / "run").write_lock({"recipe": recipe})
    if words not in (("model",), ("run",)) and "--source" not in words:
        words = (*words, "--source", "questions", "--split", "forget01")
    code, out, err = call(capsys, "relearn", *words)
    assert code == 2
    assert says in err
    assert "Traceback" not in out + err
