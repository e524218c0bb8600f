#!/usr/bin/env bash
# Sets up what the tests need and runs them; pytest's closing line is printed last.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec python -m pytest "$@"
