"""Compare the files of wheels with those of the package's folders; ci/wheel.sh calls it.

python ci/wheel_files.py SOURCE WHEEL...
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

FOLDERS = {"align": "align", "eval": "align/eval", "recipes": "align/recipes"}


def expected(source: Path) -> set[str]:
    """The names in a wheel of all files below the package's folders."""
    found = set()
    for top, inside in FOLDERS.items():
        files = (path for path in (source / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        found |= {f"{inside}/{path.relative_to(source / top).as_posix()}" for path in files}
    return found


def differences(source: Path, wheel: Path) -> list[str]:
    """A line for each file that only one of them has."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = expected(source)
    return [f"{wheel.name} lacks {name}" for name in sorted(wanted - names)] + [
        f"{wheel.name} has {name}, which is not in the repository" for name in sorted(names - wanted)
    ]


def main(words: list[str]) -> int:
    source, wheels = Path(words[0]), [Path(word) for word in words[1:]]
    found = [line for wheel in wheels for line in differences(source, wheel)]
    print("\n".join(found) or f"All {len(expected(source))} files of the package are in its wheels, and nothing else.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
