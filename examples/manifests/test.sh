#!/bin/bash
# Runs what the manifests run, with stand-ins for the schedulers that are not
# here, and compares the tables with that of one process. Needs onnxq in PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$root/models/digits/model.onnx data=$root/models/digits/calib
onnxq calibrate "$model" -o "$work/want.json" --data "$data" --quiet
same() { cmp "$1" "$work/want.json" && echo "ok: $2"; }

# Slurm: an array is its tasks one by one, one of them a second time as after a requeue.
mkdir "$work/bin"
cat >"$work/bin/sbatch" <<'S'
#!/bin/bash
set -euo pipefail
range= args=()
for a in "$@"; do
	case $a in --array=*) range=${a#--array=} ;; --*) ;; *) args+=("$a") ;; esac
done
if [ -n "$range" ]; then
	for i in $(seq "${range%-*}" "${range#*-}") "${range%-*}"; do SLURM_ARRAY_TASK_ID=$i SLURM_CPUS_PER_TASK=1 bash "${args[@]}" >&2; done
else
	bash "${args[@]}" >&2
fi
echo 1
S
chmod +x "$work/bin/sbatch"
PATH=$work/bin:$PATH MODEL=$model DATA=$data OUT=$work/slurm.json SHARDS=5 bash "$here/slurm.sh" >/dev/null
same "$work/slurm.json" "Slurm array (sbatch stands in)"

# GNU parallel itself.
if command -v parallel >/dev/null && parallel --version 2>/dev/null | grep -q GNU; then
	MODEL=$model DATA=$data OUT=$work/parallel.json SHARDS=4 bash "$here/parallel.sh"
	same "$work/parallel.json" "GNU parallel"
else
	echo "SKIPPED GNU parallel: it is not installed" >&2
fi

# Kubernetes: the commands of the manifest, with its paths and indices put in.
python3 - "$here/kubernetes.yaml" "$work" "$model" "$data" <<'P'
import os, re, subprocess, sys
manifest, work, model, data = sys.argv[1:]
text = open(manifest).read()
lists = [re.split(r",\s*", m.strip()) for m in re.findall(r"(?:command|args): \[(.*)\]", text)]
shard, merge = lists[0], lists[1] + lists[2]
n = int(re.search(r"completions: (\d+)", text).group(1))
assert int(shard[shard.index("--shard") + 1].split("/")[1]) == n, "the number of shards is not that of completions"
os.makedirs(work + "/parts")
def run(words, index):
    put = {"/share/model.onnx": model, "/share/samples": data}
    words = [w.replace("$(JOB_COMPLETION_INDEX)", str(index)) for w in words]
    words = [put.get(w, re.sub("^/share/", work + "/", w)) for w in words]
    return subprocess.run(words, capture_output=True, text=True)
for i in [*range(n - 1), 3]:
    done = run(shard, i)
    assert done.returncode == 0, done.stderr
early = run(merge, 0)
assert early.returncode != 0 and f"{n - 1}.json" in early.stderr, "the merge did not wait for the last shard"
assert run(shard, n - 1).returncode == 0
done = run(merge, 0)
assert done.returncode == 0, done.stderr
P
same "$work/table.json" "Kubernetes Indexed Job (its commands)"
