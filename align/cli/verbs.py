"""How a verb of the command line is added: the same help, and the same ``--json``, for all of them."""

from __future__ import annotations

import argparse
from typing import Any


def add_verb(verbs: Any, name: str, summary: str, examples: str, run: Any = None) -> argparse.ArgumentParser:
    """A parser below ``verbs``; ``run`` takes the parsed arguments and returns the exit code, None if verbs follow."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.add_argument("--json", action="store_true", help="print plain JSON for scripts")
        parser.set_defaults(run=run)
    return parser
