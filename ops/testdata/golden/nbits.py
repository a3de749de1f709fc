"""Cases for weights of few bits and for dynamic quantization, computed by ONNX Runtime: python nbits.py"""
import numpy as np
from golden import run, write
from onnx import TensorProto, helper

rng = np.random.default_rng(13)
MS = "com.microsoft"


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def u8(*shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


cases = []
for bits in (2, 4, 8):
    n, k, block = 5, 40, 16
    blocks = (k + block - 1) // block
    b, s = u8(n, blocks, block * bits // 8), np.abs(f(n, blocks)) * 0.1
    z = u8(n, (blocks * bits + 7) // 8)
    at = dict(domain=MS, N=n, K=k, bits=bits, block_size=block, rtol=1e-4, atol=1e-4)
    cases += [
        run("MatMulNBits", [f(2, 3, k), b, s], name=f"nbits_{bits}", const=(1, 2), **at),
        run("MatMulNBits", [f(3, k), b, s, z], name=f"nbits_zero_{bits}", const=(1, 2, 3), **at),
        run("MatMulNBits", [f(3, k), b, s, None, None, f(n)], name=f"nbits_bias_{bits}", const=(1, 2, 5), **at),
    ]
for bits in (4, 8):
    data = u8(6, 4, 32 * bits // 8)
    s = np.abs(f(6, 4, 2))
    z = u8(6, 4, 2 * bits // 8)
    idx = np.array([[5, 0, 3], [-1, 2, 2]])
    at = dict(domain=MS, bits=bits, block_size=16, quantize_axis=2)
    cases += [
        run("GatherBlockQuantized", [data, idx, s], name=f"gather_u8_{bits}", const=(0, 2), **at),
        run("GatherBlockQuantized", [data, idx, s, z], name=f"gather_zero_u8_{bits}", const=(0, 2, 3), **at),
    ]
d4 = helper.make_tensor("d", TensorProto.INT4, [6, 32], rng.integers(-8, 8, 192).tolist())
cases.append(run("GatherBlockQuantized", [d4, np.array([5, 1]), np.abs(f(6, 2))], domain=MS, name="gather_int4", block_size=16, quantize_axis=1, const=(0, 2)))
T, B, I, H = 4, 2, 5, 6
for t in (np.int8, np.uint8):
    for direction, d in (("forward", 1), ("bidirectional", 2)):
        for per in (False, True):
            info = np.iinfo(t)
            w, r = (rng.integers(info.min, info.max + 1, (d, k, 4 * H)).astype(t) for k in (I, H))
            shape = (d, 4 * H) if per else (d,)
            s = (rng.random((2,) + shape) * 0.005 + 0.002).astype(np.float32)
            z = np.zeros(shape, t) if per or t == np.int8 else np.full(shape, 127, t)
            cases.append(run("DynamicQuantizeLSTM", [f(T, B, I), w, r, f(d, 8 * H), None, None, None, None, s[0], z, s[1], z], outputs=3, domain=MS,
                             name=f"lstm_{t.__name__}_{direction}_{per}", direction=direction, hidden_size=H, const=(1, 2, 8, 9, 10, 11), rtol=0, atol=1e-2))  # a state may round to the next code
cases.append(run("DeformConv", [f(2, 4, 6, 5), f(6, 2, 3, 3), f(2, 2 * 18, 6, 5), f(6), np.abs(f(2, 2 * 9, 6, 5))], opset=19, name="deform", group=2, offset_group=2, pads=[1, 1, 1, 1]))
write("nbits.json", cases)
