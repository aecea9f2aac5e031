#!/usr/bin/env bash
# Runs the tests with other versions of the packages than constraints.txt names, and prints a row of a table for each.
#
#   ci/versions.sh                           floor, back and forward, one after the other
#   ci/versions.sh back -- tests/trainers    one of them, and some of the tests
#   PYTHON=python3.13 ci/versions.sh floor   with another Python;  KEEP=1: the environment stays, to look at
#
# ci/NAME.txt says what differs from constraints.txt. An environment takes up to 8 GB (PyPI's torch is a CUDA build), lies
# in build/versions, and is removed before the next one is made. Warnings of packages are shown and are no failures here:
# what is deprecated differs from version to version. docs/versions.md keeps what was seen.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=${PYTHON:-python3}
WORKERS=${WORKERS:-2}
SHOWN="torch transformers trl accelerate peft datasets huggingface_hub deepspeed"

names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do names+=("$1"); shift; done
[ $# -eq 0 ] || shift
[ ${#names[@]} -gt 0 ] || names=(floor back forward)

# constraints.txt with the lines of ci/NAME.txt in place of those for the same packages
constraints() {
  grep -vE "^($(grep -oE '^[A-Za-z0-9_-]+' "ci/$1.txt" | paste -sd '|'))==" constraints.txt
  cat "ci/$1.txt"
}

row() {
  local name=$1 folder=$PWD/build/versions/$1
  shift
  rm -rf "$folder" && mkdir -p "$folder"
  constraints "$name" > "$folder/constraints.txt"
  "$PYTHON" -m venv "$folder/venv" &&
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check -c "$folder/constraints.txt" \
      -e '.[dev,deepspeed,real,encoder,eval,qlora]' || { echo "| $name | cannot be installed |"; return 1; }
  HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m pytest -n "$WORKERS" \
    -m "not slow" -W default -q -rfEs -p no:cacheprovider "$@" > "build/versions/$name.log" 2>&1
  local code=$?
  "$folder/venv/bin/python" - "$name" "$(tail -n 1 "build/versions/$name.log")" $SHOWN <<'PRINT'
import platform, sys
from datetime import date
from importlib.metadata import version
name, tests, *packages = sys.argv[1:]
found = [platform.python_version(), *(version(package).split("+")[0] for package in packages)]
print("", name, date.today(), *found, tests.strip("= "), "", sep=" | ")
PRINT
  [ -n "${KEEP:-}" ] || rm -rf "$folder"
  return $code
}

status=0
printf '| %s' versions date Python $SHOWN tests
printf ' |\n'
for name in "${names[@]}"; do
  [ -f "ci/$name.txt" ] || { echo "ci/$name.txt is not there: take floor, back or forward."; exit 2; }
  row "$name" "$@" || status=1
done
exit $status
