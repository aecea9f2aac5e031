"""What a run leaves is an export already; exports of it, of its checkpoints, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from adapted import distance, logits
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from small_run import recipe, small_world
from transformers import GenerationConfig

from align.errors import UserError
from align.export.export import export_run
from align.export.listing import listing
from align.export.source import find
from align.models.load import load_checkpoint
from align.runs.directory import RunDirectory
from align.train import run

FREE = {"load_check": False}
STEPS = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "eval_strategy": "no"}


def silent(_: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two steps, ``adapter`` and ``whole``, on a model with a licence and another end of answers."""
    folder = small_world(tmp_path_factory.mktemp("world"))
    (folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "model" / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    for name, lora in (("adapter", {"rank": 4}), ("whole", None)):
        section = {"id": str(folder / "model"), "dtype": "float32", "lora": lora}
        run(recipe(folder, folder, name=name, model=section, train=STEPS), echo=silent)
    return folder


def test_the_model_of_a_run_is_an_export(world: Path) -> None:
    for name, weights, others in (
        ("adapter", "adapter_model.safetensors", {"adapter_config.json"}),
        ("whole", "model.safetensors", {"config.json", "LICENSE"}),
    ):
        folder = world / name / "model"
        about = json.loads((folder / "export.json").read_text())
        there = {path.name for path in folder.iterdir()}
        assert there == {*about["files"], "export.json"}
        expected = {weights, "README.md", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *others}
        assert set(about["files"]) == expected
        for file, one in about["files"].items():
            content = (folder / file).read_bytes()
            assert one == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            assert (folder / file).stat().st_mode & 0o777 == (folder / "README.md").stat().st_mode & 0o777
        lock = RunDirectory(world / name).lock
        assert (about["of"], about["licence"], about["dtype"]) == ({"run": lock["run"]}, "apache-2.0", "float32")
        card = (folder / "README.md").read_text()
        data = ModelCard(card).data
        assert (data.license, data.library_name) == ("apache-2.0", "peft" if name == "adapter" else "transformers")
        assert data.base_model is None  # a folder of this machine, which stays out
        assert str(world) not in card
        assert f"| {weights} | {about['files'][weights]['bytes']:,} | `{about['files'][weights]['sha256']}` |" in card
        assert f"- data (digest): {lock['data'][:16]}" in card
        assert "Licence of the base model: apache-2.0." in card


def test_an_adapter_keeps_the_ends_that_its_training_found(world: Path) -> None:
    folder = world / "ended"
    shutil.copytree(world / "adapter" / "model", folder)
    (folder / "export.json").unlink()  # it is changed by hand, and meant
    settings = GenerationConfig.from_pretrained(folder)
    settings.eos_token_id = [1, 9]
    settings.save_pretrained(folder)
    model, _ = load_checkpoint(str(folder))
    assert model.get_base_model().generation_config.eos_token_id == [1, 9]
    export_run(folder, world / "ended-merged", merge=True, say=silent, **FREE)
    assert GenerationConfig.from_pretrained(world / "ended-merged").eos_token_id == [1, 9]


def test_a_checkpoint_has_a_card_and_is_exported_as_it_was(world: Path) -> None:
    checkpoint = world / "adapter" / "checkpoint-1"
    card = (checkpoint / "README.md").read_text()
    assert "Training had not ended when this card was written." in card
    assert "- steps: 1" in card
    assert not (checkpoint / "training_args.bin").exists()
    made = export_run(checkpoint, say=silent, **FREE)
    assert made.folder == world / "adapter" / "export-1"
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (checkpoint, made.folder)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert json.loads((made.folder / "export.json").read_text())["of"]["step"] == 1
    assert not (made.folder / "optimizer.pt").exists()
    assert find(world / "adapter" / "checkpoint-2").of == {**find(world / "adapter").of, "step": 2}


def test_whole_weights_in_shards_and_in_another_type(world: Path) -> None:
    made = export_run(world / "whole", world / "shards", max_shard_size="60KB", say=silent, **FREE)
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert all((made.folder / shard).stat().st_size < 70_000 for shard in shards)
    assert set(made.files) >= {*shards, "model.safetensors.index.json"}
    before = load_file(world / "whole" / "model" / "model.safetensors")
    after = {name: weight for shard in shards for name, weight in load_file(made.folder / shard).items()}
    assert all((before[name] == after[name]).all() for name in before)
    with pytest.raises(
        UserError, match=r"--max-shard-size many: expected a number with KB, MB, GB or TB, such as 5GB\."
    ):
        export_run(world / "whole", world / "none", max_shard_size="many", say=silent, **FREE)
    assert not (world / "none").exists()


def test_the_type_of_the_base_model(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "whole", folder)
    shutil.copytree(world / "model", tmp_path / "narrow")
    config = json.loads((tmp_path / "narrow" / "config.json").read_text())
    (tmp_path / "narrow" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    lock = (folder / "recipe.lock.yaml").read_text().replace(str(world / "model"), str(tmp_path / "narrow"))
    (folder / "recipe.lock.yaml").write_text(lock)
    lines: list[str] = []
    assert export_run(folder, dtype="checkpoint", say=lines.append, **FREE).dtype == "bfloat16"
    assert lines[-1].startswith("type: rounding the weights to bfloat16 moves logits by ")


# ---- what is there already


def test_nothing_is_written_over(world: Path, tmp_path: Path) -> None:
    made = export_run(world / "adapter", tmp_path / "out", say=silent, **FREE)
    with pytest.raises(UserError, match=r"out holds an export of this model already: --replace writes it anew\."):
        export_run(world / "adapter", made.folder, say=silent, **FREE)
    (made.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out holds notes\.txt, which is none of the export that would be replaced"):
        export_run(world / "adapter", made.folder, replaces=True, say=silent, **FREE)
    (made.folder / "notes.txt").unlink()
    with pytest.raises(UserError, match=r"out holds the adapter of this model: name another folder"):
        export_run(world / "adapter", made.folder, merge=True, replaces=True, say=silent, **FREE)
    before = (made.folder / "export.json").stat().st_ino
    export_run(world / "adapter", made.folder, replaces=True, say=silent, **FREE)
    assert (made.folder / "export.json").stat().st_ino != before
    with pytest.raises(UserError, match="out holds the export of another model"):
        export_run(world / "whole", made.folder, replaces=True, say=silent, **FREE)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine is there and is no export \(no export\.json\)"):
        export_run(world / "adapter", mine, replaces=True, say=silent, **FREE)
    link = tmp_path / "link"
    link.symlink_to(made.folder)
    with pytest.raises(UserError, match="link is there and is no export"):
        export_run(world / "adapter", link, replaces=True, say=silent, **FREE)
    with pytest.raises(UserError, match="lies in the folder that is exported"):
        export_run(world / "adapter", world / "adapter" / "model" / "out", say=silent, **FREE)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "out"]


def test_what_fails_leaves_nothing(world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(world / "adapter" / "model", broken)
    (broken / "export.json").unlink()
    (broken / "chat_template.jinja").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="is a link to a file outside of its folder, /etc/hostname"):
        export_run(broken, say=silent, **FREE)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    shutil.copytree(world / "model", tmp_path / "base")
    (tmp_path / "base" / "LICENSE").unlink()
    (tmp_path / "base" / "LICENSE").symlink_to("/etc/hostname")
    (broken / "chat_template.jinja").unlink()
    settings = json.loads((broken / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (broken / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"base/LICENSE is a link to a file outside of its folder"):
        export_run(broken, merge=True, say=silent, **FREE)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "base"}


@pytest.mark.parametrize("place", ["a-file/out", "/proc/out"])
def test_a_folder_that_cannot_be_made_is_said(world: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("1")
    with pytest.raises(UserError, match=r"out cannot be made \(.+\): name another folder with --out\."):
        export_run(world / "adapter", tmp_path / place, say=silent, **FREE)


def test_a_base_that_is_gone_is_no_traceback(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(world / "adapter" / "model", folder)
    (folder / "export.json").unlink()
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert export_run(folder, tmp_path / "out", say=silent, **FREE).licence == "not stated"
    with pytest.raises(UserError, match=r"gone cannot be loaded|gone' cannot be loaded"):
        export_run(folder, tmp_path / "merged", merge=True, say=silent, **FREE)


# ---- what cannot be exported


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "flipped": ("adapter_model.safetensors", flipped, "is not what was written: its digest is not that in {}"),
    "cut": ("adapter_model.safetensors", lambda file: os.truncate(file, 1000), "has 1,000 bytes and not "),
    "gone": ("tokenizer_config.json", Path.unlink, "is gone"),
    "cut settings": ("generation_config.json", lambda file: os.truncate(file, 3), "has 3 bytes and not "),
}


@pytest.mark.parametrize("which", ["model", "checkpoint-2"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_not_as_it_was_written_goes_nowhere(world: Path, tmp_path: Path, kind: str, which: str) -> None:
    """Neither into an export nor to the Hub: its digest would be written anew, and be right."""
    name, change, expected = DAMAGES[kind]
    run = tmp_path / "run"
    shutil.copytree(world / "adapter", run)
    change(run / which / name)
    place = run if which == "model" else run / which
    said = re.escape(f"{name} {expected.format('export.json' if which == 'model' else 'complete.json')}")
    with pytest.raises(UserError, match=rf"cannot be exported: {said}"):
        export_run(place, tmp_path / "out", say=silent, **FREE)
    with pytest.raises(UserError, match=rf"is not pushed: {said}") as refused:
        listing(place)
    cure = (
        "Make it anew, or if the change is meant, remove "
        if which == "model"
        else "Name another checkpoint, or the run."
    )
    assert cure in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_card_may_be_changed_and_weights_be_damaged_without_digests(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(world / "adapter" / "model", folder)
    (folder / "README.md").write_text("# Mine\n")
    assert listing(folder).card == "# Mine\n"
    assert "# Mine" in (export_run(folder, tmp_path / "out", say=silent, **FREE).folder / "README.md").read_text()
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"more\.safetensors was put there later"):
        listing(folder)
    (folder / "more.safetensors").unlink()
    (folder / "export.json").unlink()
    os.truncate(folder / "adapter_model.safetensors", 1000)
    for how in ({**FREE, "load_check": True}, FREE):
        with pytest.raises(
            UserError, match=r"adapter_model\.safetensors cannot be read as|cannot be put on .* \(Safetensor"
        ):
            export_run(folder, tmp_path / "cut", say=silent, **how)


def _no_marker(folder: Path) -> None:
    (folder / "complete.json").unlink()


def _changed(folder: Path) -> None:
    with open(folder / "adapter_model.safetensors", "ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_no_marker, r"cannot be exported: it has no complete\.json, so it was never finished"),
        (_changed, r"cannot be exported: adapter_model\.safetensors has [\d,]+ bytes and not"),
    ],
)
def test_a_checkpoint_that_is_not_whole(world: Path, tmp_path: Path, damage: Any, sentence: str) -> None:
    shutil.copytree(world / "adapter", tmp_path / "run")
    damage(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(UserError, match=sentence):
        find(tmp_path / "run" / "checkpoint-1")


def _pieces(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _several(folder: Path) -> None:
    shutil.copytree(folder, folder / "second")


def _empty(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_pieces, r"holds its weights in pieces \(pytorch_model_fsdp_0\), which only the processes that wrote them"),
        (_pickle, r"holds its weights as a pickle \(adapter_model\.bin\), which may hold a program and is never read"),
        (_several, r"holds the adapters its own, second, and an export is of one"),
        (_empty, r"holds no model: neither adapter_config\.json nor config\.json with model\.safetensors"),
    ],
)
def test_a_folder_that_is_no_model(world: Path, tmp_path: Path, damage: Any, sentence: str) -> None:
    shutil.copytree(world / "adapter" / "model", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=sentence):
        find(tmp_path / "model")


def test_what_cannot_be_asked(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds whole weights, so there is nothing to merge: leave --merge out"):
        export_run(world / "whole", merge=True, say=silent)
    with pytest.raises(UserError, match="--dtype and --max-shard-size are for whole weights"):
        export_run(world / "adapter", dtype="float32", say=silent)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        export_run(tmp_path / "nowhere", say=silent)
    shutil.copytree(world / "adapter", tmp_path / "quantised")
    lock = tmp_path / "quantised" / "recipe.lock.yaml"
    lock.write_text(lock.read_text().replace("load_in: null", "load_in: 4bit"))
    assert find(tmp_path / "quantised").load_in == "4bit"
    lines: list[str] = []
    export_run(tmp_path / "quantised", say=lines.append, **FREE)  # as it is, it needs no quantised base
    said = "the adapter was trained on weights in 4bit; on plain ones it computes otherwise, and a merged model does "
    said += "not"
    assert lines[0] == f"note: {said} (--merge)"
    exported = tmp_path / "quantised" / "export"
    assert json.loads((exported / "export.json").read_text())["notes"] == [said]  # for those who load it, too
    assert f"\nT{said[1:]}.\n" in (exported / "README.md").read_text()
    if find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match=r"model\.load_in needs bitsandbytes: pip install bitsandbytes"):
            export_run(tmp_path / "quantised", merge=True, say=silent, **FREE)
        return
    lines.clear()
    export_run(tmp_path / "quantised", merge=True, say=lines.append, **FREE)
    assert "is quantised (4bit); it is dequantised to float32 first, and merged weights are not quantised" in lines[0]
    merged = logits(load_checkpoint(str(tmp_path / "quantised" / "merged"))[0])
    assert distance(merged, logits(load_checkpoint(str(tmp_path / "quantised"))[0])) < 1e-5
    assert distance(merged, logits(load_checkpoint(str(world / "adapter"))[0])) > 1e-3


# ---- cards and licences


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: other\nlicense_name: llama3.2\n---\n"}, "llama3.2"),
        ({"README.md": "---\nlicense:\n- mit\n---\n"}, "mit"),
        ({"README.md": "# license: mit\n"}, "not stated"),
        ({"LICENSE": "MIT License\n\nCopyright"}, "mit"),
        ({"LICENSE": "Do what you like."}, "as its file LICENSE says"),
        ({}, "not stated"),
    ],
)
def test_the_licence_of_the_base(tmp_path: Path, files: dict[str, str], licence: str) -> None:
    from align.export.card import licence_of

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(str(tmp_path), None) == licence


def test_a_card_is_kept_and_its_header_set(tmp_path: Path) -> None:
    from align.export.card import exported_card

    about = {"kind": "merged", "base_model": "some/model", "licence": "mit", "dtype": "bfloat16", "notes": ["it fits"]}
    about["files"] = {"model.safetensors": {"bytes": 1200, "sha256": "ab12"}}
    text = "---\nlibrary_name: peft\nbase_model:\n- /home/me/model\ntags:\n- x\n---\n# Mine\n\nHand-written.\n"
    card = exported_card(text, about)
    data = ModelCard(card).data
    assert (data.library_name, data.base_model, data.license, data.tags) == ("transformers", "some/model", "mit", ["x"])
    assert card.endswith(
        "# Mine\n\nThe adapter that this card speaks of is merged into its model: the weights here are whole.\n\n"
        "Hand-written.\n\n## Files\n\nAll weights, the adapter merged into them, bfloat16. Licence of the base model: "
        "mit.\nIt fits.\n\n| file | bytes | sha256 |\n|---|---|---|\n| model.safetensors | 1,200 | `ab12` |\n"
    )
    assert exported_card(card, about) == card


# ---- in another process


@pytest.mark.slow
def test_an_export_that_loads_as_another_model_is_not_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.export import export

    def damaged(model: Any, part: Path, shards: str | None) -> None:
        model.save_pretrained(part)
        weights = load_file(part / "model.safetensors")
        weights["model.norm.weight"] *= 1.001
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "_save", damaged)
    with pytest.raises(UserError, match=r"loads by transformers alone, but as another model, so it is not kept"):
        export_run(world / "adapter", tmp_path / "out", merge=True, say=silent)
    assert list(tmp_path.iterdir()) == []


def test_the_program_of_the_load_check_cannot_import_align(tmp_path: Path) -> None:
    import subprocess
    import sys

    from align.export.loads import _PROGRAM

    for stand_in in ("torch", "transformers"):
        (tmp_path / f"{stand_in}.py").write_text("")
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").touch()
    (tmp_path / "safetensors" / "torch.py").write_text("load_file = None")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(_PROGRAM)!r}); import align"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: import of align halted; None in sys.modules"
