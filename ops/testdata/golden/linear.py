"""Cases for linear attention, gates and determinants: python linear.py

ONNX Runtime 1.32 has no kernels for operator sets 27 and 28; those cases are
computed by the reference evaluator of onnx 1.23.2, Det by ONNX Runtime."""
import numpy as np
from golden import case, run, write
from onnx import helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(31)


def f(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def ref(op, inputs, outputs=1, opset=27, domain="", name=None, tol=1e-5, **attrs):
    node = helper.make_node(op, [f"i{i}" if t is not None else "" for i, t in enumerate(inputs)], [f"o{i}" for i in range(outputs)], domain=domain, **attrs)
    given = {f"i{i}": t for i, t in enumerate(inputs) if t is not None}
    infos = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(t.dtype), t.shape) for k, t in given.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(f"o{i}") for i in range(outputs)])
    sets = [helper.make_opsetid("", opset if domain == "" else 26)] + ([helper.make_opsetid(domain, opset)] if domain else [])
    got = ReferenceEvaluator(helper.make_model(graph, opset_imports=sets)).run(None, given)
    return case(name or op, node, opset, inputs, got, tol, tol)


cases = []
for alpha in (1.0, 1.7, 0.0):
    cases.append(ref("SwiGLU", [f(3, 37), f(3, 37)], opset=28, name=f"swiglu_{alpha}", alpha=alpha))
cases += [
    ref("SwiGLU", [f(5, 4, dtype=np.float64), f(5, 4, dtype=np.float64)], opset=28, name="swiglu_double"),
    ref("SwiGLU", [f(5, 4, dtype=np.float16), f(5, 4, dtype=np.float16)], opset=28, name="swiglu_half", tol=2e-3),
]

x, w, b = f(2, 3, 7), f(3, 1, 4), f(3)
cases += [
    ref("CausalConvWithState", [x, w], 2, name="causal"),
    ref("CausalConvWithState", [x, w, b, f(2, 3, 3)], 2, name="causal_state", activation="silu"),
    ref("CausalConvWithState", [x, w, None, f(2, 3, 3)], 2, name="causal_swish", activation="swish"),
    ref("CausalConvWithState", [f(2, 3, 2), w, b], 2, name="causal_short"),
    ref("CausalConvWithState", [f(1, 3, 1), w, b, f(1, 3, 3)], 2, name="causal_step"),
    ref("CausalConvWithState", [x, f(3, 1, 1), b], 2, name="causal_one_tap"),
    ref("CausalConvWithState", [x.astype(np.float16), w.astype(np.float16), b.astype(np.float16)], 2, name="causal_half", tol=4e-3),
]


def attention(name, rule, batch=2, length=5, heads=4, kv=2, dk=3, dv=6, past=False, per_key=False, one_beta=False, dtype=np.float32, state=np.float32, **attrs):
    k = f(batch, length, kv, dk)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    ins = [f(batch, length, heads * dk, dtype=dtype), k.reshape(batch, length, kv * dk).astype(dtype), f(batch, length, kv * dv, dtype=dtype)]
    decay = -np.abs(f(batch, length, kv * (dk if per_key else 1))).astype(dtype) if "gated" in rule else None
    beta = (1 / (1 + np.exp(-f(batch, length, 1 if one_beta else kv)))).astype(dtype) if "delta" in rule else None
    ins += [f(batch, kv, dk, dv, dtype=state) if past else None, decay, beta]
    while ins[-1] is None:
        ins.pop()
    tol = 5e-3 if dtype == np.float16 else 1e-5
    return ref("LinearAttention", ins, 2, name="linear_" + name, tol=tol, q_num_heads=heads, kv_num_heads=kv, update_rule=rule, **attrs)


for rule in ("linear", "gated", "delta", "gated_delta"):
    cases += [attention(rule, rule), attention(rule + "_past", rule, past=True, heads=2, kv=2)]
cases += [
    attention("per_key", "gated_delta", per_key=True),
    attention("one_beta", "delta", one_beta=True, kv=4),
    attention("one_kv", "gated_delta", kv=1, scale=0.3),
    attention("step", "gated_delta", length=1, past=True),
    attention("half", "gated_delta", dtype=np.float16, state=np.float16, past=True),
]

for q, k, v, name, kw in [
    (f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6), "plain", {}),
    (f(2, 4, 3, 5), f(2, 2, 6, 5), f(2, 2, 6, 5), "groups", dict(scale=0.25)),
    (f(1, 2, 3, 4, dtype=np.float64), f(1, 2, 3, 4, dtype=np.float64), f(1, 2, 3, 4, dtype=np.float64), "double", {}),
]:
    cases.append(ref("FlexAttention", [q, k, v], opset=1, domain="ai.onnx.preview", name="flex_" + name, **kw))

cases += [
    run("Det", [f(4, 4)], name="det"),
    run("Det", [f(2, 3, 5, 5)], name="det_batch"),
    run("Det", [np.array([[0, 2, 1], [3, 0, 1], [1, 1, 0]], np.float32)], name="det_pivot"),
    run("Det", [np.array([[1, 2], [2, 4]], np.float32)], name="det_singular"),
    run("Det", [f(2, 1, 1)], name="det_one"),
]
write("linear.json", cases)
