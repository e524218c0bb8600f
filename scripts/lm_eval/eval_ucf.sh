#!/usr/bin/env bash
# gFVD of class-conditional UCF-101: bash scripts/lm_eval/eval_ucf.sh NGPUS NNODES [option of nbp.generate] ...
# 10,000 clips over the 101 classes, scored against the training videos. Run again, it goes on. Variables: GENERATOR,
# TOKENIZER, TEXT, CLASSES, DATA, OUT, PROTOCOL, EVALUATE (options of nbp.evaluate, as --allow-fewer).
set -euo pipefail
usage="usage: eval_ucf.sh NGPUS NNODES [option of nbp.generate] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage} out=${OUT:-runs/eval_ucf101}
cd "$(dirname "$0")/../.."
source scripts/launch.sh
(RDZV_ID="${RDZV_ID:-nbp}-generate" launch "$ngpus" "$nnodes" nbp.generate \
    --generator "${GENERATOR:-ckpt/NBP-ucf-base/ucf_base_nbp16_hybrid.ckpt}" \
    --tokenizer "${TOKENIZER:-ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt}" --out "$out" --num-clips 10000 \
    --text-tokenizer "${TEXT:-ckpt/llama}" --classes "${CLASSES:-data/UCF-101/classes.txt}" "${@:3}")
launch "$ngpus" "$nnodes" nbp.evaluate --real "${DATA:-configs/data/ucf101$official.yaml}" --fake "$out" \
    --out "$out/scores" --protocol "${PROTOCOL:-nbp-gfvd-ucf}" ${EVALUATE:-}
