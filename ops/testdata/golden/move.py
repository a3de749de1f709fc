"""Cases of the operators that shape, move and index; results from ONNX Runtime."""
import numpy as np
from golden import run, write
from onnx import helper

rng = np.random.default_rng(7)


def ints(*v):
    return np.array(v, np.int64)


def data(dtype, *shape):
    if dtype == str:
        return np.array([f"s{k}" for k in range(int(np.prod(shape)))], object).reshape(shape)
    if dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(-100, 100, shape).astype(dtype)


types = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, bool, str]
cases = []


def add(*args, **kw):
    """Adds a case unless ONNX Runtime does not compute it, and says so."""
    try:
        cases.append(run(*args, **kw))
    except Exception as e:
        print("left out:", kw.get("name"), str(e).splitlines()[0][-120:])


for d in types:
    n = getattr(d, "__name__", d)
    x = data(d, 2, 3, 4, 5)
    for p in ([0, 2, 3, 1], [3, 2, 1, 0], [1, 0, 2, 3], [0, 2, 1, 3]):
        add("Transpose", [x], perm=p, name=f"transpose {n} {p}")
    add("Slice", [x, ints(1, -1), ints(1 << 60, -100), ints(1, -1), ints(1, -2)], name=f"slice {n}")
    add("Expand", [data(d, 3, 1), ints(2, 1, 4)], name=f"expand {n}")
    add("Tile", [data(d, 2, 3), ints(2, 3)], name=f"tile {n}")
    add("Concat", [x, data(d, 2, 1, 4, 5), x], axis=1, name=f"concat {n}")
    add("Split", [x, ints(1, 2)], 2, axis=1, name=f"split {n}")
    if d != str:  # ONNX Runtime 1.32 leaves all but the first string of a block empty
        add("Gather", [x, ints(-1, 0, 1, 1).reshape(2, 2)], axis=2, name=f"gather {n}")
    add("GatherElements", [x, rng.integers(-3, 3, (2, 2, 4, 5))], axis=1, name=f"gather elements {n}")
    add("GatherND", [x, ints(0, 1, -1, 2).reshape(2, 2)], name=f"gather nd {n}")
    add("GatherND", [x, ints(2, 3, 0, 1).reshape(2, 1, 2)], batch_dims=1, name=f"gather nd batch {n}")
    add("ScatterElements", [data(d, 3, 4), ints(0, 2, -1, 1).reshape(2, 2), data(d, 2, 2)], axis=1, name=f"scatter elements {n}")
    add("ScatterND", [data(d, 3, 4), ints(2, 0).reshape(2, 1), data(d, 2, 4)], name=f"scatter nd {n}")
    if d not in (np.float16,):
        add("Compress", [x, np.array([True, False, True])], axis=1, name=f"compress {n}")
    for mode in ("constant", "edge", "reflect", "wrap"):
        if d not in (str, np.float16):
            add("Pad", [x, ints(0, 1, 0, 2, 1, 0, 0, 3)], mode=mode, opset=19, name=f"pad {mode} {n}")
    if d in (np.float32, np.float64, np.uint8, str):
        add("ReverseSequence", [x, ints(1, 3)], batch_axis=0, time_axis=1, name=f"reverse {n}")
    if d in (np.float32, np.float64, np.int64, bool):
        add("Trilu", [data(d, 2, 3, 4), np.array(1, np.int64)], upper=0, name=f"trilu {n}")
    if d in (np.float32, np.float64, np.int8, np.int64, str):
        u = data(d, 4, 3)
        u[2] = u[0]
        for attrs in ({}, {"axis": 0}, {"axis": 1, "sorted": 0}):
            add("Unique", [u], 4, name=f"unique {n} {attrs}", **attrs)
for d in (np.float32, np.float64, np.int32, np.int64, np.uint8, np.float16):
    for r in ("add", "mul", "min", "max"):
        n = d.__name__
        add("ScatterElements", [data(d, 3, 4), ints(0, 2, -1, 0).reshape(4, 1), data(d, 4, 1)][:1] + [ints(0, 2, 0, 0).reshape(1, 4), data(d, 1, 4)],
            axis=1, reduction=r, opset=18, name=f"scatter elements {r} {n}", rtol=1e-3)
        add("ScatterND", [data(d, 3, 4), ints(2, 0, 2).reshape(3, 1), data(d, 3, 4)], reduction=r, opset=18, name=f"scatter nd {r} {n}", rtol=1e-3)
add("Pad", [data(np.float32, 4, 5), ints(-1, 1, 1, -1)], mode="reflect", opset=18, name="pad and crop")
add("Pad", [data(np.float32, 4, 5), ints(2, 1), np.array(3, np.float32), ints(-1)], opset=18, name="pad axes")
add("Pad", [data(np.float32, 4, 5)], pads=[1, 0, 0, 2], value=2.5, opset=10, name="pad attributes")
add("Slice", [data(np.float32, 4, 5)], starts=[1, -3], ends=[3, 1000], opset=9, name="slice attributes")
add("Squeeze", [data(np.float32, 1, 5, 1)], axes=[0, -1], opset=11, name="squeeze attributes")
add("Squeeze", [data(np.float32, 1, 5, 1)], opset=13, name="squeeze all")
add("Unsqueeze", [data(np.float32, 5, 2)], axes=[0, -1], opset=11, name="unsqueeze attributes")
add("Split", [data(np.float32, 7, 2)], 3, num_outputs=3, opset=18, name="split uneven")
add("Split", [data(np.float32, 6, 2)], 3, opset=12, name="split equal")
add("Split", [data(np.float32, 6, 2)], 2, split=[4, 2], opset=11, name="split attribute")
add("Reshape", [data(np.float32, 2, 3, 4), ints(0, -1, 2)], name="reshape zero and open")
add("Reshape", [data(np.float32, 0, 3), ints(3, 0)], allowzero=1, opset=14, name="reshape allowzero")
add("Range", [np.array(10, np.int32), np.array(-5, np.int32), np.array(-4, np.int32)], name="range down")
add("Range", [np.array(0.5, np.float32), np.array(3, np.float32), np.array(0.3, np.float32)], name="range float")
add("OneHot", [ints(0, 5, -1, 2).reshape(2, 2), np.array(3, np.int64), np.array([2, 7], np.float32)], axis=1, name="one hot")
add("NonZero", [data(bool, 2, 3, 4)], name="nonzero")
add("DepthToSpace", [data(np.float32, 2, 8, 3, 2)], blocksize=2, mode="CRD", name="depth to space")
add("DepthToSpace", [data(np.float32, 2, 8, 3, 2)], blocksize=2, mode="DCR", name="depth to space")
add("SpaceToDepth", [data(np.float32, 2, 2, 4, 6)], blocksize=2, name="space to depth")
add("ConstantOfShape", [ints(2, 3)], value=helper.make_tensor("v", 7, [1], [5]), name="constant of shape")
add("Shape", [data(np.float32, 2, 3, 4, 5)], start=1, end=-1, name="shape range")
add("EyeLike", [np.zeros((3, 4), np.int32)], k=1, dtype=1, name="eye")
write("move.json", cases)
