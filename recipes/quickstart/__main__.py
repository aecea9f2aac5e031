"""`python -m align.recipes.quickstart [--seed N] [--out FOLDER]`: what `make quickstart` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from align.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    about = "Learn a small world, align a model three ways, let one forget in five, draw what became of them."
    parser = argparse.ArgumentParser(prog="python -m align.recipes.quickstart", description=about)
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for everything it writes")
    given = parser.parse_args(argv)
    from align.recipes.quickstart.demo import demonstrate

    try:
        demonstrate(given.out, seed=given.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
