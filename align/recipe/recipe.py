"""A recipe: one YAML file that says everything about a run.

It is read strictly. An unknown key, a wrong type, an impossible value or a contradiction is an error that names the
line; all errors of a file come together, before torch is imported or a weight is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from align.errors import UserError
from align.objectives import OBJECTIVES, Objective
from align.outside.files import name_problem
from align.recipe.checks import cross_checks, impossible_values
from align.recipe.locked import unlocked
from align.recipe.messages import ALIASES, Problem, did_you_mean, dotted, sentence
from align.recipe.objective import Code, Part, combined, parse_objective
from align.recipe.sampling import SECTIONS, Judge, Rounds, Sampling, Select
from align.recipe.sections import Data, Evaluate, Model, Output, Reference, Section, Watch, _or_empty
from align.recipe.train_defaults import precision_problem, train_defaults
from align.recipe.train_keys import LAYERS, OURS, check_train, spelled, train_keys
from align.recipe.yaml import Document, override, parse_file, refusal

if TYPE_CHECKING:
    from align.compat import Config

_LONGEST_NAME = 200  # of the 255 bytes that a file system takes; some names are made of it
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
_MISSING = {
    ("name",): "missing; it names the run and its directory.",
    ("model",): "missing; it says which model to train, as in model: {id: NAME_OR_FOLDER}.",
    ("model", "id"): "missing; it is a Hub id or a folder.",
    ("data",): "missing; it says where the rows are, as in data: {train: {path: pairs.jsonl}}.",
    ("objective",): "missing; it says what to optimise, as in objective: {name: dpo}.",
}


def _report(info: ValidationInfo, problems: list[Problem]) -> None:
    """Hand problems to whoever validates, or raise them as one error where nobody collects."""
    if not problems:
        return
    if info.context is None:
        raise ValueError(" ".join(f"{dotted(problem.path)}: {problem.text}" for problem in problems))
    info.context.extend(problems)


def _objective(raw: Any, info: ValidationInfo) -> tuple[Part, ...]:
    parts, problems = parse_objective(raw)
    _report(info, problems)
    return parts


def _as_output(raw: Any) -> Any:
    """A path alone stands for a mapping with it."""
    return {"path": raw} if isinstance(raw, str) else _or_empty(raw)


def _train(raw: Any, info: ValidationInfo) -> dict[str, Any]:
    _report(info, check_train(_or_empty(raw)))
    return dict(raw or {}) if isinstance(raw, Mapping | None) else {}


def _dump_parts(parts: tuple[Part, ...]) -> Any:
    return parts[0].dump() if len(parts) == 1 else [part.dump() for part in parts]


class Recipe(Section):
    """Everything about one run. Make one with ``load_recipe``, or with ``Recipe.from_dict`` from plain values."""

    name: str = Field(
        pattern=_NAME, max_length=_LONGEST_NAME, description="names the run; letters, digits, '.', '_', '+', '-'"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the row order, the mixture and new weights")
    model: Model
    data: Data
    objective: Annotated[Any, PlainValidator(_objective), PlainSerializer(_dump_parts)] = Field(
        description="one objective with its fields, or a list of them, each with a weight"
    )
    reference: Annotated[Reference, BeforeValidator(_or_empty)] = Reference()
    train: Annotated[dict[str, Any], PlainValidator(_train)] = Field(
        default_factory=dict, description="names of transformers.TrainingArguments"
    )
    watch: Annotated[Watch, BeforeValidator(_or_empty)] = Watch()
    evaluate: Evaluate | None = Field(None, description="a test suite to run before, while and after training")
    sampling: Sampling | None = Field(None, description="completions that the policy draws for online objectives")
    judge: Judge | None = Field(None, description="who scores or compares those completions")
    select: Select | None = Field(None, description="which of them are trained on")
    rounds: Rounds | None = Field(None, description="sample, judge, select and train so many times")
    output: Annotated[Output, BeforeValidator(_as_output)] = Field(
        Output(), description="the run directory, or a mapping with it and where the model is pushed"
    )

    _path: Path | None = PrivateAttr(None)
    _run: Path | None = PrivateAttr(None)

    @field_validator("output")
    @classmethod
    def _placeholders(cls, value: Output) -> Output:
        path = value.path
        if re.search(r"[{}]", path.replace("{name}", "")):
            raise ValueError(f"the only placeholder is {{name}}, got {path!r}.")
        place = Path(path).resolve()
        if place == Path.home() or place in (*Path.home().parents, *Path.cwd().parents):
            raise ValueError(
                f"a run needs a folder of its own, and {path} holds everything else. Try {Path(path) / 'NAME'}."
            )
        return value

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Recipe:
        if info.context is None:  # otherwise load_recipe checks the plain values, and even where a type is wrong
            _report(info, cross_checks({**self.model_dump(exclude_unset=True), "objective": self.objective}))
        return self

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], *, name: str = "recipe", base: Path | None = None, allow_code: bool = False
    ) -> Recipe:
        """A recipe from plain values. Raises UserError with all mistakes; ``name`` is what they call the source.

        ``base`` is the folder that relative paths are looked up in, by default the working directory; ``allow_code``
        says whether an objective of the user's may be imported.
        """
        recipe = _validated(Document(name, dict(raw)), Code(base or Path.cwd(), allow_code))
        recipe._path = None if base is None else base / name
        return recipe

    @property
    def path(self) -> Path | None:
        """The file this recipe was read from, if any."""
        return self._path

    @property
    def base(self) -> Path:
        """The folder that relative paths in the recipe are looked up in."""
        return self._path.parent if self._path else Path.cwd()

    @property
    def output_dir(self) -> Path:
        """The run directory."""
        return Path(self.output.path.replace("{name}", self.name))

    def of_its_run(self) -> Recipe:
        """The recipe to go on with: one that was read from a lock file goes on where that lies, moved or not."""
        if self._run is None:
            return self
        return self.model_copy(update={"output": self.output.model_copy(update={"path": str(self._run)})})

    @property
    def max_tokens_per_microbatch(self) -> int | None:
        """Most tokens in one packed micro-batch, or None for one batch as it comes."""
        return self.train.get("max_tokens_per_microbatch")

    @property
    def layers(self) -> dict[str, Any]:
        """What the ``train`` section says of how layers compute."""
        return {key: self.train[key] for key in LAYERS if key in self.train}

    def objective_value(self) -> Objective:
        """The objective; a ``WeightedSum`` for a list or for a weight other than 1."""
        return combined(self.objective)

    def dump(self) -> dict[str, Any]:
        """All resolved values as plain YAML types; loading them gives an equal recipe."""
        dumped = self.model_dump(mode="python")
        if self.output.push is None:
            dumped["output"] = self.output.path
        lora = dumped["model"]["lora"]
        if lora and lora["adapter"] is not None:  # the adapter brings the rest
            dumped["model"]["lora"] = {"adapter": lora["adapter"]}
        if dumped["data"]["retain"] is None:  # nobody is anyone's partner
            del dumped["data"]["partner"]
        if dumped["reference"]["sync_every"] is None:  # what does not move has no mix
            del dumped["reference"]["sync_mix"]
        return dumped

    def train_values(self) -> dict[str, Any]:
        """The ``train`` section over our defaults. Imports torch."""
        objective = self.objective_value()
        defaults = train_defaults(
            self.train,
            pairs=objective.compares_pairs and not objective.scores_answers,
            adapter=self.model.lora is not None,
            held_out=self.data.held_out is not None,
            rounds=self.rounds is not None,
        )
        return {**defaults, **self.train}

    def training_arguments(self, output_dir: str | Path | None = None, **extra: Any) -> Config:
        """TRL's configuration of this run: our defaults, then the ``train`` section, then ``extra``.

        Imports torch. Raises UserError where this machine has no device for a precision, or transformers refuses.
        """
        from align.compat import RewardConfig, SFTConfig, training_config

        given = {key: value for key, value in self.train_values().items() if key not in OURS}
        arguments = {"seed": self.seed, "run_name": self.name, **given, **extra}
        arguments["output_dir"] = str(output_dir or self.output_dir)
        where = _shown(self._path) if self._path else "recipe"
        if problem := precision_problem(arguments):
            raise UserError(f"{where}  {problem}")
        try:
            return training_config(RewardConfig if self.objective_value().scores_answers else SFTConfig, **arguments)
        except (UserError, ValueError, TypeError, KeyError, ImportError) as error:
            what = str(error).strip().removeprefix("train: ").split("\n")[0]
            raise UserError(f"{where}  train: transformers refuses these settings: {what}") from error


def load_recipe(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, allow_code: bool = False) -> Recipe:
    """Read a recipe file, or a packaged recipe by its short name such as ``preference/dpo-tldr-pythia-1b``.

    Args:
        path: the file, which may be a run's lock file, or the short name.
        overrides: ``key=value`` texts, as on the command line; later ones win.
        allow_code: whether an objective of the user's, such as ``my_losses:MyLoss``, may be imported.

    Raises:
        UserError: with every mistake of the file and the overrides, each with its line.
    """
    file = find_recipe(path)
    name = _shown(file)
    document = parse_file(file, name)
    locked = unlocked(document)
    base = locked or file.resolve().parent
    elsewhere = False
    for item in overrides:
        override(document, item)
        elsewhere = elsewhere or item.partition("=")[0] in ("name", "output", "output.path")
    recipe = _validated(document, Code(base, allow_code))
    recipe._path = base / file.name
    recipe._run = file.parent if locked and not elsewhere else None
    return recipe


def _shown(file: Path) -> str:
    """A file as messages call it: relative where it is below the working directory."""
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _validated(document: Document, code: Code) -> Recipe:
    raw = document.value
    if raw is None or not isinstance(raw, dict):
        what = "is empty" if raw is None else "is not a mapping of keys"
        raise UserError(f"{document.name}  the recipe {what}. Try: align list recipes.\n1 error, nothing was run.")
    if impossible := impossible_values(raw):
        raise refusal(document, [*document.problems, *impossible])
    if isinstance(raw.get("train"), Mapping):
        raw = raw | {"train": spelled(raw["train"])}
    problems = list(document.problems)
    if ("model", "lora") in document.bare:
        problems.append(Problem(("model", "lora"), "empty; write lora: {} for the defaults, or lora: null for none."))
    own: list[Problem] = []
    if "objective" in raw:
        parts, own = parse_objective(raw["objective"], code)
        raw = raw | {"objective": parts}
    known = raw if not own else raw | {"objective": None}  # of a faulty objective nothing is known
    recipe = None
    try:
        recipe = Recipe.model_validate(raw, context=own)
    except ValidationError as error:
        problems += [Problem(*_explained(entry)) for entry in error.errors(include_url=False)]
    problems += own + cross_checks(known)
    if problems or recipe is None:
        raise refusal(document, problems)
    return recipe


def _explained(entry: Any) -> tuple[tuple[str | int, ...], str]:
    """Path and sentence of one pydantic error."""
    path = tuple(entry["loc"])
    section = tuple(part for part in path[:-1] if isinstance(part, str))
    if entry["type"] == "missing":
        text = _MISSING.get(tuple(p for p in path if isinstance(p, str)), "missing.")
        return (path[:-1] or path, f"{path[-1]} is {text}") if len(path) > 1 else (path, text)
    if entry["type"] == "string_pattern_mismatch" and path == ("name",):
        return path, f"a run directory is named after it: letters, digits, '.', '_', '+', '-'; got {entry['input']!r}."
    misplaced = entry["type"] == "extra_forbidden" and len(path) == 1 and path[0] not in ALIASES[""]
    if misplaced and (below := _below(str(path[0]))):
        return path, f"unknown key. Did you mean {below!r}?"
    model = SECTIONS.get(section, Recipe if not section else None)
    alias = None if model is None else "" if model is Recipe else model.__name__.lower()
    return path, sentence(entry, model.model_fields if model else (), alias)


def _below(word: str) -> str | None:
    """The dotted key of a section that ends in ``word``; what stands at the top level by mistake belongs there."""
    if any(word in cls.__dataclass_fields__ for cls in OBJECTIVES.values()):
        return f"objective.{word}"
    sections = (dotted((*path, word)) for path, section in SECTIONS.items() if word in section.model_fields)
    return next(sections, f"train.{word}" if word in train_keys() else None)


# --- packaged recipes -------------------------------------------------------------------------------------------------


def recipes_folder() -> Path:
    """Where the packaged recipes are: ``align.recipes`` as installed, or the folder of a checkout."""
    spec = find_spec("align.recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """Short name to file of every packaged recipe; launcher configurations are not recipes."""
    folder = recipes_folder()
    files = sorted(file for file in folder.glob("*/*.yaml") if file.parent.name != "accelerate")
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def find_recipe(path: str | os.PathLike[str]) -> Path:
    """The file that ``path`` names: itself, or a packaged recipe by its short name. Raises UserError."""
    file = Path(path)
    if (problem := name_problem(str(path))) is not None:
        raise UserError(f"{str(path)[:60]}...  no file can be called so: {problem}.")
    if file.is_file():
        return file
    known = packaged_recipes()
    short = file.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if short in known:
        return known[short]
    meant = did_you_mean(short, known)
    if file.is_dir():
        raise UserError(f"{file}  is a folder; name a recipe file in it.")
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise UserError(f"{file}  no such file or packaged recipe.{hint} All: align list recipes.")


__all__ = ["Recipe", "find_recipe", "load_recipe", "packaged_recipes", "recipes_folder"]
