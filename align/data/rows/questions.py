"""How a question and its answer are put to a model: one form for training and for evaluation.

A model with a chat template reads the question as one user turn and answers in one assistant turn. Any other reads
``Question: ...`` and ``Answer:`` on two lines, as Phi does in TOFU (arXiv 2401.06121), and writes the answer after a
space. The end-of-text token is added when rows are tokenised; see ``align.data.tokens.tokenize``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from align.data.rows import world
from align.data.rows.sources import column_names
from align.objectives.base import reads_labels

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    Rows = TypeVar("Rows", bound=Dataset | IterableDataset)

Text = str | list[dict[str, Any]]


def talks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether questions are put as turns of a conversation: whether there is a chat template."""
    return bool(tokenizer.chat_template)


def prompt_of(question: str, conversational: bool) -> Text:
    """The column ``prompt`` of a row with this question."""
    return [{"role": "user", "content": question}] if conversational else world.prompt(question)


def reply_of(answer: str, conversational: bool) -> Text:
    """The column ``completion`` (or any branch) of a row with this answer."""
    return [{"role": "assistant", "content": answer}] if conversational else world.completion(answer)


def asked(dataset: Rows, tokenizer: PreTrainedTokenizerBase, branches: Sequence[str]) -> Rows:
    """Rows of a question and its answers as rows with ``prompt`` and the answers put likewise; others as they are.

    The columns are ``question`` and ``answer``, or Alpaca's ``instruction``, ``input`` (which may be empty) and
    ``output``, each with an alternate answer (``alternate``) or none; for an objective on pairs ``question``,
    ``chosen`` and ``rejected``, all of them texts. Values that are no text are left for preparation to drop.
    """
    names = column_names(dataset)
    found = None if "prompt" in names else _columns(dataset, names, branches)
    if found is None:
        return dataset
    question, answers = found
    conversational = talks(tokenizer)

    def put(row: dict[str, Any]) -> dict[str, Any]:
        text = _with_input(row) if question == "instruction" else row[question]
        out = {"prompt": prompt_of(text, conversational) if isinstance(text, str) else None}
        for theirs, ours in answers.items():
            out[ours] = reply_of(row[theirs], conversational) if isinstance(row[theirs], str) else None
        return out

    gone = [question, *answers, *(["input"] if question == "instruction" and "input" in names else [])]
    changed: Any = dataset.map(put, remove_columns=gone)
    return changed


def _columns(
    dataset: Dataset | IterableDataset, names: Sequence[str], branches: Sequence[str]
) -> tuple[str, dict[str, str]] | None:
    """The column of the question, and those of the answers with their canonical names; None where there are none."""
    if set(branches) <= {"completion", "alternate"} or reads_labels(branches):
        for question, answer in (("question", "answer"), ("instruction", "output")):
            if {question, answer} <= set(names):
                return question, {answer: "completion"} | ({"alternate": "alternate"} if "alternate" in names else {})
        return None
    pair = ("question", *branches)
    if dataset.features is None or set(branches) != {"chosen", "rejected"} or not set(pair) <= set(names):
        return None
    if any(getattr(dataset.features[name], "dtype", None) not in ("string", "large_string") for name in pair):
        return None  # conversations, which hold the question themselves
    return "question", {name: name for name in branches}


def _with_input(row: dict[str, Any]) -> Any:
    """An instruction with the input that it is about below it."""
    instruction, given = row["instruction"], row.get("input")
    if given is None or given == "":
        return instruction
    return f"{instruction}\n\n{given}" if isinstance(instruction, str) and isinstance(given, str) else None
