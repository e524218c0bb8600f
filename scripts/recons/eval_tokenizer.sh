#!/usr/bin/env bash
# rFVD, PSNR, SSIM, LPIPS and code use of a tokenizer:
#   bash scripts/recons/eval_tokenizer.sh NGPUS NNODES [option of nbp.reconstruct] ...
# Run again, it goes on. Variables: TOKENIZER (official file unless set), DATA, OUT, PROTOCOL.
set -euo pipefail
usage="usage: eval_tokenizer.sh NGPUS NNODES [option of nbp.reconstruct] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage}
cd "$(dirname "$0")/../.."
source scripts/launch.sh
launch "$ngpus" "$nnodes" nbp.reconstruct --tokenizer "${TOKENIZER:-ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt}" \
    --data "${DATA:-configs/data/ucf101$official.yaml}" \
    --out "${OUT:-runs/recons}" --protocol "${PROTOCOL:-nbp-rfvd}" "${@:3}"
