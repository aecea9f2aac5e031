"""Judges that run here: reward models and pair models against the plain model on single rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CHATML, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from zoo import ARCHITECTURES, HYBRID, stirred, tiny_config, tiny_model

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges import reward as module
from align.judges.judge import CompareJudge
from align.judges.loading import early_judge, load_judge
from align.judges.pair import PairModel, question
from align.judges.reward import RewardModel
from align.recipe.sampling import Endpoint, Judge
from align.runs.directory import LOCK

BOOK: list[dict[str, str]] = [{"role": "user", "content": "Who wrote the book?"}]
LONGER = [{"role": "system", "content": "Be short."}, *BOOK, {"role": "assistant", "content": "Who?"}, *BOOK]
FRANCE = "What is the capital of France?"
# answers that differ at once, late, in nothing and by their end; words that merge across the boundary; texts and turns
ROWS: list[tuple[Prompt, str]] = [
    (FRANCE, " Paris."),
    (BOOK, "A person"),
    (FRANCE, " Paris is the capital of France, of course."),
    (FRANCE, " Paris."),
    ("The capital of Fra", "nce"),
    (FRANCE, ""),
    (LONGER, "A person who lives near the sea"),
    (BOOK, "A person who lives near the sea"),
]
PROMPTS, RESPONSES = [prompt for prompt, _ in ROWS], [response for _, response in ROWS]
REWARDS = [name for name in (*ARCHITECTURES, "qwen3_next") if name not in ("granite", "cohere2")]  # have no classifier
ENCODERS = ["bert", "roberta", "modernbert", "deberta-v2"]
TOKENIZER = tiny_tokenizer()


def silent(_: str) -> None:
    pass


def save_reward(folder: Path, name: str = "llama", **changes: Any) -> str:
    """A classifier with random weights and one label, with its tokenizer."""
    kind, settings = HYBRID if name == "qwen3_next" else ARCHITECTURES.get(name, (name, {}))
    common = {"vocab_size": len(TOKENIZER), "num_labels": 1}
    config = tiny_config(kind, **{**settings, **common, **changes})
    torch.manual_seed(0)
    stirred(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def tokens(prompt: Prompt, response: str) -> list[int]:
    if isinstance(prompt, str):
        return TOKENIZER(prompt + response + TOKENIZER.eos_token)["input_ids"]
    talk = [*prompt, {"role": "assistant", "content": response}]
    return TOKENIZER.apply_chat_template(talk, return_dict=True)["input_ids"]


@torch.no_grad()
def plain_scores(folder: str) -> list[float]:
    """The untouched model on one unpadded row at a time, read at the last position."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    return [model(input_ids=torch.tensor([tokens(*row)])).logits.item() for row in ROWS]


# ---- reward models


@pytest.mark.parametrize("name", [*REWARDS, *ENCODERS])
def test_scores_are_the_models_own(name: str, tmp_path: Path) -> None:
    folder = save_reward(tmp_path, name)
    said: list[str] = []
    judge = RewardModel(folder, say=said.append)
    found = judge.score(PROMPTS, RESPONSES)
    assert found == pytest.approx(plain_scores(folder), abs=1e-5)
    assert max(found) - min(found) > 0.02
    assert found[0] == pytest.approx(found[3], abs=1e-6)
    expected = "rows of equal length" if name in ENCODERS else "shared and packed"
    assert ("FALLING BACK to padded rows" if name == "qwen3_next" else expected) in said[0]
    assert not any(p.requires_grad for p in judge.model.parameters())
    assert not judge.model.training


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "bert"])
def test_scores_do_not_depend_on_what_is_scored_beside_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = RewardModel(save_reward(tmp_path, name), say=silent)
    together = judge.score(PROMPTS, RESPONSES)
    alone = [judge.score([prompt], [response])[0] for prompt, response in ROWS]
    assert together == pytest.approx(alone, abs=1e-6)
    assert judge.score(PROMPTS[::-1], RESPONSES[::-1])[::-1] == pytest.approx(alone, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # of a training step around it
        assert judge.score(PROMPTS, RESPONSES) == together
    monkeypatch.setattr(module, "_PACK_TOKENS", 60)  # several packs, and trees that do not fit into one
    assert judge.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-6)
    assert judge.score([], []) == []


def test_a_prompt_is_computed_once(tmp_path: Path) -> None:
    judge = RewardModel(save_reward(tmp_path), say=silent)
    before = judge.engine.tokens
    answers = [f" {n} apples." for n in ("ten", "six", "two", "no")]
    judge.score([FRANCE] * 4, answers)
    rows = [tokens(FRANCE, answer) for answer in answers]
    shared = next(i for i in range(99) if len({row[i] for row in rows}) > 1)
    assert judge.engine.tokens - before == shared - 1 + sum(len(row) - shared + 1 for row in rows)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_last_token_is_found_by_length_where_eos_pads(name: str, tmp_path: Path) -> None:
    eos = TOKENIZER.eos_token_id
    folder = save_reward(tmp_path, name)
    usual = RewardModel(folder, say=silent).score(PROMPTS, RESPONSES)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": eos, "eos_token_id": eos}))
    judge = RewardModel(folder, say=silent)
    assert judge.score(PROMPTS, RESPONSES) == pytest.approx(usual, abs=1e-6)
    judge.engine.mode = "own"  # as with a head of another kind: the model's own forward
    assert judge.score(PROMPTS, RESPONSES) == pytest.approx(usual, abs=1e-6)
    own = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():  # which takes the EOS for padding and reads one token before it
        assert own(input_ids=torch.tensor([tokens(*ROWS[0])])).logits.item() != pytest.approx(usual[0], abs=1e-3)


def test_a_text_gets_one_eos_and_only_where_there_is_one(tmp_path: Path) -> None:
    folder = save_reward(tmp_path)
    judge = RewardModel(folder, say=silent)
    eos = TOKENIZER.eos_token
    assert judge.score([FRANCE], [f" Paris.{eos}"]) == judge.score([FRANCE], [" Paris."])
    without = tiny_tokenizer(chat=False)
    without.eos_token = None
    (tmp_path / "chat_template.jinja").unlink()
    without.save_pretrained(folder)
    bare = RewardModel(folder, say=silent)
    assert bare._tokens([FRANCE], [" Paris."]) == [judge._tokens([FRANCE], [" Paris."])[0][:-1]]
    with pytest.raises(UserError, match=r"judge\.reward: the prompts are conversations, but .* has no chat template"):
        bare.score([BOOK], ["A person"])


def test_an_adapter_a_run_and_a_type(tmp_path: Path) -> None:
    folder = save_reward(tmp_path / "run" / "model", dtype=torch.bfloat16)
    (tmp_path / "run" / LOCK).write_text("{}")
    judge = RewardModel("run", base=tmp_path, dtype="bfloat16", say=silent)
    assert judge.model.dtype == torch.bfloat16
    assert judge.score(PROMPTS, RESPONSES) == pytest.approx(plain_scores(folder), abs=0.1)
    assert RewardModel("run", base=tmp_path, dtype="float32", say=silent).score(PROMPTS, RESPONSES) == pytest.approx(
        plain_scores(folder), abs=1e-5
    )
    tiny_model(vocab_size=len(TOKENIZER)).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    for kind, target in (("SEQ_CLS", AutoModelForSequenceClassification), ("CAUSAL_LM", AutoModelForCausalLM)):
        options = {"num_labels": 1} if kind == "SEQ_CLS" else {}
        config = LoraConfig(task_type=kind, target_modules=["q_proj"], init_lora_weights=False)
        adapted = get_peft_model(target.from_pretrained(tmp_path / "base", **options), config).eval()
        adapted.save_pretrained(tmp_path / kind)
    judge = RewardModel(str(tmp_path / "SEQ_CLS"), say=silent)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    own.config.pad_token_id = None
    own = PeftModel.from_pretrained(own, tmp_path / "SEQ_CLS").eval()
    with torch.no_grad():
        expected = [own(input_ids=torch.tensor([tokens(*row)])).logits.item() for row in ROWS]
    assert judge.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match=r"CAUSAL_LM is for another kind of model \(task_type CAUSAL_LM\)"):
        RewardModel(str(tmp_path / "CAUSAL_LM"), say=silent)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.reward: .*several gives 3 numbers \(num_labels\)"):
        RewardModel(save_reward(tmp_path / "several", num_labels=3), say=silent)
    tiny_model(vocab_size=len(TOKENIZER)).save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="policy is a LlamaForCausalLM; a reward model is a"):
        RewardModel(str(tmp_path / "policy"), say=silent)
    for name in (str(tmp_path / "nowhere"), "no-such/model-here"):
        with pytest.raises(UserError, match=r"no such folder|cannot be loaded"):
            RewardModel(name, say=silent)
    judge = RewardModel(save_reward(tmp_path / "good"), say=silent)
    with pytest.raises(UserError, match=r"prompt and response 1 have \d+ tokens, but .*good reads 128 at most"):
        judge.score([FRANCE, FRANCE], [" Paris.", " apples" * 130])
    room = 128 - len(tokens(FRANCE, ""))
    assert judge.fits([FRANCE] * 2, [" apples" * room, " apples" * (room + 1)]) == [True, False]
    judge.score([FRANCE], [" apples" * room])
    with torch.no_grad():
        judge.model.score.weight.fill_(math.inf)
    with pytest.raises(UserError, match=r"scores -?(inf|nan) for response 0.*judge\.dtype"):
        judge.score([FRANCE], [" Paris."])


def test_a_judge_is_whole_however_the_policy_is_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another rank than the first sees it, whom FSDP gives no weights, and with ZeRO-3 waiting to cut models up."""
    from transformers.integrations.deepspeed import (
        HfDeepSpeedConfig,
        is_deepspeed_zero3_enabled,
        unset_hf_deepspeed_config,
    )
    from transformers.modeling_utils import is_fsdp_enabled

    folder = save_reward(tmp_path / "model")
    expected = RewardModel(folder, say=silent).score(PROMPTS, RESPONSES)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for key in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
            monkeypatch.setenv(key, "true")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert RewardModel(folder, say=silent).score(PROMPTS, RESPONSES) == expected
        assert is_fsdp_enabled()
    finally:
        torch.distributed.destroy_process_group()
    pytest.importorskip("deepspeed")
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        judge = RewardModel(folder, say=silent)
        assert judge.score(PROMPTS, RESPONSES) == expected
        assert is_deepspeed_zero3_enabled()
    finally:
        del config
        unset_hf_deepspeed_config()


# ---- pair models

BOS_TEMPLATE = "{{ bos_token }}" + CHATML


def save_pair(folder: Path, name: str = "llama", **head: float) -> str:
    """A causal model whose template puts a BOS in front; ``head``: logits of A and B, whatever is asked."""
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = BOS_TEMPLATE
    model = tiny_model(name, vocab_size=len(tokenizer), max_position_embeddings=256)
    with torch.no_grad():
        for letter, bias in head.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(letter)] = 0
            model.lm_head.bias[tokenizer.convert_tokens_to_ids(letter)] = bias
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


ASKED = (
    "[CONTEXT] \n\n<turn> user\n Be short.\n<turn> user\n Who wrote the book?\n<turn> assistant\n Who?\n<turn> user\n "
    "Who wrote the book?\n [RESPONSE A] He. [RESPONSE B] She did. \n"
)


def test_the_question_is_worded_as_pair_preference_models_know_it() -> None:
    assert question("Hi", "x", "y") == "[CONTEXT] \n\n<turn> user\n Hi\n [RESPONSE A] x [RESPONSE B] y \n"
    assert question(LONGER, "He.", "She did.") == ASKED


@torch.no_grad()
def test_probabilities_are_the_softmax_of_two_logits(tmp_path: Path) -> None:
    folder = save_pair(tmp_path)
    judge = PairModel(folder, say=silent)
    prompts: list[Prompt] = [FRANCE, LONGER, BOOK]
    a, b = [" Paris.", "He.", ""], ["Rome, perhaps, or Paris", "She did.", "A person who lives near the sea"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = judge.subject.tokenizer
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]

    def first(prompt: Prompt, x: str, y: str) -> float:
        message = [{"role": "user", "content": question(prompt, x, y)}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert text.startswith("<s>")
        ids = tokenizer.encode(text.replace("<s>", ""), add_special_tokens=False)
        return model(input_ids=torch.tensor([ids])).logits[0, -1, letters].double().softmax(0)[0].item()

    expected = [first(*row) for row in zip(prompts, a, b, strict=True)]
    swapped = [first(*row) for row in zip(prompts, b, a, strict=True)]
    assert judge.prefer_first(prompts, a, b) == pytest.approx(expected, abs=1e-5)
    assert judge.position_bias == 0.0
    both = [(x + 1 - y) / 2 for x, y in zip(expected, swapped, strict=True)]
    assert judge.compare(prompts, a, b) == pytest.approx(both, abs=1e-5)
    assert judge.compare(prompts, b, a) == pytest.approx([1 - p for p in both], abs=1e-5)
    bias = sum((x + y) / 2 - 0.5 for x, y in zip(expected, swapped, strict=True)) / 3
    assert judge.position_bias == pytest.approx(bias, abs=1e-5)
    assert abs(bias) > 1e-3 < max(abs(p - 0.5) for p in both)
    assert judge.compare([], [], []) == []


def test_a_model_that_always_says_a_has_its_bias_measured_and_no_preference(tmp_path: Path) -> None:
    judge = PairModel(save_pair(tmp_path, "phi-head-bias", A=math.log(3), B=0.0), say=silent)
    assert judge.compare([FRANCE, BOOK], [" Paris.", "He."], ["Rome.", "She."]) == pytest.approx([0.5, 0.5], abs=1e-6)
    assert judge.position_bias == pytest.approx(0.25, abs=1e-6)
    assert judge.bias[1] == 2


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    judge = PairModel(save_pair(tmp_path / "good"), say=silent)
    with pytest.raises(UserError, match=r"comparison 0 has \d+ tokens, but the model reads 256 at most"):
        judge.compare([FRANCE], [" Paris" * 250], ["Rome"])
    texts = [" Paris" * n for n in range(1, 256)]
    longest = judge.fits([FRANCE] * 255, texts, ["Rome"] * 255).index(False) - 1
    assert longest > 50
    judge.prefer_first([FRANCE], [texts[longest]], ["Rome"])
    with pytest.raises(UserError, match="comparison 0 has 257 tokens"):
        judge.prefer_first([FRANCE], [texts[longest + 1]], ["Rome"])
    tokenizer = tiny_tokenizer(chat=False)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"judge\.pair: the tokenizer of .*bare has no chat template"):
        PairModel(str(tmp_path / "bare"), say=silent)
    with pytest.raises(UserError, match=r"judge\.pair: .*reward is a LlamaForSequenceClassification, which scores"):
        PairModel(save_reward(tmp_path / "reward"), say=silent)
    tiny_tokenizer().save_pretrained(tmp_path / "trunk")
    tiny_model(vocab_size=len(tokenizer)).model.save_pretrained(tmp_path / "trunk")
    with pytest.raises(UserError, match=r"judge\.pair: .*trunk has no weights for lm_head\.weight"):
        PairModel(str(tmp_path / "trunk"), say=silent)


def test_a_recipes_section_gives_either(tmp_path: Path) -> None:
    said: list[str] = []
    save_reward(tmp_path / "reward")
    save_pair(tmp_path / "pair")
    reward = load_judge(Judge(reward="reward"), base=tmp_path, say=said.append)
    assert isinstance(reward, RewardModel)
    assert reward.name == "reward"
    assert isinstance(load_judge(Judge(pair="pair"), base=tmp_path, say=said.append), PairModel)
    assert [line.split(":")[0] for line in said] == ["judge", "judge"]
    endpoint = Endpoint(url="http://localhost:1/v1", model="m", cache=str(tmp_path / "cache"))
    assert isinstance(load_judge(Judge(endpoint=endpoint), base=tmp_path, say=said.append), CompareJudge)


def test_a_judge_of_position_alone_gives_ties_and_nothing_near_them() -> None:
    class First(CompareJudge):
        name = "first"

        def prefer_first(self, prompts: Any, shown: Any, other: Any) -> list[float]:
            return [0.1 + len(prompt) / 7919 for prompt in prompts]

    prompts = ["x" * i for i in range(500)]
    assert set(First().compare(prompts, ["a"] * 500, ["b"] * 500)) == {0.5}


@pytest.mark.parametrize(
    ("key", "other", "said"),
    [
        ("reward", "pair", "is a LlamaForCausalLM; a reward model is a ...ForSequenceClassification with one label."),
        (
            "pair",
            "reward",
            "is a LlamaForSequenceClassification, which scores single answers: name it as judge.reward.",
        ),
    ],
)
def test_a_wrong_judge_is_told_without_its_weights(key: str, other: str, said: str, tmp_path: Path) -> None:
    folders = {"reward": save_reward(tmp_path / "reward"), "pair": save_pair(tmp_path / "pair")}
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    assert early_judge(Judge(**{key: folders[key]}), say=silent) is None  # nothing is loaded yet
    with pytest.raises(UserError) as refused:
        early_judge(Judge(**{key: folders[other]}), say=silent)
    assert str(refused.value) == f"judge.{key}: {folders[other]} {said}"
    with pytest.raises(UserError, match=rf"{tmp_path}/none: no such folder"):
        early_judge(Judge(**{key: str(tmp_path / "none")}), say=silent)


def test_a_pair_model_that_cannot_be_asked_is_told_without_its_weights(tmp_path: Path) -> None:
    folder = save_pair(tmp_path / "pair")
    for name in ("model.safetensors", "chat_template.jinja"):
        (tmp_path / "pair" / name).unlink()
    with pytest.raises(UserError, match="has no chat template to put the question in"):
        early_judge(Judge(pair=folder), say=silent)
