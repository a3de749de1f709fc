"""Records the ranges that onnxruntime.quantization finds: python make.py > onnxruntime.json

The data is made with integer and exact float64 arithmetic, so that the test
makes the same: see distribution in method_test.go.
"""
import contextlib
import io
import json

import numpy as np
import onnxruntime
from onnxruntime.quantization.calibrate import HistogramCollector

N = 200_000


def uniform(seed, n):
    """splitmix64, upper 32 bits"""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(32)).astype(np.float64) / 2**32


def distribution(name):
    u = uniform(1, N)
    x = uniform(2, 12 * N).reshape(N, 12).sum(1) - 6
    if name == "uniform":
        x = 2 * u - 1
    elif name == "relu":
        x = np.maximum(x, 0)
    elif name == "heavy":
        x = x * np.abs(x) * np.abs(x)
    elif name == "outliers":
        x = np.where(u < 0.0001, x * 8, x)
    elif name == "shifted":
        x = x + 2
    elif name == "clipped":
        x = np.minimum(np.maximum(x + 1, 0), 2)
    x = x / np.abs(x).max() * 0.999
    # The range is [-1, 1), so that the bins are ours.
    return np.append(x, [-1.0, 0.0]).astype(np.float32)


def run(x, method, bins, symmetric, levels=128, percentile=99.999):
    c = HistogramCollector(method, symmetric, bins, levels, percentile, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        c.collect({"x": [x]})
        r = c.compute_collection_result()["x"]
    return [float(r[0]), float(r[1])]


out = {"onnxruntime": onnxruntime.__version__, "cases": []}
for name in ["normal", "uniform", "relu", "heavy", "outliers", "shifted", "clipped"]:
    x = distribution(name)
    for p in [99.999, 99.9, 99, 90]:
        for symmetric in [False, True]:
            r = run(x, "percentile", 2048 if symmetric else 4096, symmetric, percentile=p)
            out["cases"].append({"data": name, "method": "percentile", "percentile": p, "symmetric": symmetric, "range": r})
    for levels in [128, 256]:
        r = run(x, "entropy", 4096, False, levels)
        out["cases"].append({"data": name, "method": "entropy", "levels": levels, "range": r})
print("{\"onnxruntime\": %s, \"cases\": [" % json.dumps(out["onnxruntime"]))
print(",\n".join(json.dumps(c) for c in out["cases"]))
print("]}")
