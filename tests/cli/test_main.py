"""The ``align`` command: what each verb prints, its exit code, and how soon it answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align import __version__
from align.cli.main import main
from align.objectives import OBJECTIVES

VERBS = ("train", "launch", "check", "list", "explain", "eval", "export", "chat", "push", "doctor")
SUITES = ("tofu", "muse", "relearn", "pairwise", "suite")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own that fails where torch was imported."""
    code = (
        "import sys; from align.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code or 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules), 'a heavy import'\n"
        "sys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS), *(["eval", s, "--help"] for s in SUITES)],
)
def test_help_is_short_and_ends_in_examples(words: list[str]) -> None:
    done = without_torch(*words)
    assert done.returncode == 0, done.stderr
    if words == ["--version"]:
        assert done.stdout == f"align {__version__}\n"
        return
    lines = done.stdout.rstrip().split("\n")
    assert len(lines) <= 40
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) in (2, 3)
    assert all(line.startswith("  align ") for line in examples)


@pytest.mark.parametrize(
    "words", [["list"], ["list", "train", "--json"], ["explain", "dpo"], ["explain", "suppression"]]
)
def test_light_verbs_need_no_torch(words: list[str]) -> None:
    done = without_torch(*words)
    assert done.returncode == 0, done.stderr


def test_a_typo_needs_no_torch(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodel: {id: m}\ndata: {train: {path: p}}\nobjective: {name: dpoo}\n")
    done = without_torch("train", str(recipe), "train.learning_rat=5e-6")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.split("\n")[0].endswith(
        "r.yaml:4  objective.name: 'dpoo' is not a known objective. Did you mean 'dpo'? All: align list objectives."
    )
    assert "override train.learning_rat=5e-6  train.learning_rat: unknown key." in done.stderr


def test_light_verbs_answer_at_once(tmp_path: Path) -> None:
    """User time, since the machine may be busy; half a second is the promise, twice that the alarm."""
    before = os.times().children_user
    without_torch("list")
    without_torch("train", "quickstart/dpoo")
    assert os.times().children_user - before < 2


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list")
    assert code == 0
    for name, cls in OBJECTIVES.items():
        assert re.search(rf"^  {name} +{re.escape(cls.title)}$", out, re.M)
    assert re.search(r"^  preference/dpo-tldr-pythia-1b +DPO on TL;DR summaries", out, re.M)
    assert "accelerate" not in out.split("recipes\n")[1].split("\n\n")[0]
    tables = json.loads(call(capsys, "list", "--json")[1])
    assert set(tables) == {"objectives", "recipes"}
    assert set(json.loads(call(capsys, "list", "recipes", "--json")[1])) == {"recipes"}
    assert "learning_rate" in json.loads(call(capsys, "list", "train", "--json")[1])["train"]


EXPLAINED_SIMPO = """\
simpo  Simple Preference Optimization
  loss      x = log pi(y|x) / |y|;  m = beta (r_w - r_l) - gamma, r = x, or (1 - exp(-alpha x))
            / alpha with alpha;  loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m), e =
            label_smoothing
  when      When no reference is wanted and answers differ much in length. Nothing keeps it near
            the start, so it needs small learning rates (authors: 3e-7 to 1e-6) and tuned beta
            and gamma.
  paper     arXiv 2405.14734, eq. 6; alpha: arXiv 2501.03884 (AlphaPO)
  needs     chosen, rejected; no reference
  reduction mean over pairs
  margin    m = beta * (l_w / T_w - l_l / T_l) - gamma;  s = sigmoid(-m)
  pulls     chosen up by beta * (s - label_smoothing) / T_w
            rejected down by beta * (s - label_smoothing) / T_l
  fields
    beta             2.0        scale of the mean log-prob; authors use 2 to 10 (> 0)
    gamma            1.0        target margin; authors use 0.3 to 0.5 of beta (>= 0)
    label_smoothing  0.0        assumed share of flipped labels (>= 0, < 0.5)
    alpha            0.0        AlphaPO's; above 0 unlikely answers are pulled harder, below 0
                                less, 0 is SimPO
    calibrate        false      scale the gradients of both sides so that they weigh alike: true
                                on the mean of past steps, per_pair in each pair (pairwise-
                                normalised); the loss's value stays (true, false, per_pair)
  recipe
    objective: {name: simpo, beta: 2.0, gamma: 1.0}
"""


def test_explain_an_objective(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "explain", "simpo") == call(capsys, "explain", "SimPO") == (0, EXPLAINED_SIMPO, "")


def test_explain_how_an_objective_pulls(capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(call(capsys, "explain", "idk_dpo", "--json")[1])
    assert {key: entry[key] for key in ("margin", "pulls", "needs", "reduction")} == {
        "margin": "beta * (d_a - d_f)",
        "pulls": ["2 * s", "2 * s"],
        "needs": ["alternate, forget", "a reference"],
        "reduction": "mean over rows",
    }
    out = call(capsys, "explain", "idk_dpo")[1]
    assert "\n  pulls     alternate up by 2 * s\n            forget down by 2 * s\n" in out
    out = call(capsys, "explain", "rmu")[1]
    assert "\n  pulls     moves hidden states, not log-probs\n" in out
    assert "margin" not in out


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_explain_every_objective(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = call(capsys, "explain", name)
    assert code == 0
    assert max(len(line) for line in out.split("\n")) <= 100
    entry = json.loads(call(capsys, "explain", name, "--json")[1])
    assert entry["name"] == name
    assert all(entry[key] for key in ("title", "equation", "paper", "when", "branches", "needs", "reduction", "pulls"))
    assert all(field["description"] for field in entry["fields"])
    ranged = {field["name"]: field["allowed"] for field in entry["fields"]}
    if name == "dpo":
        assert list(ranged)[:2] == ["beta", "label_smoothing"]
        assert [ranged[key] for key in ("beta", "label_smoothing", "ld_alpha")] == ["> 0", ">= 0, < 0.5", ">= 0, <= 1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data.truncation", "drop, keep_start, keep_end, prompt_left"),
        ("model.lora.rank", "rank of the update"),
        ("data.train.rows", "only the first so many rows"),
        ("train.lr_scheduler_type", "cosine_with_restarts"),
        ("train.packing", "cannot be set here: rows are always packed"),
        ("suppression", "less likely"),
        ("data.train.0.rows", "only the first so many rows"),
        ("objective.weight", "times this loss in the sum"),
        (
            "train.learning_rate",
            "\n  default   1e-6 for policies on pairs or labels, 1e-5 for reward models and others; ten times",
        ),
        ("train.lr_scheduler_type", "\n  default   cosine\n"),
        ("train.weight_decay", "\n  default   0.0\n"),
    ],
)
def test_explain_keys_and_words(capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    code, out, _ = call(capsys, "explain", name)
    assert code == 0
    assert expected in out


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dpoo", "'dpo'"),
        ("supression", "'suppression'"),
        ("rank", "'model.lora.rank'"),
        ("learning_rate", "'train.learning_rate'"),
        ("beta", "'objective.beta'"),
        ("preference/dpo-zephir", "'preference/dpo-zephyr-7b'"),
        ("data.trunc", "'data.truncation'"),
    ],
)
def test_explain_what_does_not_exist(capsys: pytest.CaptureFixture[str], name: str, meant: str) -> None:
    code, out, err = call(capsys, "explain", name)
    assert (code, out) == (2, "")
    assert err == (
        f"{name!r} is no objective, no word of the verdict, no recipe and no recipe key. Did you mean {meant}? "
        "All: align list, docs/config.md.\n"
    )


def test_explain_a_name_of_trl_says_what_it_is_called_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "explain", "Sigmoid") == (2, "", "'Sigmoid' is called 'dpo' here: align explain dpo.\n")


@pytest.mark.parametrize("name", ["objective.beta", "objective.0.beta"])
def test_explain_a_field_of_objectives(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = call(capsys, "explain", name)
    head, *rows = out.rstrip("\n").split("\n")
    assert (code, err, head) == (0, "", "objective.beta")
    listed = [row.split()[0] for row in rows if not row.startswith(" " * 8)]
    assert listed == [name for name, kind in OBJECTIVES.items() if "beta" in kind.__dataclass_fields__]
    for row in (
        "    hinge            0.1        reciprocal of the margin, in nats, that is asked for (> 0)",
        "    rpo              none       DPO's beta; 0.01 for handbook, 0.5 for openrlhf (> 0)",
        "    wga              1.0        power of the probability; 0 is gradient ascent (>= 0)",
    ):
        assert row in rows


def test_explain_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "explain", "preference/dpo-zephyr-7b")
    lines = out.split("\n")
    assert code == 0
    assert lines[:3] == [
        "preference/dpo-zephyr-7b",
        "  DPO on UltraFeedback, Zephyr 7B SFT, all weights.",
        "    run      align train preference/dpo-zephyr-7b",
    ]
    assert re.fullmatch(r"  file    .*dpo-zephyr-7b\.yaml", lines[-2])
    entry = json.loads(call(capsys, "explain", "preference/dpo-zephyr-7b", "--json")[1])
    assert entry["header"][0] == "DPO on UltraFeedback, Zephyr 7B SFT, all weights."


def test_a_piped_list_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for what in ("train", "recipes"):
        rows = json.loads(call(capsys, "list", what, "--json")[1])[what]
        listed = call(capsys, "list", what)[1].split("\n")
        assert [line.split(None, 1)[1:] for line in listed[1 : len(rows) + 1]] == [[text] for text in rows.values()]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert max(len(line) for line in call(capsys, "list", "train")[1].split("\n")) <= 100


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "explain", "dpoo", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["exit_code"] == 2


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    diagnosis = json.loads(out)
    topics = {line["topic"] for line in diagnosis["lines"]}
    assert {"python", "torch", "trl", "memory", "disk", "hub"} <= topics
    assert any(topic.startswith("device") for topic in topics)
    assert code == (1 if diagnosis["problems"] else 0)
    assert all(line["cure"] for line in diagnosis["lines"] if line["level"] == "problem")


def test_doctor_finds_what_is_missing() -> None:
    from align.cli.doctor import Diagnosis, _packages

    found = Diagnosis()
    _packages(found, {"pydantic": "2.0.0", "no_such_package": "1.0"}, {"pydantic": "<2"})
    assert [line.level for line in found.lines] == ["problem", "problem"]
    assert found.lines[0].text.endswith("is outside <2")
    assert (found.lines[1].text, found.lines[1].cure) == ("not installed", "pip install 'no_such_package==1.0'")
    assert found.render().endswith("2 problems.")


@pytest.mark.parametrize(
    ("value", "said"), [("", "not switched off (not tried), cache in "), ("1", "switched off (HF_HUB_OFFLINE), cache")]
)
def test_doctor_claims_nothing_of_the_hub(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    from align.cli.doctor import Diagnosis, _hub

    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    found = Diagnosis()
    _hub(found)
    assert found.lines[0].text.startswith(said)


def test_doctor_says_how_to_get_bitsandbytes() -> None:
    from align.versions import OPTIONAL

    assert OPTIONAL["bitsandbytes"] == ("model.load_in: 4bit or 8bit", "pip install bitsandbytes")


def test_options_may_stand_before_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "train", "quickstart/dpo", "--resume", "train.learning_rat=1")
    assert code == 2
    assert err.startswith("override train.learning_rat=1  train.learning_rat: unknown key.")


@pytest.mark.parametrize(
    "words", [[], ["nothing"], ["train"], ["list", "x"], ["doctor", "x"], ["train", "f", "--resum"]]
)
def test_usage_errors_are_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: align")
    if words == ["train"]:  # overrides are none of what is missing
        assert said.endswith("the following arguments are required: FILE\n")


def test_the_reader_may_leave() -> None:
    """``align list | head -1`` ends without a traceback."""
    words = f"{sys.executable} -m align list train | head -n 1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "train\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str, *, allow_code: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("align.cli.explain.explain", interrupted)
    assert call(capsys, "explain", "dpo") == (130, "", "Interrupted.\n")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, pairs and two recipes, the second of which trains on a faulty row."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("cli")
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(60))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w0"
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    rows = [
        {"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2} w{i + 3}", "rejected": f" w{i + 4}"} for i in range(2, 34)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    faulty = [*rows, {"prompt": "w5 w6", "chosen": " w7", "rejected": " w7"}]
    (folder / "faulty.jsonl").write_text("\n".join(json.dumps(row) for row in faulty) + "\n")
    text = (
        "name: tiny\nmodel: {id: MODEL, dtype: float32}\ndata: {train: {path: pairs.jsonl}, max_length: 32}\n"
        "objective: {name: dpo}\nreference: {store: false}\n"
        "train: {max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, gradient_checkpointing: false}\n"
    ).replace("MODEL", str(folder / "model"))
    (folder / "good.yaml").write_text(text)
    (folder / "faulty.yaml").write_text(text.replace("pairs.jsonl", "faulty.jsonl"))
    return folder


def test_check(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tiny_folder)
    code, out, _ = call(capsys, "check", "good.yaml")
    assert (code, "No errors" in out) == (0, True)
    code, out, _ = call(capsys, "check", "faulty.yaml")
    assert (code, "1 error" in out) == (1, True)
    code, out, err = call(capsys, "check", "faulty.yaml", "--json")
    assert code == 1
    assert json.loads(out)["errors"] is True
    assert "1 error" in err


def test_train(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tiny_folder)
    code, out, _ = call(capsys, "train", "good.yaml", "--json", "train.learning_rate=1e-3")
    assert code == 0
    result = json.loads(out)
    assert result["steps"] == 2
    assert (tiny_folder / "runs" / "tiny" / "recipe.lock.yaml").is_file()
    code, _, err = call(capsys, "train", "good.yaml")
    assert (code, "already holds a run" in err) == (2, True)


def test_the_python_of_the_readme_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(sample.replace("Qwen/Qwen3-0.6B", str(tiny_folder / "model")), scope)
    assert scope["trainer"].state.global_step == 3


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("trian", "x.yaml"), "Did you mean 'train'?"),
        (("eval", "tofuu", "x"), "Did you mean 'tofu'?"),
        (("eval", "tofu", "x", "--truth-ratio", "geometry"), "Did you mean 'geometric'?"),
        (("zzzz",), "'doctor')"),
    ],
)
def test_a_misspelt_word_gets_the_one_that_was_meant(
    words: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert capsys.readouterr().err.rstrip().replace("doctor)", "'doctor')").endswith(meant)


def test_a_tilde_on_the_command_line_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = call(capsys, "eval", "tofu", "--log=~/log.json", "--out=~/there/out.json")
    assert (code, err) == (2, f"--out {tmp_path}/there/out.json: there is no folder {tmp_path}/there.\n")
    code, _, err = call(capsys, "check", "~/no.yaml")
    assert err.startswith(f"{tmp_path}/no.yaml  no such file")
    code, _, err = call(capsys, "sample", "~/no.jsonl", "--model=~/m", "--out=~/o.jsonl", "--judge=reward:~nobody-x/m")
    assert err == (
        "--judge: ~nobody-x stands for a user's home folder, and there is none. Write ./~nobody-x/m for a name "
        "with ~.\n"
    )
