#!/bin/bash
# onnxq calibrate as a job array, and a job that merges once all of it is done.
# MODEL, DATA and OUT are paths that all nodes see; SHARDS is at most the number
# of samples.
#
#   MODEL=model.onnx DATA=samples OUT=table.json SHARDS=16 bash slurm.sh
#
# The script submits itself twice: with a shard to do, and to merge.
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
#SBATCH --requeue
set -euo pipefail
: "${MODEL:?}" "${DATA:?}" "${OUT:?}" "${SHARDS:=16}"
export MODEL DATA OUT SHARDS
parts=$OUT.parts
if [ "${1:-}" = merge ]; then
	exec onnxq calibrate merge "$parts"/*.json -o "$OUT" --quiet
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
	exec onnxq calibrate "$MODEL" -o "$parts/$SLURM_ARRAY_TASK_ID.json" --data "$DATA" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --threads "${SLURM_CPUS_PER_TASK:-0}" --resume --quiet
fi
mkdir -p "$parts"
array=$(sbatch --parsable --export=ALL --array="0-$((SHARDS - 1))" "$0")
sbatch --parsable --export=ALL --dependency="afterok:$array" "$0" merge
