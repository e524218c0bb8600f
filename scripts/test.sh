#!/usr/bin/env bash
# Sets up what the tests need, checks style and types and runs the tests, one process a core; pytest's closing line is
# printed last.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
python -m ruff check nbp tests
python -m mypy nbp
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
