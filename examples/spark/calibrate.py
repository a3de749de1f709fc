"""Calibrates a model on Spark: shards of the samples run through the onnxq
binary on the executors, and their tables merge in a tree, on executors too.

    spark-submit --master MASTER calibrate.py --onnxq /opt/onnxq --model m.onnx --data samples --shards 64 -o table.json

The binary, the model and the samples are found under the same paths on all
machines. A task that is lost runs again; a shard that ran twice counts once.
"""

import argparse
import os
import subprocess
import tempfile

from pyspark.sql import SparkSession


def onnxq(binary, *arguments):
    """Runs the binary and returns what it writes to stdout."""
    done = subprocess.run([binary, *arguments], capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def calibrate(binary, model, data, shard, shards, flags):
    sources = [word for source in data for word in ("--data", source)]
    return onnxq(binary, "calibrate", model, "-o", "-", *sources, "--shard", f"{shard}/{shards}", *flags)


def merge(binary, *tables, flags=("--partial",)):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, contents in enumerate(tables):
            paths.append(os.path.join(folder, f"{i}.json"))
            with open(paths[-1], "wb") as f:
                f.write(contents)
        return onnxq(binary, "calibrate", "merge", *paths, "-o", "-", *flags)


def table(spark, binary, model, data, shards, flags=()):
    """Returns the contents of the table of all samples."""
    contents = (
        spark.sparkContext.parallelize(range(shards), shards)
        .map(lambda i: calibrate(binary, model, data, i, shards, flags))
        .treeReduce(lambda a, b: merge(binary, a, b))
    )
    return merge(binary, contents, flags=())  # which refuses what is not complete


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--onnxq", default="onnxq", help="the binary")
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True, action="append", help="samples; may be repeated")
    p.add_argument("--shards", type=int, default=16, help="tasks, at most as many as there are samples")
    p.add_argument("-o", dest="out", required=True, help="the table")
    p.add_argument("flags", nargs="*", help="further flags of onnxq calibrate, behind --")
    a = p.parse_args()
    spark = SparkSession.builder.appName("onnxq calibrate").getOrCreate()
    try:
        contents = table(spark, a.onnxq, a.model, a.data, a.shards, a.flags)
    finally:
        spark.stop()
    with open(a.out, "wb") as f:
        f.write(contents)


if __name__ == "__main__":
    main()
