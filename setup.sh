#!/usr/bin/env sh
# Install NBP into the active Python environment. Safe to run again; CPU and CUDA machines alike.
set -eu
cd "$(dirname "$0")"
# torch first and by its own: an unpinned build requirement of another package would fetch a newer one.
python -c 'import torch' 2>/dev/null || python -m pip install "torch==2.13.0"
python -m pip install -e ".[dev]"
# Without their own dependencies, which pin an old numpy: the Procgen games for the quickstart's dataset.
python -m pip install --no-deps "procgen2==0.10.7" "gym3==0.3.3" "gym==0.26.2" cffi pycparser imageio filelock
