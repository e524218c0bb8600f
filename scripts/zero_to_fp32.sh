#!/usr/bin/env bash
# DeepSpeed checkpoint folder (ZeRO 1, 2 or 3) -> one file with float32 weights:
#   bash scripts/zero_to_fp32.sh runs/generator_ucf101_base/checkpoints/last.ckpt weights.ckpt
# DeepSpeed unpickles the folder: convert only what you or people you trust have trained.
set -euo pipefail
usage="usage: zero_to_fp32.sh CHECKPOINT_FOLDER OUTPUT_FILE"
source=$(realpath "${1:?$usage}") target=$(realpath -m "${2:?$usage}")
cd "$(dirname "$0")/.."
exec python -m nbp.convert deepspeed-to-fp32 "$source" "$target"
