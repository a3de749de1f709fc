"""Calibrates a model on Ray: shards of the samples run through the onnxq binary
as tasks, and their tables merge in pairs.

    python calibrate.py --onnxq /opt/onnxq --model m.onnx --data samples --shards 64 -o table.json

With RAY_ADDRESS set the cluster there does the work, else this machine. The
binary, the model and the samples are found under the same paths on all machines.
A task that is lost runs again; a shard that ran twice counts once.
"""

import argparse
import os
import subprocess
import tempfile

import ray


def onnxq(binary, *arguments):
    """Runs the binary and returns what it writes to stdout."""
    done = subprocess.run([binary, *arguments], capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip())
    return done.stdout


@ray.remote(max_retries=3)
def calibrate(binary, model, data, shard, shards, flags):
    sources = [word for source in data for word in ("--data", source)]
    return onnxq(binary, "calibrate", model, "-o", "-", *sources, "--shard", f"{shard}/{shards}", *flags)


@ray.remote(max_retries=3)
def merge(binary, flags, *tables):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, contents in enumerate(tables):
            paths.append(os.path.join(folder, f"{i}.json"))
            with open(paths[-1], "wb") as f:
                f.write(contents)
        return onnxq(binary, "calibrate", "merge", *paths, "-o", "-", *flags)


def table(binary, model, data, shards, flags=(), fan_in=8):
    """Returns the contents of the table of all samples."""
    parts = [calibrate.remote(binary, model, data, i, shards, flags) for i in range(shards)]
    while len(parts) > 1:
        parts = [merge.remote(binary, ["--partial"], *parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
    return ray.get(merge.remote(binary, [], parts[0]))  # which refuses what is not complete


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--onnxq", default="onnxq", help="the binary")
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True, action="append", help="samples; may be repeated")
    p.add_argument("--shards", type=int, default=16, help="tasks, at most as many as there are samples")
    p.add_argument("-o", dest="out", required=True, help="the table")
    p.add_argument("flags", nargs="*", help="further flags of onnxq calibrate, behind --")
    a = p.parse_args()
    ray.init()
    contents = table(a.onnxq, a.model, a.data, a.shards, a.flags)
    with open(a.out, "wb") as f:
        f.write(contents)


if __name__ == "__main__":
    main()
