#!/usr/bin/env bash
# All benchmarks but growth, a JSON file each in runs/benchmark: four to six minutes on two cores; `cuda` for a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
device="${1:-cpu}"
[ "$device" = cpu ] && sizes=paper || sizes="700M 3B"
for size in $sizes; do
    python -m nbp.benchmark sampling --size "$size" --device "$device" --out "runs/benchmark/sampling-$size.json"
done
python -m nbp.benchmark training --size "${sizes%% *}" --device "$device" --out runs/benchmark/training.json
python -m nbp.benchmark tokenizer --device "$device" --out runs/benchmark/tokenizer.json
python -m nbp.benchmark data --device "$device" --out runs/benchmark/data.json
python -m nbp.benchmark evaluation --max-clips 8 --batch-size 4 --repeats 2 --device "$device" --out runs/benchmark/evaluation.json
