#!/usr/bin/env bash
# Compares this code with recorded outputs of the official code; one line per quantity with its largest difference.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -q -s --slow tests/parity/test_parity_*.py "$@" | sed -n 's/^[.sFE]*\(parity \)/\1/p; /passed\|failed\|Error/p'
