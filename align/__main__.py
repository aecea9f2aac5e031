"""``python -m align`` is the ``align`` command."""

from align.runs.search import not_here

if __name__ == "__main__":
    not_here()
    from align.cli.main import main

    raise SystemExit(main())
