"""Cases for com.microsoft's attention operators, computed by ONNX Runtime: python attention.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(14)
MS = "com.microsoft"


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def i32(*v):
    return np.array(v, np.int32)


B, S, N, H, L, P = 2, 4, 3, 16, 5, 2
D = N * H
flags = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
x, w, b = f(B, S, 10), f(10, 3 * D), f(3 * D)
past = f(2, B, N, P, H)
cases = [
    run("Attention", [x, w, b], domain=MS, name="att", num_heads=N),
    run("Attention", [x, w, b, flags], domain=MS, name="att_flags", num_heads=N),
    run("Attention", [x, w, b, i32(3, 2)], domain=MS, name="att_ends", num_heads=N),
    run("Attention", [x, w, b, i32(4, 3, 1, 0)], domain=MS, name="att_ends_starts", num_heads=N),
    run("Attention", [x, w, b, np.tril(np.ones((B, S, S), np.int32))], domain=MS, name="att_flags3", num_heads=N),
    run("Attention", [x, w, b], domain=MS, name="att_causal", num_heads=N, unidirectional=1, scale=0.3),
    run("Attention", [x, w, b, None, past], outputs=2, domain=MS, name="att_past", num_heads=N, unidirectional=1),
    run("Attention", [x, w, b, None, None, f(1, N, S, S)], domain=MS, name="att_bias", num_heads=N),
    run("Attention", [x, f(10, 2 * D + 12), f(2 * D + 12)], domain=MS, name="att_sizes", num_heads=N, qkv_hidden_sizes=[D, D, 12]),
    run("MultiHeadAttention", [f(B, S, D), f(B, L, D), f(B, L, 12)], domain=MS, name="mha", num_heads=N),
    run("MultiHeadAttention", [f(B, S, D), f(B, L, D), f(B, L, D), f(3 * D), i32(5, 3)], domain=MS, name="mha_mask", num_heads=N),
    run("MultiHeadAttention", [f(B, S, D), f(B, S, D), f(B, S, D), None, flags, f(B, N, S, S)], domain=MS, name="mha_bias", num_heads=N, scale=0.2),
    run("MultiHeadAttention", [f(B, S, D), f(B, S, D), f(B, S, D), None, None, None, f(B, N, P, H), f(B, N, P, H)], outputs=3, domain=MS, name="mha_past", num_heads=N, unidirectional=1),
    run("MultiHeadAttention", [f(B, S, D), f(B, N, L, H), f(B, N, L, H)], domain=MS, name="mha_cross", num_heads=N),
    run("RotaryEmbedding", [f(B, S, D), np.array([[0, 1, 2, 3], [2, 3, 4, 5]]), f(9, H // 2), f(9, H // 2)], domain=MS, name="rotary"),
    run("RotaryEmbedding", [f(B, N, S, H), np.array([3]), f(9, H // 2), f(9, H // 2)], domain=MS, name="rotary_offset", interleaved=1),
]
K = 1
q, k, v = f(B, S, N * H), f(B, S, K * H), f(B, S, K * H)
cos, sin = f(16, H // 2), f(16, H // 2)
gqa = dict(domain=MS, outputs=3, num_heads=N, kv_num_heads=K)
cases += [
    run("GroupQueryAttention", [q, k, v, None, None, i32(3, 3), i32(4)], name="gqa_prompt", **gqa),
    run("GroupQueryAttention", [q, k, v, None, None, i32(3, 3), i32(4), cos, sin], name="gqa_rotary", do_rotary=1, **gqa),
    run("GroupQueryAttention", [f(B, S, (N + 2 * K) * H), None, None, None, None, i32(3, 3), i32(4), cos, sin], name="gqa_packed", do_rotary=1, rotary_interleaved=1, **gqa),
    run("GroupQueryAttention", [f(B, 1, D), f(B, 1, H), f(B, 1, H), f(B, K, 6, H), f(B, K, 6, H), i32(6, 4), i32(7), cos, sin], name="gqa_step", do_rotary=1, **gqa),
    run("GroupQueryAttention", [f(B, 1, D), f(B, 1, H), f(B, 1, H), f(B, K, 6, H), f(B, K, 6, H), i32(6, 6), i32(7)], name="gqa_window", local_window_size=3, softcap=2.0, **gqa),
    run("GroupQueryAttention", [q, k, v, None, None, i32(3, 3), i32(4), None, None, None, None, f(N)], name="gqa_sink", **gqa),
    run("GroupQueryAttention", [q, k, v, None, None, i32(3, 3), i32(4)], name="gqa_smooth", smooth_softmax=1, scale=0.2, **gqa),
]
u, wq = rng.integers(0, 256, (B, S, 10)).astype(np.uint8), rng.integers(-128, 128, (10, 3 * D)).astype(np.int8)
q8 = [u, wq, f(3 * D), np.float32(0.01), np.abs(f(3 * D)) * 0.01]
cases += [
    run("QAttention", q8 + [i32(3, 2), np.uint8(120), np.zeros(3 * D, np.int8)], domain=MS, name="qatt", num_heads=N, rtol=1e-4, atol=1e-4),
    run("QAttention", q8[:4] + [np.float32(0.01), None, np.uint8(120), np.int8(0), past], outputs=2, domain=MS, name="qatt_past", num_heads=N, unidirectional=1, rtol=1e-4, atol=1e-4),
]
write("attention.json", cases)
