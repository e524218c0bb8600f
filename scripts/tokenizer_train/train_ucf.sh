#!/usr/bin/env bash
# Trains the UCF-101 tokenizer: bash scripts/tokenizer_train/train_ucf.sh NGPUS NNODES [section.field=value | overlay.yaml] ...
# The recipe is configs/tokenizer_ucf101.yaml (or $CONFIG). Several nodes: see scripts/launch.sh. Run again, it resumes.
set -euo pipefail
usage="usage: train_ucf.sh NGPUS NNODES [section.field=value | overlay.yaml] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage}
cd "$(dirname "$0")/../.."
source scripts/launch.sh
launch "$ngpus" "$nnodes" nbp.train "${CONFIG:-configs/tokenizer_ucf101.yaml}" \
    trainer.devices="$ngpus" trainer.num_nodes="$nnodes" "${@:3}"
