#!/usr/bin/env bash
# Does the package work where there is nothing but the package? Builds wheel and source archive, installs the wheel into
# an empty environment, and runs it in an empty folder: doctor, list, the quickstart, a run, its export and its push.
#
#   ci/wheel.sh [FOLDER]     by default build/wheel; PYTHON=python3.13 takes another Python
#
# It needs PyPI, 3 GB and about ten minutes. The last line says whether all of it went well.
set -eu
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HERE=${1:-$ROOT/build/wheel}
PYTHON=${PYTHON:-python3}
trap 'echo "ci/wheel.sh failed in line $LINENO; $HERE keeps what there is."' ERR

rm -rf "$HERE" && mkdir -p "$HERE/empty"
HERE=$(cd "$HERE" && pwd)
# a copy of what is committed: a build writes into its source
git -C "$ROOT" archive --prefix source/ HEAD | tar -x -C "$HERE"
"$PYTHON" -m venv "$HERE/venv"
pip() { "$HERE/venv/bin/python" -m pip "$@" -q --disable-pip-version-check; }

echo "== wheel and source archive"
pip wheel --no-deps -w "$HERE/dist" "$HERE/source"
pip install build
"$HERE/venv/bin/python" -m build --sdist --outdir "$HERE/dist" "$HERE/source" > "$HERE/sdist.log"
pip uninstall -y build pyproject_hooks
pip wheel --no-deps -w "$HERE/from-source" "$HERE"/dist/*.tar.gz
"$PYTHON" "$ROOT/ci/wheel_files.py" "$HERE/source" "$HERE"/dist/*.whl "$HERE"/from-source/*.whl

echo "== install"
pip install -c "$ROOT/constraints.txt" --no-deps torch  # alone: resolved with the rest, pip may take a CUDA build
pip install -c "$ROOT/constraints.txt" "$HERE"/dist/*.whl
pip check

echo "== run"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PATH="$HERE/venv/bin:$PATH"
unset PYTHONPATH
cd "$HERE/empty"
align doctor
test "$(align list objectives | wc -l)" -gt 20
python -m align.recipes.quickstart > quickstart.txt
tail -n 3 quickstart.txt
python - <<'ROWS'
import json
rows = [{"prompt": f"In which month was person {i} born?", "chosen": " In May.", "rejected": " In June."} for i in range(8)]
open("pairs.jsonl", "w").writelines(json.dumps(row) + "\n" for row in rows)
ROWS
cat > tiny.yaml <<'RECIPE'
name: tiny
model: {id: runs/quickstart/learn-full/model, lora: {rank: 4}}
data: {train: {path: pairs.jsonl}}
objective: {name: dpo}
train: {max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-3}
RECIPE
align check tiny.yaml > check.txt
align train tiny.yaml > train.txt
align launch tiny.yaml --on cpu2-ddp name=launched > launched.txt
align report runs/tiny runs/launched > report.txt
align export runs/tiny --merge --out merged > export.txt
python "$ROOT/ci/wheel_push.py" "$ROOT/tests" merged
echo "The wheel works in an empty environment."
