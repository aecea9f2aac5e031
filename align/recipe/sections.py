"""The sections of a recipe. Every field's description is what `align explain` and docs/config.md print."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from align.outside.files import name_problem
from align.recipe.messages import expected
from align.recipe.template_arguments import argument_problem

Truncation = Literal["drop", "keep_start", "keep_end", "prompt_left", "split"]


def _without_tilde(value: str) -> str:
    """A path with the home folder in place of a leading ``~`` or ``~USER``."""
    path = os.path.expanduser(value)
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(
            f"{user} stands for a user's home folder, and there is none. Write ./{path} for a name with ~."
        )
    return path


def _possible(value: str) -> str:
    if (problem := name_problem(value)) is not None:
        raise ValueError(f"no file can be called so: {problem}.")
    return value


# a file, a folder, or a name that may be one: a leading ~ is the home folder, here and nowhere else
Place = Annotated[str, AfterValidator(_without_tilde), AfterValidator(_possible)]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors; no value changes but the ~ of a path."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _text_or_list(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return value
    raise PydanticCustomError("align", "{text}", {"text": expected("text or a list of texts", value)})


def _sources(value: Any) -> Any:
    """One source stands for a list of one."""
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, Mapping | Source):
        return [value]
    raise PydanticCustomError("align", "{text}", {"text": expected("a mapping such as {path: FILE}, or a list", value)})


def _renderable(value: dict[str, Any]) -> dict[str, Any]:
    if (problem := argument_problem(value)) is not None:
        raise PydanticCustomError("align", "{text}", {"text": problem})
    return value


def _or_empty(value: Any) -> Any:
    """A section with nothing in it (its keys commented out) means its defaults."""
    return {} if value is None else value


def repo_problem(name: str) -> str | None:
    """Why no repository on the Hub can be called so, or None."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"{name!r} is no name of a repository: expected USER/NAME or NAME, of letters, digits, '.', '_' and '-'."
    return None


def _repo(value: str) -> str:
    if (problem := repo_problem(value)) is not None:
        raise PydanticCustomError("align", "{text}", {"text": problem})
    return value


class Output(Section):
    """The run directory, and where its model goes at the end. A text alone is the path."""

    path: Place = Field("runs/{name}", min_length=1, description="the run directory; {name} stands for the name")
    push: Annotated[str, AfterValidator(_repo)] | None = Field(
        None,
        description="a repository on the Hub that the finished model is pushed to: USER/NAME, or NAME for one of yours",
    )
    private: bool = Field(True, description="whether that repository is made a private one")


class Lora(Section):
    """A low-rank adapter; all weights of the model itself stay as they are."""

    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float = Field(32, gt=0, description="scale; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: Annotated[str | list[str], BeforeValidator(_text_or_list)] = Field(
        "all-linear", description="modules that get an adapter, as PEFT names them"
    )
    modules_to_save: list[str] = Field([], description="modules that are trained in full and saved with the adapter")
    adapter: Place | None = Field(None, description="an existing adapter to go on from: a folder or a Hub id")


class Model(Section):
    """The policy. Safetensors only; code from the Hub is never run."""

    id: Place = Field(min_length=1, description="a Hub id or a folder")
    revision: str | None = Field(
        None, description="commit, tag or branch on the Hub; a commit makes the run repeatable"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of weights in memory; auto: float32 where all are trained or on a CPU, else the checkpoint's",
    )
    tokenizer: Place | None = Field(None, description="another tokenizer than the model's: a Hub id or a folder")
    chat_template: Place | None = Field(None, description="a file with a chat template that replaces the tokenizer's")
    attention: str | None = Field(
        None,
        description="attention of the fallback path and of answers, by transformers' name (sdpa, eager; "
        "flash_attention names are taken for sdpa); packed rows have kernels of their own",
    )
    load_in: Literal["4bit", "8bit"] | None = Field(
        None, description="quantised weights under an adapter (needs lora and bitsandbytes); 8bit needs a GPU"
    )
    train_only: list[str] | None = Field(
        None,
        min_length=1,
        description="train only weights whose name contains one of these, such as layers.5.mlp.down_proj",
    )
    lora: Lora | None = Field(None, description="train an adapter instead of the weights; `{}` for the defaults")


class Source(Section):
    """Where rows come from: exactly one of id, path and world."""

    id: Place | None = Field(None, description="dataset on the Hub")
    path: Place | None = Field(None, description="a file (jsonl, json, parquet, csv, also .gz) or a folder of them")
    world: str | dict[str, Any] | None = Field(None, description="the generated world; needs no download")
    subset: str | None = Field(None, description="configuration of a Hub dataset")
    split: str = Field("train", min_length=1, description="split; slices such as train[:100] work too")
    revision: str | None = Field(None, description="commit, tag or branch of a Hub dataset")
    columns: dict[str, str] = Field({}, description="our column names to theirs, such as {chosen: answer_a}")
    system: str | None = Field(None, description="a system message put before every conversation")
    weight: float = Field(
        1.0, gt=0, description="times each row comes per epoch (0.5: a half of them); streamed: share of the rows drawn"
    )
    rows: int | None = Field(None, ge=1, description="only the first so many rows")
    streaming: bool = Field(False, description="read while training instead of first; needs train.max_steps")


class Alternates(Section):
    """Where answers come from that forgotten questions shall get instead: a file, or our own refusals."""

    path: Place | None = Field(
        None, description="a file with one answer a line, or a jsonl or csv file with one column"
    )
    builtin: Literal["idk"] | None = Field(None, description="our own list of ways to say that one does not know")
    each: int | None = Field(
        None, ge=1, description="different ones that a row gets, one per epoch in turn; by default a new one each epoch"
    )


Rewrite = Literal[
    "swapped_letters",
    "dropped_letter",
    "doubled_letter",
    "neighbour_key",
    "lower_case",
    "capital_words",
    "extra_spaces",
    "no_break_end",
    "quotation_marks",
    "contractions_expanded",
    "contractions",
    "synonyms",
    "numbers_as_words",
]


class ConvexDA(Section):
    """Texts of pairs are replaced by rewrites at the edge of what they mean (docs/reward-models.md)."""

    of: Literal["answers", "prompt"] = Field(
        "answers", description="what is replaced: both answers, each for itself, or the last words of the prompt"
    )
    variants: int = Field(5, ge=1, description="rewrites of each text; with the text itself they are the points")
    dims: int = Field(2, ge=1, le=8, description="principal components in which the hull is taken")
    pick: Literal["random", "farthest", "all"] = Field(
        "random",
        description="random: one vertex, drawn by the seed; farthest: the vertex farthest from the text as it was; "
        "all: a row for each vertex, so an epoch is longer",
    )
    kinds: list[Rewrite] | None = Field(
        None, min_length=1, description="kinds of rewrites; null for those that change words and make no mistakes"
    )
    encoder: Place | None = Field(
        None, description="a sentence encoder, a folder or a Hub id; null compares the words that texts share (TF-IDF)"
    )
    share: float = Field(1.0, gt=0, le=1, description="share of the rows that are drawn to be rewritten")


class Data(Section):
    """Training and held-out rows, and what happens to long ones."""

    train: Annotated[list[Source] | None, BeforeValidator(_sources)] = Field(
        None, min_length=1, description="one source, or a list of sources that are mixed by weight"
    )
    forget: Annotated[list[Source] | None, BeforeValidator(_sources)] = Field(
        None, min_length=1, description="what an unlearning run forgets; takes the place of train"
    )
    retain: Annotated[list[Source] | None, BeforeValidator(_sources)] = Field(
        None, min_length=1, description="what it keeps: each forgotten row is paired with one of these rows"
    )
    partner: Literal["random", "fixed", "index"] = Field(
        "random",
        description="which retained row: random draws without replacement, anew each epoch; fixed draws once; "
        "index takes row i, counted modulo their number",
    )
    alternates: Alternates | None = Field(
        None, description="answers that forgotten questions shall get; by default the column alternate of the rows"
    )
    held_out: Annotated[list[Source] | None, BeforeValidator(_sources)] = Field(
        None, min_length=1, description="rows that are never trained on; they give the evaluation its loss and accuracy"
    )
    convex: ConvexDA | None = Field(
        None, description="replace texts of training pairs by rewrites (ConvexDA); `{}` for the defaults"
    )
    max_length: int | None = Field(
        1024, ge=2, description="most tokens of prompt and answer together; null for no limit"
    )
    truncation: Truncation = Field(
        "drop",
        description="longer rows: drop them and count them, keep the start, keep the end, cut the prompt's left, or "
        "split plain texts into several rows",
    )
    template_arguments: Annotated[dict[str, Any], BeforeValidator(_or_empty), AfterValidator(_renderable)] = Field(
        {},
        description="what the chat template is given beside the conversation, such as {enable_thinking: false}; "
        "a row's chat_template_kwargs win. strftime_now is the date for templates that ask for it: by default "
        "that of the run's start, which its lock file keeps",
    )

    @property
    def rows(self) -> list[Source]:
        """What an epoch goes through: the training rows, or those to forget."""
        return self.train or self.forget or []


class Reference(Section):
    """How the policy at the start is kept for objectives that compare with it."""

    strategy: Literal["auto", "adapter_off", "copy"] = Field(
        "auto",
        description="auto takes adapter_off with a fresh adapter, else a frozen copy, cut up as the policy is",
    )
    store: bool = Field(
        True, description="keep reference log-probs on disk, so that the next run need not compute them"
    )
    store_dir: Place | None = Field(None, description="folder of that store; by default in the user's cache")
    sync_every: int | None = Field(
        None,
        ge=1,
        description="steps between moves of the reference to the policy (TR-DPO); null keeps it at the start",
    )
    sync_mix: float = Field(0.6, gt=0, le=1, description="how far it moves: 1 makes it the policy")
    rows: str | None = Field(
        None,
        pattern="^[a-z_]+$",
        description="take its log-probs from the rows, columns such as chosen_logp_previous for previous; no model is "
        "kept then",
    )


class Evaluate(Section):
    """A test suite that is run before, while and after training, and what it is compared with."""

    suite: Literal["tofu"] = Field("tofu", description="which one: tofu measures forgetting against utility")
    split: str = Field("forget10", min_length=1, description="the suite's forget split; of the generated world: forget")
    source: Source = Field(
        Source(id="locuslab/TOFU"), description="where its questions are: a Hub id, a folder of its files, or a world"
    )
    retain: Place | None = Field(
        None, description="what never saw the forgotten rows: a model, a run, or a log of its evaluation"
    )
    every: int | None = Field(None, ge=1, description="steps between evaluations; by default once per epoch")
    rows: Literal["all", "legacy300"] = Field(
        "all", description="all rows, or the first 300 of each set as TOFU's code"
    )
    keep_utility: float = Field(
        0.9, ge=0, le=1, description="the best step is sought among those with this share of the utility at the start"
    )


class Watch(Section):
    """What is measured while training runs."""

    every: int | None = Field(
        None,
        ge=1,
        description="steps between readings, taken at log steps; by default every log step that the budget allows",
    )
    budget: float = Field(
        0.05, ge=0, description="share of the training time that readings may take, where watch.every is not set"
    )
    probe_pairs: int = Field(64, ge=0, description="held-out pairs whose log-probs are followed; 0 switches it off")
    probe_answers: int = Field(
        16,
        ge=0,
        description="prompts of those that the model answers: greedily at the start and at the end, for the lengths, "
        "and with samples now and then, for the model's own text; 0 for none",
    )
    entanglement_pairs: int = Field(
        8, ge=0, description="pairs of those whose two gradients are compared; 0 switches it off"
    )
    chosen_drop_nats: float = Field(
        20.0, gt=0, description="warn when chosen answers lost so many nats since the start"
    )
    stop_when: str | None = Field(
        None, description="end the run when this holds after an evaluation, such as utility < 0.9 * start"
    )
    stop_on_drop: bool = Field(False, description="end the run at that warning, with exit code 4")
    similarity_limit: float = Field(
        0.3, gt=0, le=1, description="warn when kept samples of different prompts are more alike while rewards rise"
    )
    stop_on_collapse: bool = Field(False, description="end the run at that warning, with exit code 4")
    report: bool = Field(True, description="write report.html and report.png at the end of the run")
    live: bool = Field(
        False,
        description="rewrite it while the run trains, within the budget, for a browser tab that stays open",
    )
    generate_every: int | None = Field(None, ge=1, description="steps between sample generations; null for none")
    prompts: list[str] = Field([], description="prompts of those generations")
