"""``python -m align`` is the ``align`` command."""

from align.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
