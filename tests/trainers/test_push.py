"""``trainer.push_to_hub`` in Python: the files that ``align push`` takes of a run, the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from peft import LoraConfig
from training import arguments, pairs, trainer, word_tokenizer
from transformers import AutoModelForCausalLM
from zoo import tiny_model

from align.errors import UserError
from align.objectives import DPO
from align.trainers.preference import PreferenceTrainer

# huggingface_hub's own way to send a large file, which its HTTP client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_trainer_pushes_its_model_and_card_to_a_private_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home", token=None)
        made = trainer(tmp_path / "mine", DPO(), max_steps=1)
        made.train()

        url = made.push_to_hub(token=hub.token, tags="ours")

        assert url == f"{hub.url}/ada/mine"
        files = hub.files("ada/mine")
        assert {"model.safetensors", "config.json", "README.md", "tokenizer.json", "export.json"} <= set(files)
        assert not {name for name in files if name.endswith((".bin", ".pt")) or "checkpoint" in name}
        assert files == {file.name: file.read_bytes() for file in (tmp_path / "mine" / "model").iterdir()}
        assert b"\n- ours\n" in files["README.md"].split(b"---\n")[1]
        repo = hub.repos["models", "ada/mine"]
        assert (repo.private, repo.titles) == (True, ["initial commit", "End of training"])

        assert made.push_to_hub(token=hub.token, tags="ours") == url
        assert len(repo.titles) == 2


def test_the_arguments_name_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: dict[str, Any] = {"hub_model_id": "lab/x", "hub_private_repo": False}
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        made = trainer(tmp_path / "mine", DPO(), max_steps=1, **named)

        made.push_to_hub("Second try", revision="trial")

        repo = hub.repos["models", "lab/x"]
        assert (repo.private, repo.titles[-1], set(repo.heads)) == (False, "Second try", {"main", "trial"})
        assert not hub.files("lab/x")
        assert "model.safetensors" in hub.files("lab/x", revision="trial")
        with pytest.raises(UserError, match=r"^push_to_hub\(blocking=False\): the push is done when it returns; leave"):
            made.push_to_hub(blocking=False)


def test_nothing_of_an_earlier_push_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an adapter beside the weights of a full fine-tune, nor the other way round."""
    tiny_model().save_pretrained(tmp_path / "base")
    (tmp_path / "mine" / "model.new").mkdir(parents=True)
    (tmp_path / "mine" / "model.new" / "adapter_config.json").write_text("{}")  # of a push that was killed
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        for repo, adapter in (("z", False), ("a", True), ("b", False), ("c", True)):
            how = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])} if adapter else {}
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
            made = trainer(tmp_path / "mine", DPO(), model=model, max_steps=1, hub_model_id=f"ada/{repo}", **how)
            made.push_to_hub()
            weights = {name for name in hub.files(f"ada/{repo}") if name.endswith(".safetensors")}
            assert ("adapter_config.json" in hub.files(f"ada/{repo}")) == adapter
            assert weights == {"adapter_model.safetensors" if adapter else "model.safetensors"}
        assert sorted(path.name for path in (tmp_path / "mine").glob("model*")) == ["model"]


def test_checkpoints_are_never_pushed(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=1)
    args.push_to_hub = True
    with pytest.raises(UserError) as caught:
        PreferenceTrainer(tiny_model(), DPO(), args, train_dataset=pairs(4), processing_class=word_tokenizer())
    assert str(caught.value) == (
        "push_to_hub in args would upload checkpoints while the model trains. Leave it out there and call "
        "trainer.push_to_hub() at the end; in a recipe it is output.push."
    )
