#!/usr/bin/env bash
# Trains a K600 generator: SIZE=base bash scripts/lm_train/train_k600.sh NGPUS NNODES [field=value | overlay.yaml] ...
# SIZE is base, xl or 3b; the recipe is configs/generator_k600_$SIZE.yaml (or $CONFIG, as one of configs/ablations/).
# Several nodes: see scripts/launch.sh. Run again, it resumes.
set -euo pipefail
usage="usage: train_k600.sh NGPUS NNODES [section.field=value | overlay.yaml] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage}
cd "$(dirname "$0")/../.."
source scripts/launch.sh
launch "$ngpus" "$nnodes" nbp.train "${CONFIG:-configs/generator_k600_${SIZE:-base}.yaml}" \
    trainer.devices="$ngpus" trainer.num_nodes="$nnodes" "${@:3}"
