"""Cases for operators of com.microsoft, computed by ONNX Runtime: python contrib.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(47)
MS = "com.microsoft"


def f(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def ids(rows, *shape):
    return rng.integers(0, rows, shape).astype(np.int32)


cases = []
words, places, kinds, gamma, beta = f(11, 8), f(6, 8), f(2, 8), f(8), f(8)
mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
cases += [
    run("EmbedLayerNormalization", [ids(11, 2, 5), ids(2, 2, 5), words, places, kinds, gamma, beta, mask], 2, domain=MS, name="embed", epsilon=1e-5),
    run("EmbedLayerNormalization", [ids(11, 2, 5), None, words, places, None, gamma, beta], 2, domain=MS, name="embed_plain"),
    run("EmbedLayerNormalization", [ids(11, 2, 5), ids(2, 2, 5), words, places, kinds, gamma, beta, None, ids(6, 2, 5)], 3, domain=MS, name="embed_places"),
    run("EmbedLayerNormalization", [ids(11, 2, 5), ids(2, 2, 5), words, places, kinds, gamma, beta, None, ids(6, 1, 5)], 3, domain=MS, name="embed_one_place"),
    run("TransposeMatMul", [f(2, 4, 3), f(2, 5, 4)], domain=MS, name="transpose_matmul", transA=1, transB=1, alpha=0.5),
    run("Inverse", [f(4, 4) + 4 * np.eye(4, dtype=np.float32)], domain=MS, name="inverse"),
    run("Inverse", [f(2, 3, 3, 3)], domain=MS, name="inverse_batch", rtol=1e-3, atol=1e-3),
    run("Inverse", [np.array([[0, 2], [3, 1]], np.float32)], domain=MS, name="inverse_pivot"),
    run("Inverse", [f(3, 3, dtype=np.float64)], domain=MS, name="inverse_double"),
    run("Trilu", [f(2, 4, 5)], domain=MS, name="trilu"),
    run("Trilu", [f(4, 5), np.array(-1)], domain=MS, name="trilu_lower", upper=0),
]
for metric in ("euclidean", "sqeuclidean"):
    cases += [run("CDist", [f(5, 7), f(6, 7)], domain=MS, name="cdist_" + metric, metric=metric, rtol=1e-4),
              run("CDist", [f(1, 3, dtype=np.float64), f(6, 3, dtype=np.float64)], domain=MS, name="cdist_double_" + metric, metric=metric)]
grid = (rng.random((2, 4, 3, 2)) * 2.6 - 1.3).astype(np.float32)
for mode in ("bilinear", "nearest", "bicubic"):
    for padding in ("zeros", "border", "reflection"):
        cases.append(run("GridSample", [f(2, 3, 5, 6), grid], domain=MS, name=f"grid_{mode}_{padding}", mode=mode, padding_mode=padding, align_corners=int(padding == "border")))

for t in (np.uint8, np.int8):
    i = np.iinfo(t)
    code = lambda *s: rng.integers(i.min, i.max + 1, s).astype(t)  # noqa: E731
    zero = lambda: np.asarray(rng.integers(i.min // 2 + i.max // 4, i.max // 2), t)  # noqa: E731
    scale = lambda: np.float32(rng.random() * 0.05 + 0.01)  # noqa: E731
    for name, shapes in (("same", ((3, 40),) * 3), ("broadcast", ((3, 1), (3, 40), (40,))), ("scalar", ((2, 3, 5), (1,), (2, 3, 5)))):
        c, a, b = shapes
        cases.append(run("QLinearWhere", [rng.random(c) < 0.5, code(*a), scale(), zero(), code(*b), scale(), zero(), scale(), zero()], domain=MS,
                         name=f"where_{name}_{t.__name__}", const=(2, 3, 5, 6, 7, 8), rtol=0, atol=0))

x, w, b = f(2, 3, 7), f(3, 1, 4), f(3)
cases += [
    run("CausalConvWithState", [x, w, b], 2, domain=MS, name="causal"),
    run("CausalConvWithState", [x, w, b, f(2, 3, 3)], 2, domain=MS, name="causal_state", activation="silu"),
    run("CausalConvWithState", [f(2, 3, 2), w], 2, domain=MS, name="causal_short"),
]
for rule in ("linear", "gated", "delta", "gated_delta"):
    for heads, kv in ((4, 2), (2, 2), (2, 4)):
        k = f(2, 5, kv, 4)
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        ins = [f(2, 5, heads * 4), k.reshape(2, 5, kv * 4), f(2, 5, kv * 6), f(2, kv, 4, 6),
               -np.abs(f(2, 5, kv)) if "gated" in rule else None, rng.random((2, 5, kv)).astype(np.float32) if "delta" in rule else None]
        while ins[-1] is None:
            ins.pop()
        cases.append(run("LinearAttention", ins, 2, domain=MS, name=f"linear_{rule}_{heads}_{kv}", q_num_heads=heads, kv_num_heads=kv, update_rule=rule))
for kind in (0, 1):
    for n, k, block in ((6, 32, 16), (5, 24, 16), (4, 6, 32)):
        b = rng.integers(0, 256, n * k // 2).astype(np.uint8)
        s = rng.random((n * k + block - 1) // block).astype(np.float32)
        cases.append(run("MatMulBnb4", [f(2, 3, k), b, s], domain=MS, name=f"bnb4_{kind}_{n}_{k}", const=(1, 2), N=n, K=k, block_size=block, quant_type=kind))
write("contrib.json", cases)
