"""The store of reference log-probs: computed once, never believed when damaged, never used for another model."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from training import history, pairs, trainer, weights
from zoo import own_rows, tiny_model, token_ids, tree_batch

from align.data.batches.collator import TreeCollator
from align.engine.layout import Branch, Tree
from align.engine.scoring import attach
from align.objectives import DPO, IPO, KL, NLL, Hinge, WeightedSum
from align.reference.digest import model_digest
from align.reference.store import LogProbStore, sequence_key

PAIR = ("chosen", "rejected")
KEY = "0" * 64


def first_run(folder: Path, **options: Any) -> Any:
    made = trainer(folder / "first", DPO(0.3), store_dir=folder / "store", **options)
    made.train()
    made.reference.store.flush()
    return made


def second_run(folder: Path, objective: Any = None, **options: Any) -> Any:
    made = trainer(folder / "second", objective or DPO(0.3), store_dir=folder / "store", **options)
    made.train()
    return made


def files(folder: Path) -> list[Path]:
    return sorted((folder / "store").rglob("*.safetensors"))


# ---- what it saves


def test_other_rates_objectives_batch_sizes_and_orders_compute_nothing(tmp_path: Path) -> None:
    first = first_run(tmp_path)
    assert first.reference.rows_computed >= 40
    assert len(first.reference.store) == 40
    changes: list[tuple[Any, dict[str, Any]]] = [
        (DPO(0.3), {}),
        (DPO(0.05), {"learning_rate": 0.5, "optim": "adamw_torch", "weight_decay": 0.1}),
        (IPO(), {"per_device_train_batch_size": 3, "max_steps": 5}),
        (WeightedSum(((Hinge(), 1.0), (NLL(), 0.3))), {"gradient_accumulation_steps": 2, "seed": 7}),
        (DPO(0.3), {"order": lambda epoch: range(19, -1, -1), "max_tokens_per_microbatch": 40}),
        (DPO(0.3), {"rows": pairs(20).shuffle(seed=1), "eval_dataset": pairs(20).select(range(5))}),
    ]
    for objective, options in changes:
        again = second_run(tmp_path, objective, **options)
        assert again.reference.rows_computed == 0
        assert again.reference.model is None  # no second model in memory either
        assert again.reference.store.rows_read > 0
        if "eval_dataset" in options:
            again.evaluate()
            assert again.reference.rows_computed == 0
    assert len(files(tmp_path)) == 1


def test_a_run_from_the_store_is_the_run_with_the_model(tmp_path: Path) -> None:
    first_run(tmp_path)
    # another step size, or both would have seen the very same batches
    options = {"per_device_train_batch_size": 4, "max_steps": 4}
    live = trainer(tmp_path / "live", DPO(0.3), **options)
    live.train()
    stored = second_run(tmp_path, **options)
    for expected, found in zip(history(live, "loss", "grad_norm"), history(stored, "loss", "grad_norm"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert (weights(stored) - weights(live)).abs().max() < 1e-5


def test_it_holds_what_the_model_says(tmp_path: Path) -> None:
    first_run(tmp_path)
    model, rows = tiny_model(), pairs(20)
    store = LogProbStore(tmp_path / "store", model_digest(model, adapters=True, compute_dtype="float32"))
    batch = TreeCollator(PAIR)([dict(r) for r in rows])["tree"]
    for (tree, branch), expected in zip(batch.branches(), own_rows(model, batch), strict=True):
        stored = store.get(sequence_key(tree, branch))
        assert stored.dtype == np.float32
        assert stored.shape == (len(branch.ids),)
        assert np.allclose(stored, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_new_rows_are_computed_and_known_ones_are_not(tmp_path: Path) -> None:
    first_run(tmp_path, rows=pairs(20).select(range(12)), max_steps=2)
    more = second_run(tmp_path, per_device_train_batch_size=1, max_steps=20)
    # one pair a step, so that no known row shares a batch with a new one; the first batch may be one of them
    assert more.reference.rows_computed in (16, 18)
    assert len(more.reference.store) == 40
    more.reference.store.flush()
    assert second_run(tmp_path).reference.rows_computed == 0
    assert len(files(tmp_path)) == 2


def test_evaluation_rows_count_as_rows(tmp_path: Path) -> None:
    first = first_run(tmp_path, eval_dataset=pairs(6, seed=4))
    first.evaluate()
    first.reference.store.flush()
    assert len(first.reference.store) == 52
    again = second_run(tmp_path, eval_dataset=pairs(6, seed=4))
    again.evaluate()
    assert again.reference.rows_computed == 0


def test_full_distributions_are_not_stored(tmp_path: Path) -> None:
    objective = WeightedSum(((DPO(), 1.0), (KL(), 0.1)))
    made = trainer(tmp_path, objective, store_dir=tmp_path / "store", max_steps=1)
    assert made.reference.store is None
    made.train()
    assert not files(tmp_path)


# ---- what it belongs to


def one_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3


def rope_scaling(model: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5000.0}
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)


def norm_epsilon(model: Any) -> None:
    model.config.rms_norm_eps = 1e-3


@pytest.mark.parametrize("change", [one_weight, rope_scaling, norm_epsilon])
def test_another_model_computes_everything(change: Callable[[Any], None], tmp_path: Path) -> None:
    first_run(tmp_path)
    model = tiny_model()
    change(model)
    other = second_run(tmp_path, model=model)
    assert other.reference.rows_computed >= 40
    other.reference.store.flush()
    assert len({path.parent for path in files(tmp_path)}) == 2


def test_another_compute_type_computes_everything(tmp_path: Path) -> None:
    first_run(tmp_path)
    assert second_run(tmp_path, bf16=True).reference.rows_computed >= 40
    assert second_run(tmp_path, model=tiny_model(dtype=torch.bfloat16)).reference.rows_computed >= 40


def adapted(seed: int) -> Any:
    model = tiny_model()
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def test_an_adapter_belongs_to_a_reference_that_wears_it(tmp_path: Path) -> None:
    first_run(tmp_path, model=adapted(0))
    assert second_run(tmp_path, model=adapted(0)).reference.rows_computed == 0
    assert second_run(tmp_path, model=adapted(1)).reference.rows_computed >= 40


def test_a_fresh_adapter_shares_the_store_of_its_base(tmp_path: Path) -> None:
    first_run(tmp_path)
    for rank in (2, 4):
        adapter = LoraConfig(r=rank, target_modules="all-linear")
        assert second_run(tmp_path, peft_config=adapter).reference.rows_computed == 0


def test_the_digest_does_not_depend_on_wrapping_or_on_what_is_inert() -> None:
    model = tiny_model()
    digest = model_digest(model, adapters=True, compute_dtype="float32")
    attached = tiny_model()
    attach(attached)
    attached.config._name_or_path = "elsewhere/else"
    attached.config.use_cache = False
    assert model_digest(attached, adapters=True, compute_dtype="float32") == digest
    assert model_digest(torch.nn.DataParallel(model), adapters=True, compute_dtype="float32") == digest
    bare = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert model_digest(bare, adapters=False, compute_dtype="float32") == digest
    assert model_digest(bare, adapters=True, compute_dtype="float32") != digest
    assert model_digest(model, adapters=True, compute_dtype="bfloat16") != digest


def test_the_digest_sees_persistent_buffers_alone() -> None:
    model = tiny_model()
    model.register_buffer("kept", torch.zeros(3))
    model.register_buffer("made", torch.zeros(3), persistent=False)
    digest = model_digest(model, adapters=True, compute_dtype="float32")
    model.made[0] = 1.0
    assert model_digest(model, adapters=True, compute_dtype="float32") == digest
    model.kept[0] = 1.0
    assert model_digest(model, adapters=True, compute_dtype="float32") != digest


def test_the_digest_does_not_depend_on_the_order_of_sets() -> None:
    # an adapter's configuration holds sets of names, whose order differs from one process to the next
    names = ["q_proj", "v_proj", *(f"absent_{i}" for i in range(200))]
    digests, orders = [], []
    for given in (names, names[::-1]):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=given)
        orders.append(list(config.target_modules))
        digests.append(model_digest(get_peft_model(tiny_model(), config), adapters=True, compute_dtype="float32"))
    assert orders[0] != orders[1]
    assert digests[0] == digests[1]


# ---- keys


def test_keys_tell_prompt_answer_and_mask_apart() -> None:
    ids = token_ids(0)(6)
    keys = {
        sequence_key(Tree(ids[:p], ()), Branch("chosen", ids[p:], mask))
        for p, mask in ((2, None), (3, None), (3, [1, 1, 0]), (3, [1, 1, 1]))
    }
    assert len(keys) == 4
    same = sequence_key(Tree(tuple(ids[:3]), ()), Branch("rejected", np.array(ids[3:]), index=5))
    assert same == sequence_key(Tree(ids[:3], ()), Branch("chosen", ids[3:]))
    assert len(same) == 32


# ---- files


def filled(folder: Path, seeds: tuple[int, ...] = (1,), say: Callable[[str], None] = print) -> LogProbStore:
    store = LogProbStore(folder, KEY, {"model": "tiny"}, say)
    for seed in seeds:
        for i, (tree, branch) in enumerate(tree_batch(seed).branches()):
            store.put([sequence_key(tree, branch)], [len(branch.ids)], torch.full((len(branch.ids),), -float(seed) - i))
    store.flush()
    return store


def contents(store: LogProbStore) -> dict[bytes, list[float]]:
    return {key: store.get(key).tolist() for key in store if key in store}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    written = filled(tmp_path)
    read = LogProbStore(tmp_path, KEY)
    assert contents(read) == contents(written)
    assert read.rows_read == len(read) == 8
    assert json.loads((read.folder / "about.json").read_text()) == {"model": "tiny"}
    assert not list(read.folder.glob("*.tmp"))
    written.flush()  # nothing new, nothing written
    assert len(list(read.folder.glob("*.safetensors"))) == 1
    assert len(LogProbStore(tmp_path, "1" * 64)) == 0


def flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 0x10]) + content[-2:]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda b: b[: len(b) // 2], lambda b: b[:4], lambda b: b"", lambda b: b"not a safetensors file" * 9],
    ids=["flipped", "truncated", "stump", "empty", "other"],
)
def test_damage_is_said_and_the_rest_is_kept(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    good, sentences = filled(tmp_path, (1,)), []
    filled(tmp_path, (2,))
    broken = sorted(set(good.folder.glob("*.safetensors")) - {good.folder / n for n in good._seen})[0]
    broken.write_bytes(damage(broken.read_bytes()))
    read = LogProbStore(tmp_path, KEY, say=sentences.append)
    assert contents(read) == contents(good)
    assert len(sentences) == 1
    assert f"{broken.name} is damaged" in sentences[0]
    assert "its rows will be computed again" in sentences[0]
    assert not broken.exists()


def test_a_run_computes_again_what_was_damaged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first_run(tmp_path)
    (path,) = files(tmp_path)
    path.write_bytes(flip(path.read_bytes()))
    again = second_run(tmp_path)
    assert "is damaged" in capsys.readouterr().out
    assert again.reference.rows_computed >= 40
    again.reference.store.flush()
    assert second_run(tmp_path).reference.rows_computed == 0


def test_two_writers_and_a_reader_at_the_same_time(tmp_path: Path) -> None:
    said: list[str] = []
    stop = threading.Event()
    reader = LogProbStore(tmp_path, KEY, say=said.append)

    def read() -> None:
        while not stop.is_set():
            reader.refresh()

    def write(seeds: tuple[int, ...]) -> None:
        store = LogProbStore(tmp_path, KEY, say=said.append)
        for seed in seeds:
            for i, (tree, branch) in enumerate(tree_batch(seed).branches()):
                store.put(
                    [sequence_key(tree, branch)], [len(branch.ids)], torch.full((len(branch.ids),), -float(seed) - i)
                )
            store.flush()

    # they overlap in 3 and 4, which both write with the same content under the same name
    threads = [threading.Thread(target=write, args=(s,)) for s in ((1, 2, 3, 4), (4, 3, 5, 6))]
    watching = threading.Thread(target=read)
    for thread in (watching, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watching.join()
    reader.refresh()
    assert not said
    expected = contents(filled(tmp_path / "alone", (1, 2, 3, 4, 5, 6)))
    assert contents(reader) == expected == contents(LogProbStore(tmp_path, KEY))


def test_what_another_process_adds_is_seen_after_a_refresh(tmp_path: Path) -> None:
    early = LogProbStore(tmp_path, KEY)
    late = filled(tmp_path)
    assert len(early) == 0
    early.refresh()
    assert contents(early) == contents(late)


def test_a_crash_while_writing_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = filled(tmp_path, say=said.append)
    before = contents(copy.copy(store))
    tree, branch = tree_batch(9).branches()[0]
    store.put([sequence_key(tree, branch)], [len(branch.ids)], torch.zeros(len(branch.ids)))

    def crash(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", crash)
    store.flush()
    store.flush()
    monkeypatch.undo()
    assert said == [
        f"reference store: {store.folder} cannot be written (no space left on device); what is computed is not kept "
        "there."
    ]
    assert contents(LogProbStore(tmp_path, KEY)) == before
    assert not list(store.folder.glob("*.tmp"))
    store.flush()  # nothing was forgotten
    assert len(LogProbStore(tmp_path, KEY)) == len(before) + 1


def test_many_rows_reach_the_disk_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.reference import store as store_module

    monkeypatch.setattr(store_module, "_FLUSH_ROWS", 3)
    store = LogProbStore(tmp_path, KEY)
    for tree, branch in tree_batch().branches():  # 8 of them
        store.put([sequence_key(tree, branch)], [len(branch.ids)], torch.zeros(len(branch.ids)))
    assert len(LogProbStore(tmp_path, KEY)) == 6


# ---- a cache: what is wrong with it ends no run


def named(number: int, start: bytes = b"") -> bytes:
    return start + hashlib.sha256(bytes([number])).digest()[len(start) :]


def put(store: LogProbStore, *numbers: int, start: bytes = b"") -> None:
    for number in numbers:
        store.put([named(number, start)], [2], torch.tensor([-float(number), 0.5]))


def test_a_folder_that_cannot_be_made_is_said_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file")
    live = trainer(tmp_path / "live", DPO(0.3), max_steps=4)
    live.train()
    made = trainer(tmp_path / "made", DPO(0.3), store_dir=tmp_path / "store", max_steps=4)
    made.train()
    made.reference.store.flush()
    assert history(made, "loss", "grad_norm") == history(live, "loss", "grad_norm")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reference store")]
    assert said == [
        f"reference store: {made.reference.store.folder} cannot be written (Not a directory); what is computed is not "
        "kept there."
    ]


def test_a_run_outlives_the_folder_that_it_reads_from(tmp_path: Path) -> None:
    first_run(tmp_path)
    options = {"per_device_train_batch_size": 4, "max_steps": 4}
    expected = second_run(tmp_path, **options)
    made = trainer(tmp_path / "third", DPO(0.3), store_dir=tmp_path / "store", **options)
    assert made.reference.model is None
    shutil.rmtree(tmp_path / "store")
    made.train()
    assert history(made, "loss", "grad_norm") == history(expected, "loss", "grad_norm")
    assert made.reference.rows_computed == 0


def test_a_disk_that_is_full_is_tried_again_with_later_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.reference import store as module

    tries: list[int] = []

    def full(folder: Path, keys: Any, rows: Any) -> Path:
        tries.append(len(keys))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    monkeypatch.setattr(module, "_FLUSH_ROWS", 2)
    monkeypatch.setattr(module, "_MOST_IN_MEMORY", 6)
    store, real = LogProbStore(tmp_path, KEY, say=said.append), module.write
    monkeypatch.setattr(module, "write", full)
    put(store, 1, 2, 3, 4, 5)
    assert tries == [2, 4]  # not at every row
    assert store.get(named(3)).tolist() == [-3.0, 0.5]
    put(store, 6)
    assert tries == [2, 4, 6]
    assert (len(store), named(3) in store) == (0, False)  # memory holds so many and no more
    assert said == [
        f"reference store: {store.folder} cannot be written (No space left on device); what is computed is not kept "
        "there."
    ]
    put(store, 7)
    monkeypatch.setattr(module, "write", real)
    put(store, 8)
    assert sorted(LogProbStore(tmp_path, KEY)) == sorted([named(7), named(8)])


def test_rows_are_found_among_many_files_and_keys_that_begin_alike(tmp_path: Path) -> None:
    store = LogProbStore(tmp_path, KEY)
    alike = b"12345678"  # as much as the index holds of a key
    put(store, 1, 2, 3, start=alike)
    store.flush()
    put(store, 4, 5, start=alike)
    put(store, 6)
    store.flush()
    other = LogProbStore(tmp_path, KEY)  # writes a row that the first one has, too
    other._index = type(other._index)([])
    put(other, 2, start=alike)
    other.flush()
    read = LogProbStore(tmp_path, KEY)
    for number, start in ((1, alike), (2, alike), (3, alike), (4, alike), (5, alike), (6, b"")):
        assert read.get(named(number, start)).tolist() == [-float(number), 0.5]
    wanted = [named(2, alike), named(7, alike), named(6), named(7)]
    found = read.stored(np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, 32))
    assert found.tolist() == [True, False, True, False]
    assert named(7, alike) not in read
    with pytest.raises(KeyError):
        read.get(named(7))


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    keys = sorted(named(number) for number in (1, 2))
    tensors = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(2, 32).copy(),
        "ends": np.array([1, 3]),
        "values": np.array([-1.0, -2.0, -3.0], np.float32),
    }
    digest = hashlib.sha256()
    for name in ("ends", "keys", "values"):
        digest.update(name.encode() + tensors[name].tobytes())
    (tmp_path / KEY[:32]).mkdir()
    save_file(tensors, tmp_path / KEY[:32] / "old.safetensors", metadata={"digest": digest.hexdigest()})
    read = LogProbStore(tmp_path, KEY)
    assert [read.get(key).tolist() for key in keys] == [[-1.0], [-2.0, -3.0]]


def test_memory_holds_sixteen_bytes_of_a_row_on_disk(tmp_path: Path) -> None:
    store = LogProbStore(tmp_path, KEY)
    keys = [hashlib.sha256(number.to_bytes(4, "little")).digest() for number in range(5000)]
    store.put(keys, [60] * 5000, torch.zeros(300_000))
    store.flush()
    assert (len(store), store._new, store._packs) == (5000, {}, [])
    arrays = [value for value in vars(store._index).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 16 * 5000


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    folder = LogProbStore(tmp_path, KEY).folder
    for name, age in (("old.tmp", 4000), ("new.tmp", 10)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    LogProbStore(tmp_path, KEY)
    assert [path.name for path in folder.iterdir()] == ["new.tmp"]
