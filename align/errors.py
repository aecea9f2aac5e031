"""Errors that are the user's to mend, and the exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    DOES_NOT_FIT = 3
    GUARD = 4


class UserError(Exception):
    """A mistake in a recipe, in data or in how a command was called; the message says what to do. Exit code 2."""

    exit_code = Exit.USAGE


class DoesNotFit(UserError):
    """The run does not fit into the memory that is there. Exit code 3."""

    exit_code = Exit.DOES_NOT_FIT


class Stopped(UserError):
    """A guard ended the run, for instance because the loss was no longer finite. Exit code 4."""

    exit_code = Exit.GUARD
