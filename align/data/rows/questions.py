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
    """Rows with ``question`` and ``answer`` as rows with ``prompt`` and ``completion``; others as they are.

    An alternate answer (``alternate``) takes the same form. Values that are no text are left for preparation to drop.
    """
    if not set(branches) <= {"completion", "alternate"}:
        return dataset  # an objective on pairs has no use for one answer
    names = column_names(dataset)
    if "prompt" in names or not {"question", "answer"} <= set(names):
        return dataset
    conversational = talks(tokenizer)

    forms = {
        "question": ("prompt", prompt_of),
        "answer": ("completion", reply_of),
        "alternate": ("alternate", reply_of),
    }

    def put(row: dict[str, Any]) -> dict[str, Any]:
        return {
            ours: form(row[theirs], conversational) if isinstance(row[theirs], str) else None
            for theirs, (ours, form) in forms.items()
            if theirs in row
        }

    changed: Any = dataset.map(put, remove_columns=["question", "answer"])
    return changed
