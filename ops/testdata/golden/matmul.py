"""Cases for matrix products, computed by ONNX Runtime: python matmul.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(8)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


MS = "com.microsoft"
cases = [
    run("MatMul", [f(*a), f(*b)], name=f"matmul_{i}")
    for i, (a, b) in enumerate([
        ((5,), (5,)), ((5,), (5, 3)), ((4, 5), (5,)), ((4, 5), (5, 3)), ((2, 3, 4, 5), (5, 6)), ((4, 5), (2, 5, 3)),
        ((2, 4, 5), (2, 5, 3)), ((2, 1, 4, 5), (1, 3, 5, 2)), ((3, 4, 5), (2, 3, 5, 2)), ((2, 3, 4, 5), (5,)), ((5,), (2, 5, 3)),
        ((2, 3, 1, 4, 5), (2, 1, 3, 5, 2)),
    ])
]
cases += [
    run("MatMul", [rng.integers(-9, 9, (3, 4, 5)).astype(t), rng.integers(-9, 9, (5, 2)).astype(t)], name=f"matmul_{t}")
    for t in ("int32", "int64", "float64")
]
cases += [
    run("Gemm", [f(4, 5), f(5, 3), f(3)], name="gemm"),
    run("Gemm", [f(5, 4), f(3, 5), f(4, 1)], name="gemm_trans", transA=1, transB=1, alpha=0.5, beta=2.0),
    run("Gemm", [f(4, 5), f(3, 5), f(4, 3)], name="gemm_full", transB=1, alpha=1.5, beta=0.25),
    run("Gemm", [f(4, 5), f(3, 5), f(1)], name="gemm_scalar", transB=1, beta=0.25),
    run("Gemm", [f(4, 5), f(3, 5), f(1, 3)], name="gemm_row", transB=1, alpha=2.0),
    run("Gemm", [f(4, 5), f(5, 3)], name="gemm_plain", alpha=2.0),
    run("Gemm", [f(4, 5).astype(np.float64), f(5, 3).astype(np.float64), f(3).astype(np.float64)], name="gemm_double", beta=0.5),
    run("FusedMatMul", [f(2, 5, 4), f(2, 3, 5)], domain=MS, name="fused_trans", transA=1, transB=1, alpha=0.3),
    run("FusedMatMul", [f(4, 2, 5), f(3, 2, 5)], domain=MS, name="fused_batch", transBatchA=1, transB=1, transBatchB=1),
    run("FusedMatMul", [f(2, 4, 5), f(5, 3)], domain=MS, name="fused_alpha", alpha=0.125),
    run("FusedGemm", [f(4, 5), f(5, 3), f(3)], domain=MS, name="fused_gemm", activation="LeakyRelu", activation_alpha=0.2),
]
write("matmul.json", cases)
