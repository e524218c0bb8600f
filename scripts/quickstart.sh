#!/usr/bin/env bash
# From a fresh machine with Python 3.11 to runs/quickstart/report.html; --smoke: the same in miniature.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
exec python -m nbp.quickstart "$@"
