#!/usr/bin/env bash
# gFVD of K600 frame prediction: bash scripts/lm_eval/eval_k600.sh NGPUS NNODES [option of nbp.generate] ...
# 50,000 continuations of 5 frames of validation videos' centre clips, some twice where they are fewer, scored at 64x64.
# Run again, it goes on. Variables: GENERATOR, TOKENIZER, DATA, OUT, PROTOCOL, EVALUATE (options of nbp.evaluate).
set -euo pipefail
usage="usage: eval_k600.sh NGPUS NNODES [option of nbp.generate] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage} out=${OUT:-runs/eval_k600}
cd "$(dirname "$0")/../.."
source scripts/launch.sh
(RDZV_ID="${RDZV_ID:-nbp}-generate" launch "$ngpus" "$nnodes" nbp.generate \
    --generator "${GENERATOR:-ckpt/NBP-k600-base/k600_base_nbp16.ckpt}" \
    --tokenizer "${TOKENIZER:-ckpt/NBP-tokenizer-k600/magvit2_k600.pt}" --out "$out" --num-clips 50000 \
    --data "${DATA:-configs/data/k600_eval$official.yaml}" --prefix-frames 5 "${@:3}")
launch "$ngpus" "$nnodes" nbp.evaluate --real "${DATA:-configs/data/k600_eval$official.yaml}" --fake "$out" --out "$out/scores" \
    --protocol "${PROTOCOL:-nbp-gfvd-k600}" ${EVALUATE:-}
