#!/usr/bin/env bash
# Build the wheel twice from the last commit: the bytes are the same, and nothing but bnfold is in it.
#
#     benchmarks/wheel.sh FOLDER
set -euo pipefail
folder=$1
cd "$(dirname "$0")/.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
for each in first second; do
    mkdir -p "$folder/$each"
    git archive HEAD | tar x -C "$folder/$each"
    python3 -m pip wheel -q --no-deps -w "$folder/$each/out" "$folder/$each"
done
cmp "$folder"/first/out/*.whl "$folder"/second/out/*.whl
python3 - "$folder"/first/out/*.whl <<'PY'
import sys, zipfile

held = {name.split("/")[0] for name in zipfile.ZipFile(sys.argv[1]).namelist()}
assert all(name == "bnfold" or name.endswith(".dist-info") for name in held), held
print("the same bytes twice:", *sorted(held))
PY
