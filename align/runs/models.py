"""Where a model's name leads: a folder beside the recipe or in the working directory, a run's own model, or the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.outside.files import only_files
from align.recipe.messages import did_you_mean
from align.runs.directory import LOCK
from align.runs.result import MODEL

if TYPE_CHECKING:
    from align.recipe.sections import Model

_HUB_SECONDS = 1.5  # to connect, and to answer
_LOG_IN = "log in (hf auth login, or HF_TOKEN)"
ADAPTER = "adapter_config.json"  # a folder with this file holds an adapter, not a model


def located(name: str, base: Path | None) -> str:
    """A model's name as it is loaded: a folder, beside the recipe first, or the name as it stands.

    A run stands for the model that it left. Raises UserError where it left none.
    """
    path = Path(name).expanduser()
    folders = [path] if base is None else [base / path, path]
    found = next((folder for folder in folders if folder.is_dir()), None)
    return str(path if name.startswith("~") else name) if found is None else str(model_of(found))


# weights as transformers, PEFT and others have written them as pickles
_PICKLED = re.compile(r"(pytorch_model|adapter_model|model|consolidated).*\.(bin|pt|pth|ckpt)")


def model_of(folder: Path) -> Path:
    """The folder itself, or of a run the model in it.

    Raises:
        UserError: where a run has none, or the folder holds what is not read: weights as a pickle alone, pipes.
    """
    found = _model_of(folder)
    only_files(found, own=False)
    names = sorted(entry.name for entry in found.iterdir())
    pickled = [name for name in names if _PICKLED.fullmatch(name)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{found} holds its weights as a pickle ({pickled[0]}), which may hold a program and is never read. Save "
            "them as safetensors where you trust them: save_pretrained of a current transformers or peft does."
        )
    return found


def _model_of(folder: Path) -> Path:
    if not (folder / LOCK).exists():
        return folder
    model = folder / MODEL
    if any(model.glob("*.safetensors")) and not (model / "config.json").exists() and not (model / ADAPTER).exists():
        raise UserError(
            f"{model} has lost {ADAPTER} or config.json, without which its weights mean nothing: name a checkpoint of "
            "the run."
        )
    if not (model / "config.json").exists() and not (model / ADAPTER).exists():
        raise UserError(
            f"{folder} is a run without a model: it ended before {model} was written. Let it finish "
            "(align train RECIPE --resume), or name one of its checkpoints."
        )
    return model


def is_adapter(name: str) -> bool:
    """Whether the folder ``name`` holds an adapter; False for a Hub id, which only loading tells."""
    return (Path(name) / ADAPTER).is_file()


def hub_options(name: str) -> dict[str, bool]:
    """What ``from_pretrained`` needs so that it does not wait for a Hub that does not answer: the local cache alone."""
    return {} if Path(name).is_dir() or hub_answers() else {"local_files_only": True}


@cache
def hub_answers() -> bool:
    """Whether the Hub can be reached. Its client would try each file five times first, for most of a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # of the HTTP client below, which differs from one version of the Hub's library to the next
        return False
    return True


@contextmanager
def without_waiting() -> Iterator[None]:
    """Where the Hub does not answer, its client looks into the cache at once, without half a minute of tries before."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_refusal(name: str, revision: str | None, error: BaseException | None, folder: str = "") -> str | None:
    """What it means that the Hub did not give a repository, with the cure; None where an error is not about that.

    Args:
        folder: of its address, ``datasets/`` for rows.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    while error is not None and not isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        error = error.__cause__ or error.__context__
    page = f"{constants.ENDPOINT}/{folder}{name}"
    if isinstance(error, GatedRepoError):
        return gated(name, folder)
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}: its branches and tags are at {page}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {page}, or it is private: then {_LOG_IN} with an account that may read it"
    return None


def gated(name: str, folder: str = "") -> str:
    """What to do about a repository whose terms must be accepted; ``folder`` as above."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{folder}{name}"
    return f"it is gated: accept its terms at {page}, and {_LOG_IN} with the account that did"


def require_model(section: Model, base: Path | None) -> None:
    """Refuse a ``model.id`` that is not there, before anything heavy is imported.

    Raises:
        UserError: for a folder that does not exist, and for a Hub id that neither the cache nor the Hub can give.
    """
    name = located(section.id, base)
    if Path(name).is_dir():
        return
    parents = [folder / Path(name).parent for folder in (base or Path(), Path())]
    near = [entry.name for folder in parents if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()]
    meant = did_you_mean(Path(name).name, near)
    hint = f" Did you mean {str(Path(name).with_name(meant))!r}?" if meant else ""
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise UserError(f"model.id: {section.id!r}: no such folder.{hint} It is a run, a folder, or a Hub id.")
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=section.revision), str)
    except ValueError:  # of the Hub's client
        raise UserError(
            f"model.id: {section.id!r}: no such folder, and the Hub has no such names: letters, digits, '-', '_' and "
            f"'.', as in NAME or OWNER/NAME.{hint}"
        ) from None
    if not cached and not hub_answers():
        raise UserError(
            f"model.id: {section.id!r}: no such folder, it is not in the local cache, and the Hub cannot be reached."
            f"{hint} Load it once with the network on, or name a folder that holds the model."
        )
