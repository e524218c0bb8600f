#!/usr/bin/env bash
# Sets up what the tests need and runs them, one process a core; pytest's closing line is printed last.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
