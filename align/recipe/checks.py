"""Settings that are each valid and wrong together. Every complaint says which of them to change, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from align.objectives.base import LABELLED, MISMATCH, reads_labels
from align.outside.limits import LARGEST
from align.recipe.checks_online import online_checks
from align.recipe.checks_reward import reward_checks
from align.recipe.checks_unlearning import branches_of, objective_of, unlearning_checks
from align.recipe.messages import Path, Problem, shown, unknown_choice

# train.report_to: (what to import, any of them; what to install). Otherwise it fails only once the model is loaded.
_TRACKERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml.core",), "azureml-core"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": ((), ""),
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}


def cross_checks(raw: Any) -> list[Problem]:
    """All contradictions in a recipe given as plain values. Parts of the wrong type are skipped: others report them."""
    if not isinstance(raw, Mapping):
        return []
    return [problem for check in _CHECKS for problem in check(raw)]


def impossible_values(raw: Mapping[str, Any]) -> list[Problem]:
    """Values that nothing could hold or print, wherever they stand: no other check should meet them."""
    problems = []
    for path, value in _leaves(raw, ()):
        if isinstance(value, int) and abs(value) > LARGEST:
            problems.append(Problem(path, f"must be between -{LARGEST:,} and {LARGEST:,}, got {shown(value)}."))
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            problems.append(Problem(path, "holds half of a surrogate pair, which is no character; remove it."))
    return problems


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, Mapping | list):
        yield path, value
        return
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(item, (*path, key))


def _section(raw: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    value: Any = raw
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _sources(raw: Mapping[str, Any], name: str) -> list[tuple[Path, Mapping[str, Any]]]:
    value = _section(raw, "data").get(name)
    if isinstance(value, Mapping):
        return [(("data", name), value)]
    if isinstance(value, list):
        return [(("data", name, i), item) for i, item in enumerate(value) if isinstance(item, Mapping)]
    return []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _source(raw: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for name in ("train", "forget", "retain", "held_out"):
        for path, source in _sources(raw, name):
            given = [key for key in ("id", "path", "world") if source.get(key) is not None]
            if not given:
                problems.append(Problem(path, "says no source; give one of id, path and world."))
            elif len(given) > 1:
                problems.append(Problem(path, f"gives {' and '.join(given)}; keep one of them."))
            elif given != ["id"]:
                hub = [key for key in ("subset", "revision") if source.get(key) is not None]
                problems += [Problem((*path, key), f"only a Hub dataset has a {key}; remove it.") for key in hub]
    return problems


def _streaming(raw: Mapping[str, Any]) -> list[Problem]:
    steps = _number(_section(raw, "train").get("max_steps"))
    problems = []
    for path, source in _sources(raw, "train"):
        if source.get("streaming") is True and (steps is None or steps <= 0):
            problems.append(
                Problem((*path, "streaming"), "a stream has no end that could be known; set train.max_steps.")
            )
    for name, what in (("held_out", "held-out"), ("forget", "forgotten"), ("retain", "retained")):
        for path, source in _sources(raw, name):
            if source.get("streaming") is True:
                text = f"{what} rows must be countable; set rows: 500 instead of streaming."
                problems.append(Problem((*path, "streaming"), text))
    return problems


def _labelled(raw: Mapping[str, Any]) -> list[Problem]:
    """What an objective on labelled answers cannot have."""
    branches = branches_of(raw.get("objective")) or set()
    if not reads_labels(branches):
        return []
    problems = []
    if others := sorted(branches - {*LABELLED, MISMATCH}):
        text = f"reads {' and '.join(others)} beside labelled answers, and no row has both; leave that part out, or "
        problems.append(Problem(("objective",), f"{text}let its branch be desirable or undesirable."))
    for path, source in _sources(raw, "train"):
        if source.get("streaming") is True:
            text = "labels are counted and answers compared with those of other rows; set rows: 10000 instead."
            problems.append(Problem((*path, "streaming"), text))
    if _section(raw, "reference").get("rows") is not None:
        problems.append(Problem(("reference", "rows"), "labelled answers bring no log-probs along; remove this."))
    return problems


def _convex(raw: Mapping[str, Any]) -> list[Problem]:
    """ConvexDA rewrites texts of training pairs, all of which are there before training starts."""
    data = _section(raw, "data")
    if data.get("convex") is None:
        return []
    here: Path = ("data", "convex")
    if data.get("forget") is not None:
        return [Problem(here, "rewrites training pairs, and data.forget has none; remove it.")]
    if raw.get("rounds") is not None:
        return [Problem(here, "rewrites training pairs, and rounds make their own; remove it.")]
    objective = objective_of(raw.get("objective"))
    if objective is not None and not {"chosen", "rejected"} <= (branches_of(raw.get("objective")) or set()):
        return [Problem(here, "rewrites both answers of pairs, and the objective compares no pairs; remove it.")]
    text = "data.convex compares all texts before training; set rows: 10000 instead of streaming."
    streamed = [path for path, source in _sources(raw, "train") if source.get("streaming") is True]
    return [Problem((*path, "streaming"), text) for path in streamed]


def _held_out(raw: Mapping[str, Any]) -> list[Problem]:
    if _section(raw, "data").get("held_out") is not None:
        return []
    train = _section(raw, "train")
    cure = "needs rows to evaluate on; add data.held_out."
    problems = []
    if train.get("eval_strategy") not in (None, "no", False):
        problems.append(Problem(("train", "eval_strategy"), cure))
    elif train.get("eval_steps") is not None:
        problems.append(Problem(("train", "eval_steps"), cure))
    for name in ("eval_on_start", "load_best_model_at_end"):
        if train.get(name) is True:
            problems.append(Problem(("train", name), cure))
    return problems


def _best_model(raw: Mapping[str, Any]) -> list[Problem]:
    train = _section(raw, "train")
    if train.get("load_best_model_at_end") is not True:
        return []
    problems = []
    if train.get("save_strategy") in ("no", False):
        problems.append(Problem(("train", "save_strategy"), "load_best_model_at_end needs checkpoints; remove 'no'."))
    if train.get("eval_strategy") in ("no", False):
        problems.append(Problem(("train", "eval_strategy"), "load_best_model_at_end needs evaluations; remove 'no'."))
    return problems


def _quantised(raw: Mapping[str, Any]) -> list[Problem]:
    model = _section(raw, "model")
    if model.get("load_in") is None or model.get("lora") is not None:
        return []
    return [Problem(("model", "load_in"), "quantised weights cannot be trained themselves; add model.lora: {}.")]


def _adapter(raw: Mapping[str, Any]) -> list[Problem]:
    lora = _section(raw, "model", "lora")
    model = _section(raw, "model")
    if model.get("lora") is not None and model.get("train_only") is not None:
        return [
            Problem(("model", "train_only"), "an adapter is trained instead of weights; remove model.lora or this.")
        ]
    if lora.get("adapter") is None:
        return []
    own = [key for key in ("rank", "alpha", "dropout", "targets", "modules_to_save") if key in lora]
    return [Problem(("model", "lora", key), f"an existing adapter has its own {key}; remove it.") for key in own]


def _reference(raw: Mapping[str, Any]) -> list[Problem]:
    reference, model = _section(raw, "reference"), _section(raw, "model")
    problems = []
    if reference.get("strategy") == "adapter_off" and model.get("lora") is None:
        problems.append(
            Problem(("reference", "strategy"), "there is no adapter to switch off; add model.lora, or use copy.")
        )
    if reference.get("strategy") == "copy" and model.get("load_in") is not None:
        problems.append(Problem(("reference", "strategy"), "quantised weights are not copied; use adapter_off."))
    if reference.get("sync_every") is not None and model.get("lora") is not None:
        problems.append(
            Problem(("reference", "sync_every"), "the reference of an adapter cannot move; remove model.lora or this.")
        )
    objective = objective_of(raw.get("objective"))
    if reference.get("sync_every") is not None and objective is not None and not objective.needs_reference:
        text = "the objective has no reference that could move; remove this."
        problems.append(Problem(("reference", "sync_every"), text))
    if reference.get("sync_mix") is not None and reference.get("sync_every") is None:
        problems.append(Problem(("reference", "sync_mix"), "the reference does not move; set reference.sync_every."))
    if reference.get("store") is False and reference.get("store_dir") is not None:
        problems.append(Problem(("reference", "store_dir"), "the store is switched off; remove store: false or this."))
    return problems


def _precision(raw: Mapping[str, Any]) -> list[Problem]:
    model, train = _section(raw, "model"), _section(raw, "train")
    problems = []
    if train.get("bf16") is True and train.get("fp16") is True:
        problems.append(Problem(("train", "fp16"), "bf16 is on too; keep one of them, bf16 where the device has it."))
    if model.get("dtype") == "float16" and model.get("lora") is None and train.get("fp16") is True:
        text = "gradients of float16 weights cannot be scaled; train.fp16: true needs float32 weights."
        problems.append(Problem(("model", "dtype"), text))
    return problems


def _lengths(raw: Mapping[str, Any]) -> list[Problem]:
    data = _section(raw, "data")
    if "max_length" in data and data["max_length"] is None and data.get("truncation") not in (None, "drop"):
        return [Problem(("data", "truncation"), "no row is too long while max_length is null; set a max_length.")]
    return []


def _compiled(raw: Mapping[str, Any]) -> list[Problem]:
    train = _section(raw, "train")
    if train.get("torch_compile_mode") is None or train.get("torch_compile") is True:
        return []
    return [Problem(("train", "torch_compile_mode"), "has no effect without train.torch_compile: true.")]


def _trackers(raw: Mapping[str, Any]) -> list[Problem]:
    given = _section(raw, "train").get("report_to")
    here, problems = ("train", "report_to"), []
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str) or (name in ("all", "none") and not isinstance(given, list)):
            continue  # those two stand alone; a wrong type is reported elsewhere
        if name not in _TRACKERS:
            problems.append(Problem(here, unknown_choice(name, ("none", "all", *_TRACKERS))))
            continue
        modules, package = _TRACKERS[name]
        if modules and not any(map(_importable, modules)):
            problems.append(Problem(here, f"{name} is not installed: pip install {package}."))
    return problems


def _importable(module: str) -> bool:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None  # a folder of that name, left by a tracker, has no origin


def _watch(raw: Mapping[str, Any]) -> list[Problem]:
    watch = _section(raw, "watch")
    problems = []
    if watch.get("prompts") and watch.get("generate_every") is None:
        problems.append(Problem(("watch", "prompts"), "no generation is asked for; set watch.generate_every."))
    if watch.get("generate_every") is not None and not watch.get("prompts"):
        problems.append(Problem(("watch", "generate_every"), "there is nothing to answer; list watch.prompts."))
    if watch.get("live") is True and watch.get("report") is False:
        problems.append(Problem(("watch", "live"), "it rewrites the report, and watch.report: false wants none."))
    if watch.get("stop_on_drop") is True and watch.get("probe_pairs") == 0:
        problems.append(Problem(("watch", "stop_on_drop"), "no pair is followed; set watch.probe_pairs above 0."))
    return problems


def _output(raw: Mapping[str, Any]) -> list[Problem]:
    output = _section(raw, "output")
    if output.get("private") is False and output.get("push") is None:
        return [Problem(("output", "private"), "there is nothing to push; set output.push: USER/NAME.")]
    return []


_CHECKS: tuple[Callable[[Mapping[str, Any]], list[Problem]], ...] = (
    _source,
    _streaming,
    _labelled,
    _convex,
    _held_out,
    _best_model,
    _quantised,
    _adapter,
    _reference,
    _precision,
    _lengths,
    _compiled,
    _trackers,
    _watch,
    _output,
    unlearning_checks,
    online_checks,
    reward_checks,
)
