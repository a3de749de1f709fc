#!/bin/bash
# onnxq calibrate by GNU parallel: on this machine or, with HOSTS=a,b,c, on
# others that see the same paths and have the binary. Lost shards run again, up
# to three times.
#
#   MODEL=model.onnx DATA=samples OUT=table.json SHARDS=16 bash parallel.sh
set -euo pipefail
: "${MODEL:?}" "${DATA:?}" "${OUT:?}" "${SHARDS:=16}"
parts=$OUT.parts
mkdir -p "$parts"
hosts=()
[ -z "${HOSTS:-}" ] || hosts=(--sshlogin "$HOSTS" --workdir "$PWD")
seq 0 $((SHARDS - 1)) | parallel --halt soon,fail=1 --retries 3 "${hosts[@]}" --quote \
	onnxq calibrate "$MODEL" -o "$parts/{}.json" --data "$DATA" --shard "{}/$SHARDS" --threads 1 --resume --quiet
exec onnxq calibrate merge "$parts"/*.json -o "$OUT" --quiet
