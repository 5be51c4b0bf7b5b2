#!/usr/bin/env bash
# The oldest versions that pyproject.toml allows, and the newest, each in an environment of its own.
#
#     benchmarks/floors.sh oldest|newest FOLDER
#
# installs them under FOLDER, folds and verifies a model, and runs the tests of reading and writing.
set -euo pipefail
which=$1 folder=$2
cd "$(dirname "$0")/.."
tests=(tests/test_faults.py tests/test_hostile.py)  # of the others some need operators of newer onnx
python3 -m venv "$folder/$which"
pip=("$folder/$which/bin/pip" install -q --disable-pip-version-check)
if [ "$which" = oldest ]; then
    mapfile -t pins < <(python3 - <<'PY'
import re, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["ort"], "scipy>=1.11"]
print("\n".join(re.sub(r">=([\d.]+).*", r"==\1", each) for each in wanted))
PY
    )
    "${pip[@]}" "${pins[@]}" pytest hypothesis
else
    "${pip[@]}" --upgrade '.[bench]' pytest hypothesis
fi
"$folder/$which/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -Ei '^(numpy|onnx|onnx-ir|onnxruntime|protobuf|ml_dtypes|scipy) '
PYTHONPATH=$PWD "$folder/$which/bin/python" -m bnfold models/digits_cnn.onnx -f -o "$folder/$which.onnx"
PYTHONPATH=$PWD "$folder/$which/bin/python" -W ignore -m pytest -q -p no:cacheprovider -W default "${tests[@]}"
