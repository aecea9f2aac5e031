"""Errors that are the user's to mend, and the exit codes of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    DOES_NOT_FIT = 3
    GUARD = 4


class UserError(Exception):
    """A mistake in a recipe, in data or in how a command was called; the message says what to do. Exit code 2.

    ``shared`` says that every process of a run raises it, so that the first of them speaks for all.
    """

    exit_code = Exit.USAGE
    shared = True


class DoesNotFit(UserError):
    """The run does not fit into the memory that is there. Exit code 3. The process that ran out raises it alone."""

    exit_code = Exit.DOES_NOT_FIT
    shared = False


class Stopped(UserError):
    """A guard ended the run, for instance because the loss was no longer finite. Exit code 4."""

    exit_code = Exit.GUARD


# CUDA's, MPS' and XPU's allocators; a CUDA library that found no room; the allocator of CPU tensors
_NO_MEMORY = ("out of memory", "_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


# what a process meets whose peer has died: gloo's words, NCCL's, and those of the store through which they met
_LOST_PEER = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "ncclSystemError",
    "communicator was",
)


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST_PEER)


@contextmanager
def of_this_process() -> Iterator[None]:
    """Mark a user's mistake that is found within as one that other processes do not meet."""
    try:
        yield
    except UserError as error:
        error.shared = False
        raise


@contextmanager
def loading(sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Within, a library reads files that others made, over which it may fail in any way at all.

    Raises:
        UserError: with the ``sentence`` about the failure, unless memory ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise UserError(sentence(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, such as tokenizers
            raise
        raise UserError(sentence(ValueError(str(error)))) from error


def told(error: Exception) -> str:
    """Type and text of an error of the user's code, on one line."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
