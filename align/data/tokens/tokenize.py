"""Raw rows to prepared rows: token ids of the prompt and of every branch, exactly as TRL's trainers split them.

Prompt and prompt + branch are tokenised as whole texts (or conversations); a branch starts where the two part, at the
earliest place over all branches. Text gets the EOS token at its end where it has none; conversations are closed by
their template. Limits on length are applied here, once, so that everything that follows sees the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align.data.rows.cache import Made, as_dataset, kept, made_of
from align.data.rows.formats import Format, recognise
from align.data.rows.questions import asked
from align.data.rows.sources import column_names, did_you_mean, is_table, quiet_hub
from align.data.rows.unread import unread_columns
from align.data.tokens.arguments import keep_arguments
from align.data.tokens.chat import require_template
from align.data.tokens.chunks import split
from align.data.tokens.encode import FLAGS, STATUS, UNSEEN, Encoder
from align.data.tokens.endings import open_end, text_end
from align.data.tokens.identity import preparation_key
from align.data.tokens.labelled import by_label, refuse_stream
from align.data.tokens.preparation import Preparation
from align.data.tokens.table import encode_table
from align.data.tokens.truncation import check_policy
from align.errors import UserError, loading, told
from align.objectives.base import reads_labels
from align.outside.files import read_text
from align.outside.limits import TEMPLATE
from align.runs.models import hub_options, located
from align.runs.parallel import cores
from align.runs.quiet import silent
from align.runs.terminal import aside

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sections import Model

    AnyDataset = Dataset | IterableDataset

_NO_SPLIT = "data.truncation: split cuts plain texts, one to a row, and no stream; choose another."
_HOPELESS = 100_000  # rows of a stream, if none of them can be used
_SAMPLE = 20  # rows that are looked at to recognise the format: the first may be a bad one


def load_tokenizer(
    model: Model, *, base: Path | None = None, arguments: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model section, with its chat template; ``base`` is where relative paths start.

    ``arguments`` are what its template is given from now on; None leaves those that it was saved with. A tokenizer
    without a pad token pads with EOS. Nothing of ours tells padding by its id, so EOS keeps its meaning.

    Raises ``UserError`` where there is none to load.
    """
    from transformers import AutoTokenizer

    name = located(model.tokenizer or model.id, base)
    key = "model.tokenizer" if model.tokenizer else "model.id"
    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise UserError(_no_tokenizer(key, name, base))
    revision = model.revision if model.tokenizer is None else None
    with loading(lambda error: _no_tokenizer(key, name, base, error)), quiet_hub():
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **hub_options(name))
    if model.chat_template is not None:
        path = (base or Path()) / model.chat_template
        try:
            tokenizer.chat_template = read_text(path, TEMPLATE)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"model.chat_template: {path} cannot be read as text ({why}).") from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"The tokenizer of {name} has neither a pad nor an EOS token; set one in its files.")
        tokenizer.pad_token = tokenizer.eos_token
    if arguments is not None:
        keep_arguments(tokenizer, arguments)
    return tokenizer


def _no_tokenizer(key: str, name: str, base: Path | None, error: Exception | None = None) -> str:
    """Why there is no tokenizer; ``name`` may be a folder that is missing or a Hub id, and only then has an error."""
    from huggingface_hub import constants

    start = f"{key}: no tokenizer could be loaded from {name!r}"
    parents = [folder / Path(name).parent for folder in (base or Path(), Path())]
    inside = next((folder for folder in parents if folder.is_dir()), None) if "/" in name else None
    if not Path(name).is_dir() and (error is None or inside is not None):
        near = did_you_mean(Path(name).name, [p.name for p in inside.iterdir() if p.is_dir()]) if inside else ""
        hub = "" if error is None else ", nor a model that the Hub or its local cache gives"
        return f"{start}: no such folder{hub}.{near}"
    text = " ".join(str(error).split())
    if not isinstance(error, (OSError, ValueError)):
        text = told(error) if error else ""
    if "couldn't connect" not in text:
        return f"{start}: {text.rstrip('.')}. It must be a folder with tokenizer files or a Hub id."
    why = "the network is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    cure = "Load it once with the network on, or name a folder that holds the model."
    return f"{start}: it is not in the local cache, and {why}. {cure}"


def prepare(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    branches: Sequence[str],
    *,
    max_length: int | None = None,
    truncation: str = "drop",
    system: str | None = None,
    values: Sequence[str] = (),
) -> tuple[AnyDataset, Preparation]:
    """Tokenise raw rows. Returns the prepared data set and an account of what happened to the rows.

    Prepared columns are ``prompt_ids`` (at least one token), ``<branch>_ids`` (at least one), ``<branch>_mask`` (1 for
    target tokens; only where not all are targets), ``row``, ``label`` where the rows have it, the numbers ``values``,
    null where a row has none, and ``<branch>_logp_<model>`` where rows are tokenised already.
    Branches of labelled answers come of one completion and its label, or of pairs, see ``align.data.tokens.labelled``.
    ``max_length`` counts tokens of prompt and branch together. ``system`` is put before every conversation that has no
    system message of its own. Streams stay streams, and their account grows as they are read.

    Raises ``UserError`` where the format is not recognised, does not offer the branches, or no row is left.
    """
    settings: dict[str, Any] = {"max_length": max_length, "truncation": truncation}
    settings |= {"system": system, "values": tuple(values)}
    if not is_table(dataset):
        looked_at, account = _stream(dataset, tokenizer, branches, say=silent, **settings)
        empty = next(iter(looked_at), None) is None
    else:
        prepared, account = prepare_rows(dataset, tokenizer, branches, **settings)
        empty = account.rows_kept == 0
    if empty:
        raise account.nothing_left()
    return (prepared, account) if is_table(dataset) else _stream(dataset, tokenizer, branches, **settings)


def prepare_rows(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    branches: Sequence[str],
    *,
    max_length: int | None = None,
    truncation: str = "drop",
    system: str | None = None,
    values: Sequence[str] = (),
) -> tuple[AnyDataset, Preparation]:
    """``prepare`` for callers that go on where no row is left. Many rows are prepared once and kept, see ``cache``."""
    settings: dict[str, Any] = {"max_length": max_length, "truncation": truncation}
    settings |= {"system": system, "values": tuple(values)}
    if not is_table(dataset):
        return _stream(dataset, tokenizer, branches, **settings)
    check_policy(truncation, max_length)
    key = preparation_key(dataset, tokenizer, branches, settings)

    def make(processes: int) -> tuple[Dataset, Preparation]:
        return _table(dataset, tokenizer, branches, processes, **settings)

    def entry(alone: bool) -> Made:
        prepared, account = make(cores(shared=not alone))
        return made_of(prepared, {"account": account.record()})

    if key is None:
        return make(cores(shared=True))
    made = kept(key, entry)
    return as_dataset(made), Preparation.of_record(made.facts["account"])


def _table(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, branches: Sequence[str], processes: int, **settings: Any
) -> tuple[Dataset, Preparation]:
    """Rows that are all there."""
    work = _Work.on(asked(dataset, tokenizer, branches), tokenizer, branches, **settings)
    account, truncation = work.account, settings["truncation"]
    if truncation == "split" and len(branches) != 1:
        raise UserError(_NO_SPLIT)
    prepared = encode_table(work.rows, work.encode, account, work.features, masked=work.masked, processes=processes)
    if truncation == "split" and account.max_length is not None:
        prepared = split(prepared, account.branches[0], account.max_length, tokenizer.bos_token_id)
        account.pieces = len(prepared)
    if reads_labels(branches):
        prepared = by_label(prepared, account, branches)
    return prepared, account


def _stream(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    branches: Sequence[str],
    *,
    say: Callable[[str], Any] = aside,
    **settings: Any,
) -> tuple[AnyDataset, Preparation]:
    """Rows that are prepared as they are read."""
    check_policy(settings["truncation"], settings["max_length"])
    work = _Work.on(asked(dataset, tokenizer, branches), tokenizer, branches, **settings)
    if settings["truncation"] == "split":
        raise UserError(_NO_SPLIT)
    counted = _Counting(work.encode, work.account, say)
    return work.rows.map(
        counted, batched=True, batch_size=64, with_indices=True, remove_columns=work.columns, features=work.features
    ), work.account


class _Work(NamedTuple):
    """Everything that is settled before the first row is encoded."""

    rows: Any
    columns: list[str]
    encode: Encoder
    account: Preparation
    features: Features
    masked: bool  # whether some token may be no target

    @classmethod
    def on(
        cls,
        rows: AnyDataset,
        tokenizer: PreTrainedTokenizerBase,
        branches: Sequence[str],
        *,
        max_length: int | None,
        truncation: str,
        system: str | None,
        values: Sequence[str],
    ) -> _Work:
        columns = column_names(rows)
        form = recognise_dataset(rows, branches)
        if reads_labels(branches):
            refuse_stream(rows)
            branches = form.branches
        _check_tokenizer(form, tokenizer, system, columns)
        masked = form.conversational or any(f"{name}_mask" in columns for name in branches)
        features = _features(form, branches, columns, masked, values)
        limit = None if truncation == "split" else max_length
        encode = Encoder(form, tokenizer, tuple(branches), limit, truncation, system, tuple(features), tuple(values))
        account = Preparation(form.name, tuple(branches), max_length, truncation)
        account.unread = [name for name in unread_columns(form, list(islice(rows, _SAMPLE))) if name not in values]
        account.skips_template = form.skips_template and bool(tokenizer.chat_template)
        if form.conversational and branches:
            account.open_end = open_end(tokenizer)
        return cls(rows, columns, encode, account, features, masked)


def recognise_dataset(dataset: AnyDataset, branches: Sequence[str]) -> Format:
    """The format of most of the first rows. Raises ``UserError`` where none of them has one."""
    columns = column_names(dataset)
    found: dict[str, Format] = {}
    votes: Counter[str] = Counter()
    error: UserError | None = None
    for row in islice(iter(dataset), _SAMPLE):
        try:
            form = recognise(row, columns, branches)
        except UserError as problem:
            error = error or problem
            continue
        found.setdefault(form.name, form)
        votes[form.name] += 1
    if not votes:
        raise error or UserError("The data set has no rows.")
    return found[votes.most_common(1)[0][0]]


def _check_tokenizer(
    form: Format, tokenizer: PreTrainedTokenizerBase, system: str | None, columns: Sequence[str]
) -> None:
    own = [name for name in columns if name.endswith("_prompt_ids")]
    if form.tokenised and own:
        raise UserError(f"Rows with a prompt of their own per branch ({', '.join(own)}) cannot be prepared again.")
    if system is not None and not form.conversational:
        raise UserError(
            f"system is given, but the rows are not conversations: {form.name}. "
            "Put the text into the prompts, or leave out system."
        )
    if form.conversational:
        require_template(tokenizer)
    elif not form.tokenised and form.branches and text_end(tokenizer) is None:
        raise UserError(
            "The tokenizer has no EOS token, so no answer could be ended; set one in the tokenizer's files."
        )


def _features(
    form: Format, branches: Sequence[str], columns: Sequence[str], masked: bool, values: Sequence[str]
) -> Features:
    from datasets import Features, List, Value

    features: Any = Features()
    features["prompt_ids"] = List(Value("int32"))
    for name in branches:
        features[f"{name}_ids"] = List(Value("int32"))
        if masked:
            features[f"{name}_mask"] = List(Value("int8"))
        if form.tokenised:
            features.update({key: Value("float64") for key in columns if key.startswith(f"{name}_logp_")})
    if form.kind == "unpaired":
        features["label"] = Value("bool")
    features.update({name: Value("float64") for name in values})
    features["row"] = Value("int64")
    return features


@dataclass
class _Counting:
    """An encoder for streams: leaves out dropped rows itself, counts as it goes and says so as the counts grow."""

    encode: Encoder
    account: Preparation
    say: Callable[[str], Any]
    digits: int = 0  # of the number of remarks, when they were last said

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        out = self.encode(batch, indices)
        reasons, flags, unseen = out.pop(STATUS), out.pop(FLAGS), out.pop(UNSEEN)
        lengths = {name: [len(ids) for ids in out[f"{name}_ids"]] for name in ("prompt", *self.account.branches)}
        self.account.count(out["row"], reasons, flags, unseen, lengths)
        if not self.account.rows_kept and self.account.rows_in >= _HOPELESS:
            raise self.account.nothing_left()
        if (remarks := self.account.remarks) and len(str(remarks)) > self.digits:  # the 1st, 10th, 100th, ...
            self.digits = len(str(remarks))
            self.say(f"The stream so far: {' '.join(self.account.summary()[1:])}")
        keep = [index for index, reason in enumerate(reasons) if not reason]
        return {name: [values[index] for index in keep] for name, values in out.items()}
