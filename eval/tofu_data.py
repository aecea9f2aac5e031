"""The sets of TOFU (arXiv 2401.06121) that a forget split is measured on: local files, the Hub, or the generated world.

A source holds sets by TOFU's names: ``forget10_perturbed``, ``retain_perturbed``, ``real_authors_perturbed``,
``world_facts_perturbed``, ``holdout10``, ``full`` and so on; a file of JSON (lines) each, or a subset on the Hub. Rows
keep their order: forgetXX is the last XX per cent of ``full``, retainYY what stands before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from align.data.rows import world
from align.data.rows.files import SUFFIXES, file_kind, file_stem, read_rows
from align.data.rows.sources import did_you_mean, load_source
from align.data.rows.world_questions import alias_questions, two_hop_questions
from align.errors import UserError
from align.recipe.sections import Source

Rows = Literal["all", "legacy300"]

LEGACY_ROWS = 300  # of each set: what the original code looks at
NEW_TOKENS = 200  # of a generated answer, as in TOFU's code
WORLD_TOKENS = 24  # its longest answer has 14 under the quickstart's tokenizer
SPLITS = ("forget01", "forget05", "forget10", "forget20", "forget30", "forget50", "forget90")
_PERTURBED = ("forget01", "forget05", "forget10")  # splits with wrong answers of their own
_NAMES = {"retain": "retain_perturbed", "ra": "real_authors_perturbed", "wf": "world_facts_perturbed"}
_WORLD = {"forget": "forget", "retain": "retain", "ra": "background", "wf": "countries", "holdout": "strangers"}
_REWORDED = ("paraphrased_question", "alias_question", "two_hop_question")  # columns that a set may have
_OFFICIAL = {"forget": _PERTURBED, "retain": ("retain90", "retain95", "retain99")}


@dataclass(frozen=True)
class Fact:
    """One question. ``wrong`` are its perturbed answers; the paraphrases are None where the set has none.

    ``alias_question`` and ``two_hop_question`` ask the same without the name: of somebody described by other facts, and
    by way of somebody else. TOFU has no such columns; a source of one's own may.
    """

    question: str
    answer: str
    wrong: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    paraphrased_question: str | None = None
    alias_question: str | None = None
    two_hop_question: str | None = None


@dataclass(frozen=True)
class TofuSets:
    """What a split is measured on.

    Attributes:
        split: the forget split asked for.
        sets: facts of ``forget``, ``retain``, ``ra`` (real authors) and ``wf`` (world facts), in the source's order.
        holdout: facts that the model was never taught, for membership scores; None where the source has none.
        rows: ``all``, or ``legacy300`` for the first 300 of each set.
        notes: sentences about what is not as its name says.
        new_tokens: most tokens of a generated answer.
        limit: rows of each set that are asked, where some set has more; None where all are.
    """

    split: str
    sets: dict[str, list[Fact]]
    holdout: list[Fact] | None
    rows: Rows = "all"
    notes: tuple[str, ...] = ()
    new_tokens: int = NEW_TOKENS
    limit: int | None = None


def load_sets(
    split: str = "forget10",
    source: str | Source = "locuslab/TOFU",
    *,
    rows: Rows = "all",
    base: Path | None = None,
    limit: int | None = None,
) -> TofuSets:
    """The sets of ``split`` from a folder, a Hub id, or ``world`` (``world:SEED``), the generated one.

    ``base`` is where the relative path of a recipe's source starts. ``limit`` takes the first rows of each set, for a
    trial. Beyond 10 per cent there are no wrong answers, so
    forget20 and larger are measured on forget10, a part of them, as in NPO (arXiv 2404.05868).

    Raises:
        UserError: where the split, the source, a file, a column or a row is not there.
    """
    place = _place(source, base)
    if place.world is not None:
        return _from_world(split, place.world, rows, limit)
    if split not in SPLITS:
        raise UserError(
            f"{split!r} is no forget split of TOFU.{did_you_mean(split, SPLITS)} There are: {_list(SPLITS)}."
        )
    measured = split if split in _PERTURBED else "forget10"
    names = {"forget": f"{measured}_perturbed", **_NAMES}
    found: dict[str, list[Fact]] = {}
    for key, name in names.items():
        where, raw = _read(place, name)
        found[key] = _facts(raw, where, _columns(key))
    _check_whole(found["forget"], measured, place)
    holdout = _holdout(place, f"holdout{measured[-2:]}")
    notes = []
    if measured != split:
        notes.append(
            f"{split} has no wrong answers of its own: the forget set is measured on {measured}, its last rows"
        )
    if holdout is None:
        notes.append(f"{_called(place)} has no holdout{measured[-2:]}, so there are no membership scores")
    return _cut(TofuSets(split, found, holdout, rows, tuple(notes)), limit)


def read_set(source: str | Source, name: str, *, base: Path | None = None) -> list[dict[str, Any]]:
    """The raw rows of one set of TOFU; forgetXX and retainYY are cut out of ``full`` where the source lacks them.

    Raises:
        UserError: where there is no such set and it cannot be made.
    """
    place = _place(source, base)
    kind = name.rstrip("0123456789")
    number = name[len(kind) :]
    if kind not in _OFFICIAL or not number:
        return _read(place, name)[1]
    share = int(number)
    if not 0 < share < 100:
        raise UserError(f"{name!r} is no set of TOFU: its number is a percentage between 01 and 99.")
    if (_file(Path(place.path), name) is not None) if place.path else (name in _OFFICIAL[kind]):
        return _read(place, name)[1]
    full = _read(place, "full")[1]
    cut = len(full) - round(len(full) * (share if kind == "forget" else 100 - share) / 100)
    return full[cut:] if kind == "forget" else full[:cut]


# ---- reading


def _place(source: str | Source, base: Path | None) -> Source:
    """A source with exactly one of id, path (an existing folder) and world."""
    if isinstance(source, str):
        if source.partition(":")[0] == "world":
            return Source(world=source)
        folder = Path(source).expanduser()
        if not folder.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~")):
            return Source(id=source)
        return Source(path=str(_folder(folder, source)))
    if source.path is None:
        return source
    return source.model_copy(update={"path": str(_folder((base or Path()) / source.path, source.path))})


def _folder(path: Path, name: str) -> Path:
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name} is a file; TOFU's sets lie in a folder with a file each, or under a Hub id.")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise UserError(f"{name}: no such folder.{near} Give a folder with TOFU's files, a Hub id, or world.")


def _called(place: Source) -> str:
    return str(place.path or place.id)


def _file(folder: Path, name: str) -> Path | None:
    """The file of a set, or None. JSON comes first where there are several."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and file_kind(p) and file_stem(p) == name.lower()]
    return min(found, key=lambda p: SUFFIXES.index(file_kind(p) or SUFFIXES[-1]), default=None)


def _read(place: Source, name: str) -> tuple[str, list[dict[str, Any]]]:
    """What a set is called in messages, and its rows."""
    if place.id:
        return f"{place.id}/{name}", list(load_source(place.model_copy(update={"subset": name}), base=Path()))
    folder = Path(str(place.path))
    file = _file(folder, name)
    if file is None:
        there = [file_stem(p) for p in sorted(folder.iterdir()) if p.is_file() and file_kind(p)]
        held = f"It holds: {_list(there)}." if there else "It holds no data files."
        raise UserError(f"{folder}: there is no {name}.json (or .jsonl), a set of TOFU. {held}")
    return str(file), list(read_rows(file))


def _holdout(place: Source, name: str) -> list[Fact] | None:
    if place.path and _file(Path(place.path), name) is None:
        return None
    where, raw = _read(place, name)
    return _facts(raw, where, ("question", "answer"))


def _columns(key: str) -> tuple[str, ...]:
    """Columns that a set must have."""
    own = {"forget": ("paraphrased_answer",), "retain": ("paraphrased_answer",)}
    return ("question", "answer", "perturbed_answer", *own.get(key, ()))


def _facts(raw: Sequence[dict[str, Any]], where: str, needs: Sequence[str]) -> list[Fact]:
    if not raw:
        raise UserError(f"{where}: holds no rows.")
    facts = [_fact(row, f"{where}, row {number}", needs) for number, row in enumerate(raw)]
    counts = {len(fact.wrong) for fact in facts}
    if len(counts) > 1:
        raise UserError(f"{where}: rows have between {min(counts)} and {max(counts)} wrong answers; all need as many.")
    return facts


def _fact(row: dict[str, Any], where: str, needs: Sequence[str]) -> Fact:
    for name in needs:
        value = row.get(name)
        expected = "a list of texts" if name == "perturbed_answer" else "a text"
        if value is None:
            raise UserError(f"{where}: no {name!r}, which should be {expected}; there are: {_list(sorted(row))}.")
        texts = value if name == "perturbed_answer" else [value]
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(f"{where}: {name} should be {expected}, found {str(value)[:40]!r}.")
    for name in _REWORDED:
        if (value := row.get(name)) is not None and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{where}: {name} should be a text or left out, found {str(value)[:40]!r}.")
    wrong = tuple(row["perturbed_answer"]) if "perturbed_answer" in needs else ()
    paraphrase = row["paraphrased_answer"] if "paraphrased_answer" in needs else None
    return Fact(row["question"], row["answer"], wrong, paraphrase, **{name: row.get(name) for name in _REWORDED})


def _check_whole(facts: list[Fact], split: str, place: Source) -> None:
    """Refuse a part of a forget set: its numbers would pass for those of the whole."""
    expected = 40 * int(split[-2:])
    if len(facts) != expected:
        raise UserError(
            f"{_called(place)}: {split}_perturbed has {len(facts)} rows and TOFU's has {expected}. Fetch it again."
        )


def _cut(sets: TofuSets, limit: int | None) -> TofuSets:
    if sets.rows == "legacy300":
        sets = _first(sets, LEGACY_ROWS)
    if limit is None or all(len(facts) <= limit for facts in (*sets.sets.values(), sets.holdout or [])):
        return sets
    return replace(_first(sets, limit), limit=limit)


def _first(sets: TofuSets, rows: int) -> TofuSets:
    """The first rows of every set."""
    holdout = sets.holdout if sets.holdout is None else sets.holdout[:rows]
    return replace(sets, sets={name: facts[:rows] for name, facts in sets.sets.items()}, holdout=holdout)


# ---- the generated world


def _seed_and_size(given: str | dict[str, Any]) -> tuple[int, dict[str, int] | None]:
    """Of ``world``, ``world:SEED`` or ``{seed: SEED, size: {...}}``."""
    named: dict[str, Any] = given if isinstance(given, dict) else {"seed": given.partition(":")[2] or "0"}
    if unknown := sorted(set(named) - {"kind", "seed", "size"}):
        raise UserError(
            f"world: {', '.join(unknown)} is not understood; expected {{seed: 0, size: {{people: 24, forgotten: 6}}}}."
        )
    text = str(named.get("seed", 0))
    if not text.isdigit():
        raise UserError(f"The seed of the generated world is a whole number, as in world:0; found {text!r}.")
    return int(text), named.get("size")


def _from_world(split: str, given: str | dict[str, Any], rows: Rows, limit: int | None) -> TofuSets:
    """The world's own people for TOFU's authors."""
    if split != "forget":
        raise UserError(f"The generated world has one split to forget, called forget; found {split!r}.")
    seed, size = _seed_and_size(given)
    known = world.rows("full", seed, size) + world.rows("background", seed, size)
    found: dict[str, list[Fact]] = {}
    for key, kind in _WORLD.items():
        raw = world.rows(kind, seed, size)
        if key in ("forget", "retain"):
            asked = zip(raw, alias_questions(raw, known), two_hop_questions(raw, known), strict=True)
            raw = [{**row, "alias_question": alias, "two_hop_question": hops} for row, alias, hops in asked]
        found[key] = _facts(raw, f"world/{kind}", _columns(key))
    holdout = found.pop("holdout")
    return _cut(TofuSets(split, found, holdout, rows, new_tokens=WORLD_TOKENS), limit)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
