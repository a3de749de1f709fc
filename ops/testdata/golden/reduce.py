"""Cases for reductions, scans, Softmax, Einsum and losses, computed by ONNX Runtime: python reduce.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(4)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def i(dtype, *shape, lo=-9, hi=9):
    return rng.integers(lo, hi, shape).astype(dtype)


def axes(*a):
    return np.array(a, np.int64)


cases = []
for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"]:
    x = f(2, 3, 2, 4)
    for name, a in dict(last=[3], first=[0], middle=[1, 2], apart=[0, 2], apart_last=[1, 3], negative=[-1, 0]).items():
        cases.append(run(op, [x, axes(*a)], opset=18, name=f"{op}_{name}", keepdims=len(a) % 2))
    cases.append(run(op, [x], opset=18, name=f"{op}_all"))
    cases.append(run(op, [x], opset=11, name=f"{op}_attribute", axes=[1, -1], keepdims=0))
    cases.append(run(op, [f(70, 9), axes(0)], opset=18, name=f"{op}_long"))
cases += [
    run("ReduceLogSum", [np.abs(f(3, 4, 5)), axes(1)], opset=18, name="ReduceLogSum"),
    run("ReduceSum", [f(2, 3), axes()], opset=13, name="reduce_empty_axes"),
    run("ReduceSum", [f(2, 3)], opset=13, name="reduce_noop", noop_with_empty_axes=1),
    run("ReduceSum", [i(np.int64, 3, 4), axes(0)], opset=13, name="reduce_int64", keepdims=0),
    run("ReduceMean", [i(np.int32, 3, 4), axes(1)], opset=18, name="reduce_mean_int32"),
    run("ReduceMax", [i(np.int8, 3, 4), axes(0)], opset=18, name="reduce_max_int8"),
    run("ReduceMin", [i(np.uint8, 3, 4, lo=0), axes(1)], opset=18, name="reduce_min_uint8"),
    run("ReduceProd", [i(np.int64, 4, lo=1)], opset=18, name="reduce_prod_int64", keepdims=0),
    run("ReduceMean", [f(3, 4).astype(np.float64), axes(0)], opset=18, name="reduce_mean_double"),
    run("ArgMax", [f(3, 4, 5)], name="argmax", axis=1),
    run("ArgMin", [f(3, 4, 5)], name="argmin", axis=-1, keepdims=0),
    run("ArgMax", [i(np.int32, 3, 8, lo=0, hi=3)], name="argmax_last", axis=1, select_last_index=1),
    run("CumSum", [f(3, 4, 5), np.array(1, np.int64)], name="cumsum"),
    run("CumSum", [f(3, 4), np.array(-1, np.int32)], name="cumsum_reverse", reverse=1, exclusive=1),
    run("CumSum", [i(np.int64, 6), np.array(0, np.int64)], name="cumsum_int64", exclusive=1),
    run("TopK", [f(4, 30), axes(5)], outputs=2, name="topk"),
    run("TopK", [i(np.int64, 4, 30), axes(7)], outputs=2, name="topk_ties", largest=0),
    run("TopK", [f(3, 20, 4), axes(6)], outputs=2, name="topk_axis", axis=1),
    run("TopK", [f(3, 6)], outputs=2, opset=9, name="topk_attribute", k=2),
    run("Softmax", [f(4, 37) * 5], name="softmax"),
    run("Softmax", [f(3, 5, 7)], name="softmax_axis", axis=1),
    run("Softmax", [f(3, 5, 7)], opset=11, name="softmax_flat"),
    run("Softmax", [f(3, 5, 7)], opset=11, name="softmax_flat_axis", axis=2),
    run("LogSoftmax", [f(4, 37) * 5], name="log_softmax"),
    run("LogSoftmax", [f(3, 5, 7)], name="log_softmax_axis", axis=0),
    run("LogSoftmax", [f(3, 5, 7)], opset=11, name="log_softmax_flat", axis=0),
    run("Hardmax", [f(3, 5, 7)], name="hardmax", axis=1),
    run("Hardmax", [f(3, 5, 7)], opset=11, name="hardmax_flat"),
    run("Softmax", [f(4, 9).astype(np.float64)], name="softmax_double"),
    run("Einsum", [f(3, 4), f(4, 5)], name="einsum_matmul", equation="ij,jk->ik"),
    run("Einsum", [f(2, 3, 4), f(2, 5, 4)], name="einsum_scores", equation="bid,bjd->bij"),
    run("Einsum", [f(2, 6, 3, 4), f(2, 7, 3, 4)], name="einsum_heads", equation="bqhd,bkhd->bhqk"),
    run("Einsum", [f(2, 3, 4, 5), f(2, 3, 5, 6)], name="einsum_ellipsis", equation="...ij,...jk->...ik"),
    run("Einsum", [f(3, 3)], name="einsum_diagonal", equation="ii->i"),
    run("Einsum", [f(3, 4, 5)], name="einsum_reduce", equation="ijk->kj"),
    run("Einsum", [f(3, 4)], name="einsum_implicit", equation="ba"),
    run("Einsum", [f(3), f(4)], name="einsum_outer", equation="i,j->ij"),
    run("Einsum", [f(3, 4), f(4, 5), f(5, 2)], name="einsum_three", equation="ij,jk,kl->il"),
    run("Einsum", [f(3, 4), f(3, 4)], name="einsum_dot", equation="ij,ij->"),
    run("Einsum", [f(2, 3, 4).astype(np.float64), f(4).astype(np.float64)], name="einsum_double", equation="bij,j->bi"),
    run("NegativeLogLikelihoodLoss", [f(3, 5), i(np.int64, 3, lo=0, hi=5), np.abs(f(5))], name="nll"),
    run("NegativeLogLikelihoodLoss", [f(3, 5, 4), i(np.int64, 3, 4, lo=0, hi=5)], name="nll_none", reduction="none", ignore_index=2),
    run("SoftmaxCrossEntropyLoss", [f(3, 5, 4), i(np.int64, 3, 4, lo=0, hi=5), np.abs(f(5))], outputs=2, name="sce", ignore_index=1),
    run("SoftmaxCrossEntropyLoss", [f(3, 5), i(np.int64, 3, lo=0, hi=5)], name="sce_sum", reduction="sum"),
]
write("reduce.json", cases)
