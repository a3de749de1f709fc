"""Cases for quantization, computed by ONNX Runtime: python quantize.py"""
import numpy as np
from golden import run, write
from onnx import TensorProto, helper

rng = np.random.default_rng(10)
MS = "com.microsoft"


def f(*shape, dtype=np.float32):
    return (rng.standard_normal(shape) * 3).astype(dtype)


def codes(t, *shape):
    lo, hi = {TensorProto.UINT4: (0, 15), TensorProto.INT4: (-8, 7), TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127),
              TensorProto.UINT16: (0, 65535), TensorProto.INT16: (-32768, 32767)}[t]
    return helper.make_tensor("t", t, shape, rng.integers(lo, hi + 1, shape).flatten().tolist())


def scale(*shape):
    return (rng.random(shape) * 0.1 + 0.01).astype(np.float32)


T = TensorProto
cases = []
for t, name in ((T.UINT8, "u8"), (T.INT8, "i8"), (T.UINT16, "u16"), (T.INT16, "i16"), (T.UINT4, "u4"), (T.INT4, "i4")):
    for kind, s, attrs in (("tensor", (), {}), ("axis", (5,), dict(axis=1)), ("last", (7,), dict(axis=-1)),
                           ("blocked", (3, 3, 7), dict(axis=1, block_size=2)), ("blocked_last", (3, 5, 3), dict(axis=2, block_size=3))):
        z = codes(t, *s)
        attrs["narrow"] = t if name in ("u4", "i4") else None
        cases.append(run("QuantizeLinear", [f(3, 5, 7), scale(*s), z], opset=21, name=f"q_{name}_{kind}", rtol=0, atol=0, const=(1, 2), **attrs))
        cases.append(run("DequantizeLinear", [codes(t, 3, 5, 7), scale(*s), z], opset=21, name=f"dq_{name}_{kind}", rtol=0, atol=0, const=(1, 2), **dict(attrs, narrow=None)))
    if t not in (T.UINT8, T.INT8):
        z = codes(t)
        cases.append(run("QuantizeLinear", [f(3, 5), scale(), z], domain=MS, name=f"ms_q_{name}", rtol=0, atol=0, narrow=t if name in ("u4", "i4") else None))
        cases.append(run("DequantizeLinear", [codes(t, 3, 5), scale(), z], domain=MS, name=f"ms_dq_{name}", rtol=0, atol=0))
cases += [
    run("QuantizeLinear", [f(4, 3), scale()], opset=13, name="q_default", rtol=0, atol=0),
    run("QuantizeLinear", [f(4, 3), scale(), codes(T.INT8)], opset=10, name="q_10", rtol=0, atol=0),
    run("QuantizeLinear", [f(4, 3), scale()], opset=21, name="q_output_dtype", rtol=0, atol=0, output_dtype=T.INT16),
    run("DequantizeLinear", [codes(T.INT8, 4, 3), scale().astype(np.float16), codes(T.INT8)], opset=19, name="dq_fp16", rtol=0, atol=0),
    run("QuantizeLinear", [f(4, 3, dtype=np.float16), scale().astype(np.float16), codes(T.INT8)], opset=19, name="q_fp16", rtol=0, atol=1),
    run("DynamicQuantizeLinear", [f(4, 9)], outputs=3, opset=11, name="dynamic", rtol=0, atol=0),
    run("DynamicQuantizeLinear", [np.abs(f(4, 9)) + 1], outputs=3, opset=11, name="dynamic_positive", rtol=0, atol=0),
    run("DynamicQuantizeLinear", [-np.abs(f(4, 9)) - 1], outputs=3, opset=11, name="dynamic_negative", rtol=0, atol=0),
    run("DynamicQuantizeLinear", [np.zeros((3,), np.float32)], outputs=3, opset=11, name="dynamic_zero", rtol=0, atol=0),
]
for t, name in ((T.FLOAT8E4M3FN, "e4m3fn"), (T.FLOAT8E4M3FNUZ, "e4m3fnuz"), (T.FLOAT8E5M2, "e5m2"), (T.FLOAT8E5M2FNUZ, "e5m2fnuz")):
    z = helper.make_tensor("z", t, (), [0.0])
    x = np.array([0, 1, -2.3, 1e-4, 3e5, -3e5, np.inf, -np.inf, np.nan, 17.3], np.float32)
    for saturate in (0, 1):
        c = run("QuantizeLinear", [x, np.float32(0.7), z], opset=19, name=f"q_{name}_{saturate}", rtol=0, atol=0, saturate=saturate, narrow=t)
        cases.append(c)
write("quantize.json", cases)
