#!/usr/bin/env bash
# Installs the oldest versions that pyproject.toml promises into a new virtual environment, and runs tests with them:
#   scripts/oldest_versions.sh FOLDER tests/test_image_processing.py tests/test_metric.py …
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
"${PYTHON:-python3.10}" -m venv "$folder"
# The dependencies, and those of the extras up to `data`, which the tests import.
oldest=$(sed -n '/^dependencies/,/^data/p' pyproject.toml | grep -o '"[a-z-]*>=[0-9.]*"' | sed 's/"//g; s/>=/==/')
"$folder/bin/python" -m pip install --quiet $oldest pytest pytest-xdist
"$folder/bin/python" -m pip list
"$folder/bin/python" -c "import cagnet_hf"
"$folder/bin/python" -m pytest -n 0 "$@"
