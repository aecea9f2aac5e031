"""Loading rows from every kind of source, and the sentence for every kind of fault."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, disable_progress_bars
from sample_rows import pair, real

from align.data.rows import world
from align.data.rows.sources import from_rows, load_source, quiet_hub, source_name
from align.errors import UserError

disable_progress_bars()

ROWS = [pair(), pair("It is", " a", " b"), pair("Who", " x", " y")]


def source(**fields):
    """A recipe's source section, with its defaults."""
    defaults = {"id": None, "path": None, "world": None, "subset": None, "split": "train", "revision": None}
    defaults |= {"columns": {}, "system": None, "weight": 1.0, "rows": None, "streaming": False}
    return SimpleNamespace(**(defaults | fields))


def load(folder: Path, name: str, **fields):
    return load_source(source(path=name, **fields), base=folder)


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbered(rows):
    return [row | {"row": index} for index, row in enumerate(rows)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(lines(ROWS), encoding="utf-8")
    return tmp_path


class TestFormatsOfFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jsonl", lines(ROWS)),
            ("a.ndjson", "\n" + lines(ROWS).replace("\n", "\n\n")),
            ("a.json", lines(ROWS)),  # as TOFU's files are
            ("a.json", json.dumps(ROWS)),
            ("a.json", json.dumps(ROWS, indent=2)),
            ("a.json", json.dumps({"data": ROWS}, indent=2)),
            ("a.json", "\ufeff" + json.dumps({"rows": ROWS})),
            (
                "a.csv",
                "prompt,chosen,rejected\r\n"
                + "".join(f'"{r["prompt"]}","{r["chosen"]}","{r["rejected"]}"\r\n' for r in ROWS),
            ),
            (
                "a.tsv",
                "prompt\tchosen\trejected\n"
                + "".join(f"{r['prompt']}\t{r['chosen']}\t{r['rejected']}\n" for r in ROWS),
            ),
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_text_files(self, tmp_path, name, text, packed, streaming):
        data = text.encode()
        path = tmp_path / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
        dataset = load(tmp_path, path.name, streaming=streaming)
        assert isinstance(dataset, IterableDataset if streaming else Dataset)
        assert list(dataset) == numbered(ROWS)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_parquet(self, tmp_path, streaming):
        Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
        (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
        assert list(load(tmp_path, "a.parquet", streaming=streaming)) == numbered(ROWS)
        assert list(load(tmp_path, "b.parquet.gz", streaming=streaming)) == numbered(ROWS)

    def test_one_row_over_several_lines(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=1))
        assert list(load(tmp_path, "a.json")) == numbered(ROWS[:1])

    def test_a_column_called_data_is_no_wrapper(self, tmp_path):
        rows = [{"data": [1]}, {"data": [2]}]
        (tmp_path / "a.jsonl").write_text(lines(rows))
        assert list(load(tmp_path, "a.jsonl")) == numbered(rows)

    def test_fields_longer_than_the_csv_module_allows(self, tmp_path):
        (tmp_path / "a.csv").write_text('text\n"' + "x" * 200_000 + '"\n')
        assert len(load(tmp_path, "a.csv")[0]["text"]) == 200_000

    def test_rows_with_different_columns_and_types(self, tmp_path):
        rows = [{"prompt": "a", "x": 1}, {"prompt": "b", "x": "one", "y": {"k": 1}}, {"prompt": 3}]
        (tmp_path / "a.jsonl").write_text(lines(rows))
        dataset = load(tmp_path, "a.jsonl")
        assert dataset.column_names == ["prompt", "x", "y", "row"]
        assert dataset["prompt"][:] == ["a", "b", 3]
        assert dataset["x"][:] == [1, "one", None]

    def test_real_files(self):
        assert len(load(real("tofu/forget01.json").parent, "forget01.json")) == 40
        demo = real("text/llamafactory_dpo_en_demo.json.gz")
        assert load(demo.parent, demo.name).column_names == ["conversations", "chosen", "rejected", "row"]


class TestFolders:
    def test_all_files_of_a_folder_in_order_of_name(self, tmp_path):
        (tmp_path / "b.jsonl").write_text(lines(ROWS[2:]))
        (tmp_path / "a.json").write_text(json.dumps(ROWS[:2]))
        (tmp_path / "README.md").write_text("not data")
        assert list(load_source(source(path="."), base=tmp_path)) == numbered(ROWS)

    def test_splits_by_file_name(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train-00000-of-00002.jsonl").write_text(lines(ROWS[:1]))
        (tmp_path / "data" / "train-00001-of-00002.jsonl").write_text(lines(ROWS[1:2]))
        (tmp_path / "data" / "test.jsonl").write_text(lines(ROWS[2:]))
        assert list(load(tmp_path, ".")) == numbered(ROWS[:2])
        assert list(load(tmp_path, ".", split="test")) == numbered(ROWS[2:])
        with pytest.raises(UserError, match=r"no file of split 'tset'. Did you mean 'test'\? There are: test, train."):
            load(tmp_path, ".", split="tset")

    def test_a_folder_with_a_test_split_only_is_not_taken_for_training(self, tmp_path):
        (tmp_path / "test.jsonl").write_text(lines(ROWS))
        with pytest.raises(UserError, match=r"no file of split 'train'. There are: test."):
            load(tmp_path, ".")

    def test_no_data_files(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no data files; expected some of .json, .jsonl"):
            load(tmp_path, ".")

    def test_saved_data_sets(self, tmp_path):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        DatasetDict({"train": from_rows(ROWS[:2]), "test": from_rows(ROWS[2:])}).save_to_disk(tmp_path / "many")
        assert list(load(tmp_path, "one")) == numbered(ROWS)
        assert list(load(tmp_path, "one", streaming=True)) == numbered(ROWS)
        assert list(load(tmp_path, "many", split="test")) == numbered(ROWS[2:])
        with pytest.raises(UserError, match=r"no split 'dev'. There are: train, test."):
            load(tmp_path, "many", split="dev")
        with pytest.raises(UserError, match="one data set without splits; leave out split: dev"):
            load(tmp_path, "one", split="dev")


class TestFaultyFiles:
    @pytest.mark.parametrize(
        ("name", "data", "sentence"),
        [
            ("a.jsonl", b'{"a": 1}\n{"a": 2\n', r"a.jsonl:2: not valid JSON at column 8 .*one JSON object per line"),
            ("a.jsonl", b'{"a": 1}\n\n[1, 2]\n', r"a.jsonl:3: holds a list; expected an object with named columns"),
            ("a.jsonl", b'{"a": 1}\n"text"\n', r"a.jsonl:2: holds a str; expected an object"),
            ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl:1: not UTF-8 text \(byte 7 of the line\)"),
            ("a.jsonl", b'{"a": "\\ud83d"}\n', r"a.jsonl:1: holds half of a surrogate pair"),
            ("a.json", b'[{"a": 1},\n {"a": 2},\n {"a" 3}]', r"a.json:3: not valid JSON at column 7"),
            ("a.json", b'[{"a": 1}, 2]', r"a.json: element 1: holds a int; expected an object"),
            ("a.json", b'{\n "a": 1,\n}', r"a.json:1: not valid JSON"),
            ("a.jsonl", b"\n\n", r"a.jsonl: holds no rows"),
            ("a.csv", b"a,b\n1,2\n3\n", r"a.csv:3: has 1 fields, but the header has 2 \(a, b\)"),
            ("a.csv", b"a,a\n1,2\n", r"a.csv:1: the header names a twice"),
            ("a.csv", b'a,b\n1,"2\n', r"a.csv:2: not valid CSV"),
            ("a.csv", b"a,b\n", r"a.csv: holds no rows"),
            (
                "a.jsonl.gz",
                gzip.compress(b'{"a": 1}\n' * 9999, mtime=0)[:-20],
                r"a.jsonl.gz: broken gzip data after \d+ rows",
            ),
            ("a.jsonl.gz", b'{"a": 1}\n', r"a.jsonl.gz: broken gzip data after 0 rows \(Not a gzipped file"),
            ("a.parquet", b"PAR1 no", r"a.parquet: not a readable Parquet file"),
            ("a.txt", b"words", r"a.txt: cannot tell the format from the name; expected one of .json, .jsonl"),
        ],
    )
    def test_the_sentence_names_file_and_line(self, tmp_path, name, data, sentence):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            load(tmp_path, name)
        with pytest.raises(UserError, match=sentence):
            list(load(tmp_path, name, streaming=True))

    def test_no_such_file(self, folder):
        with pytest.raises(UserError, match=r"pair.jsonl: no such file or folder. Did you mean 'pairs.jsonl'\?"):
            load(folder, "pair.jsonl")

    def test_a_file_has_no_splits(self, folder):
        with pytest.raises(UserError, match="a single file has no splits; leave out split: test"):
            load(folder, "pairs.jsonl", split="test")


class TestColumns:
    def test_renaming(self, folder):
        dataset = load(folder, "pairs.jsonl", columns={"question": "prompt", "chosen": "chosen"})
        assert dataset.column_names == ["chosen", "rejected", "question", "row"]
        assert dataset["question"][:] == [row["prompt"] for row in ROWS]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_swapping_and_using_a_column_twice(self, folder, streaming):
        columns = {"chosen": "rejected", "rejected": "chosen", "copy": "chosen"}
        first = next(iter(load(folder, "pairs.jsonl", columns=columns, streaming=streaming)))
        assert first == {"prompt": "The sky is", "chosen": " green.", "rejected": " blue.", "copy": " blue.", "row": 0}

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_missing_column(self, folder, streaming):
        sentence = (
            r"pairs.jsonl: columns.chosen is 'choosen', but there is no such column. Did you mean 'chosen'\? "
            r"The columns are: prompt, chosen, rejected."
        )
        with pytest.raises(UserError, match=sentence):
            load(folder, "pairs.jsonl", columns={"chosen": "choosen"}, streaming=streaming)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_first_rows(self, folder, streaming):
        assert list(load(folder, "pairs.jsonl", rows=2, streaming=streaming)) == numbered(ROWS[:2])
        assert len(list(load(folder, "pairs.jsonl", rows=9, streaming=streaming))) == 3

    def test_slices_of_a_split(self, folder):
        assert load(folder, "pairs.jsonl", split="train[1:]")["prompt"][:] == ["It is", "Who"]
        assert load(folder, "pairs.jsonl", split="train[:34%]")["prompt"][:] == ["The sky is"]
        assert load(folder, "pairs.jsonl", split="train[-1:]", rows=1)["prompt"][:] == ["Who"]
        with pytest.raises(UserError, match=r"split: 'train\[1' is not understood"):
            load(folder, "pairs.jsonl", split="train[1")
        with pytest.raises(UserError, match="cannot be sliced while streaming; use rows:"):
            load(folder, "pairs.jsonl", split="train[1:]", streaming=True)

    def test_a_row_column_of_theirs_gives_way(self, tmp_path):
        (tmp_path / "a.jsonl").write_text(lines([{"text": "a", "row": "x"}, {"text": "b", "row": "y"}]))
        assert load(tmp_path, "a.jsonl")["row"][:] == [0, 1]


class TestOtherSources:
    def test_the_hub_while_offline(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            UserError, match=r"some/pairs: not in the local cache, and the network is switched off .*`path:`"
        ):
            load_source(source(id="some/pairs"), base=tmp_path)

    @pytest.mark.parametrize(("kind", "seed"), [("full", 0), ("forget", 0), ("forget", 3)])
    def test_the_generated_world(self, tmp_path, kind, seed):
        asked = kind if seed == 0 else {"kind": kind, "seed": seed}
        dataset = load_source(source(world=asked, columns={"prompt": "question"}, rows=5), base=tmp_path)
        assert dataset["prompt"][:] == [row["question"] for row in world.rows(kind, seed)[:5]]
        assert source_name(source(world=asked)) == f"world/{kind}"

    def test_a_world_that_is_not_understood(self, tmp_path):
        with pytest.raises(UserError, match="Known kinds: full"):
            load_source(source(world="fool"), base=tmp_path)
        with pytest.raises(UserError, match=r"world: \{'sed': 3\} is not understood; expected world: KIND"):
            load_source(source(world={"sed": 3}), base=tmp_path)

    def test_exactly_one_source(self, tmp_path):
        with pytest.raises(UserError, match="exactly one of id, path and world; found none of them"):
            load_source(source(), base=tmp_path)
        with pytest.raises(UserError, match="found id and world"):
            load_source(source(id="a", world="full"), base=tmp_path)


def test_retries_of_the_hub_are_not_told():
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    with quiet_hub():
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert logger.level == before
