"""recipes/README.md and the lines ``plan`` in the headers of recipes, written from the recipes and the planner.

``make docs`` runs this file. Names, methods, models, data, hardware, targets and measurements are read from recipes and
their headers. Memory and time are computed by the model of ``align plan``, without a network: shapes of models and
numbers of rows stand in recipes/published.py, and every row is counted as long as its recipe allows.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from align.cli.markdown import table
from align.data.rows.sources import source_name
from align.objectives.base import reads_labels
from align.plan.device import named
from align.plan.longest import longest_rows, with_steps
from align.plan.plan import Plan, on, plan_of
from align.plan.shares import Launch
from align.recipe import Recipe, load_recipe, packaged_recipes, recipes_folder
from align.recipes.published import ROWS, SHAPES
from align.report.progress import duration
from align.runs.launcher import configuration
from align.runs.quiet import quieten, without_device_notice

PAGE = "README.md"
BEGIN = "<!-- table: begin; written by `make docs`, do not edit -->\n"
END = "<!-- table: end -->\n"
NOT_YET = "not yet measured"
# memory of a GPU that a header asks for: the chip that is planned for
CHIPS: Mapping[int, str] = {24: "A10G", 40: "A100-40GB", 80: "H100"}
_HEAD = ("recipe", "method", "model", "data", "hardware", "memory", "time", "target", "measured")
_TEXT = 13  # the column in which the words of a header begin, behind a keyword


class Hardware(NamedTuple):
    """So many GPUs of so many gigabytes each; no GPU is a CPU."""

    gpus: int
    gigabytes: int = 0

    @property
    def options(self) -> str:
        """Those of ``align plan`` for such a machine."""
        return f"{'--on zero3 --processes 8 ' if self.gpus > 1 else ''}--device {CHIPS[self.gigabytes]}"


# ---- headers


def header(text: str) -> dict[str, str]:
    """What the header of a recipe says by keyword, the lines of each as one; ``title`` is what stands before them."""
    found: dict[str, list[str]] = {}
    key = "title"
    for line in text.split("\nname:")[0].splitlines():
        said = line.removeprefix("#")
        if line.startswith("#   "):
            key = line[4:_TEXT].strip() or key
            said = line[_TEXT:]
        said, *time = re.split(r"\s+time  ", said, maxsplit=1)  # a CPU's stands on the same line
        found.setdefault(key, []).append(said.strip())
        if time:
            found["time"] = [time[0].strip()]
    return {key: " ".join(lines) for key, lines in found.items()}


def hardware(said: str) -> Hardware:
    """What a header ``needs``. Raises ValueError where that does not begin with GPUs and their memory, or a CPU."""
    if (gpus := re.match(r"(\d+) GPUs? with (\d+) GB\b", said)) is not None:
        return Hardware(int(gpus[1]), int(gpus[2]))
    if said.startswith("a CPU"):
        return Hardware(0)
    raise ValueError(f"needs {said!r}; expected '8 GPUs with 80 GB', '1 GPU with 40 GB' or 'a CPU' at its start.")


def with_plan(text: str, lines: str) -> str:
    """A recipe's text with these lines before its time, in place of those that it has."""
    before, mark, after = re.sub(r"#   plan .*\n(?:#            .*\n)*", "", text).partition("#   time ")
    if not mark:
        raise ValueError("the header has no line '#   time', before which its plan belongs.")
    return before + lines + mark + after


# ---- plans


def rows_of(recipe: Recipe) -> int | None:
    """Examples of an epoch, or of one round; None where nobody counts them before they are prepared."""
    rows = 0
    for source in recipe.data.rows:
        count = ROWS.get(source_name(source))
        if count is None:
            return None
        rows += min(count, source.rows or count)
    if recipe.rounds is not None:
        rows = recipe.rounds.prompts or rows // recipe.rounds.count
    return rows * (2 if reads_labels(recipe.objective_value().branches) else 1)  # whose pairs are taken apart


def planned(recipe: Recipe, shape: Mapping[str, object], wanted: Hardware) -> Plan:
    """The plan of a recipe for a model of a shape; of one in rounds it is that of the training of one round."""
    launch = Launch("one process", 1, "one")
    if wanted.gpus > 1:
        launch = on(configuration("zero3"), wanted.gpus)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        made = recipe.model_copy(update={"model": recipe.model.model_copy(update={"id": folder})})
        made = with_steps(made, rows_of(recipe) or 1, launch.processes)
        return plan_of(made, longest_rows(), launch, named(CHIPS[wanted.gigabytes]))


def plan_lines(name: str, text: str) -> str:
    """The lines ``plan`` of a recipe's header; none of one for a CPU, whose time is measured.

    Raises ValueError where the recipe does not fit on what it needs.
    """
    wanted = hardware(header(text)["needs"])
    if not wanted.gpus:
        return ""
    recipe = load_recipe(name)
    plan = planned(recipe, SHAPES[recipe.model.id], wanted)
    if not plan.fits:
        raise ValueError(f"{name} needs {plan.memory.total / 2**30:.0f} GiB, more than {plan.device.name} has.")
    said = f"{plan.memory.total / 2**30:.0f} GiB{' each' if wanted.gpus > 1 else ''}"
    if rows_of(recipe) is not None:
        rounds = 1 if recipe.rounds is None else recipe.rounds.count
        said += f", {duration(max(60, rounds * plan.time.seconds))} of training"
    said += ": computed for rows of data.max_length tokens. For the rows as they are:"
    return f"#   plan     {said}\n#            align plan {name} {wanted.options}\n"


# ---- the page


def recipes_table() -> str:
    """One row for each packaged recipe, from the recipes and their headers alone."""
    return table(_HEAD, [_row(name, file) for name, file in packaged_recipes().items()], code=False)


def _row(name: str, file: Path) -> tuple[str, ...]:
    recipe, said = load_recipe(name), header(file.read_text(encoding="utf-8"))
    wanted = hardware(said["needs"])
    memory, time = "", said["time"]
    if wanted.gpus:
        found = re.match(r"(\d+ GiB)(?: each)?(?:, (.+?) of training)?:", said["plan"])
        assert found is not None, f"{name}: {said['plan']}"  # plan_lines wrote it
        memory, time = found[1], found[2] or "unknown"
    machine = f"{wanted.gpus} x {wanted.gigabytes} GB" if wanted.gpus else "CPU"
    return (
        f"[{name}]({name}.yaml)",
        _method(recipe),
        _model(recipe),
        _data(recipe),
        machine,
        memory,
        time,
        *_ends(said),
    )


def _method(recipe: Recipe) -> str:
    """The objectives by name, and rounds."""
    names = " + ".join(f"`{part.name}`" for part in recipe.objective)
    return names if recipe.rounds is None else f"{names}, {recipe.rounds.count} rounds"


def _model(recipe: Recipe) -> str:
    adapter = "" if recipe.model.lora is None else ", LoRA"
    return ("the quickstart's" if recipe.model.id.startswith("runs/quickstart/") else recipe.model.id) + adapter


def _data(recipe: Recipe) -> str:
    """Data sets of the Hub that are trained on; what is not from there is made on the spot."""
    found = dict.fromkeys("/".join(filter(None, (source.id, source.subset))) for source in recipe.data.rows)
    return ", ".join(name or "the quickstart's" for name in found)


def _ends(said: Mapping[str, str]) -> tuple[str, str]:
    """The cells of the target and of what was measured; a header ``expects`` the first until there is the second."""
    if not said["expect"].startswith(NOT_YET):
        return "", said["expect"]
    return said["expect"].removeprefix(NOT_YET).lstrip("; ") or "none is known", NOT_YET


def page(text: str) -> str:
    """The page with its table as recipes are now. Raises ValueError where it has no marks for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"recipes/{PAGE} needs the lines {BEGIN!r} and {END!r}; the table goes between them.")
    return f"{before}{BEGIN}\n{recipes_table()}\n{END}{after}"


def main() -> None:
    """Write the plans of all headers, then the page."""
    without_device_notice()
    quieten(True)
    for name, file in packaged_recipes().items():
        text = file.read_text(encoding="utf-8")
        if lines := plan_lines(name, text):
            file.write_text(with_plan(text, lines), encoding="utf-8")
    readme = recipes_folder() / PAGE
    readme.write_text(page(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the plans of the headers and {readme}")


if __name__ == "__main__":
    main()
