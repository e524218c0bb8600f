#!/usr/bin/env bash
# FVD of one set of clips against another: bash scripts/fvd.sh NGPUS NNODES REAL FAKE [option of nbp.evaluate] ...
# REAL and FAKE: clip sets, folders of videos or pictures, arrays, lists, data configs. Run again, it goes on.
# Variable: PROTOCOL. Files are looked for from the root of the repository.
set -euo pipefail
usage="usage: fvd.sh NGPUS NNODES REAL FAKE [option of nbp.evaluate] ..."
ngpus=${1:?$usage} nnodes=${2:?$usage} real=${3:?$usage} fake=${4:?$usage}
cd "$(dirname "$0")/.."
source scripts/launch.sh
launch "$ngpus" "$nnodes" nbp.evaluate --real "$real" --fake "$fake" --protocol "${PROTOCOL:-tats-2048}" "${@:5}"
