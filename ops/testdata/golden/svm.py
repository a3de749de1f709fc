"""Cases for support vector machines, computed by ONNX Runtime: python svm.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(17)
ML = "ai.onnx.ml"


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def classifier(name, classes, per, x=None, kind="RBF", post="NONE", proba=False, positive=False, names=False, rtol=1e-4):
    width, n, pairs = 4, sum(per), classes * (classes - 1) // 2
    count = (classes - 1) * n if per else classes * width
    c = f(count)
    a = dict(coefficients=(abs(c) if positive else c).tolist(), rho=f(max(pairs, 1)).tolist(), kernel_type=kind, kernel_params=[0.3, 0.2, 3.0], post_transform=post)
    if per:
        a.update(vectors_per_class=per, support_vectors=f(n * width).tolist())
    if proba:
        a.update(prob_a=(-abs(f(pairs))).tolist(), prob_b=f(pairs).tolist())
    labels = [7, 3, 12, 5][:classes]
    a.update(dict(classlabels_strings=[f"c{v}" for v in labels]) if names else dict(classlabels_ints=labels))
    return run("SVMClassifier", [f(9, width) if x is None else x], outputs=2, domain=ML, opset=1, name="svc_" + name, rtol=rtol, **a)


def regressor(name, supports, kind="RBF", post="NONE", one_class=0, x=None):
    width = 4
    a = dict(n_supports=supports, support_vectors=f(supports * width).tolist()) if supports else {}
    return run("SVMRegressor", [f(9, width) if x is None else x], domain=ML, opset=1, name="svr_" + name, rtol=1e-4, coefficients=f(supports or width).tolist(),
               rho=f(1).tolist(), kernel_type=kind, kernel_params=[0.3, 0.2, 3.0], post_transform=post, one_class=one_class, **a)


cases = []
for kind in ("LINEAR", "POLY", "RBF", "SIGMOID"):
    cases += [classifier("two_" + kind, 2, [3, 2], kind=kind), classifier("three_" + kind, 3, [2, 4, 3], kind=kind), regressor(kind, 6, kind),
              regressor("one_class_" + kind, 6, kind, one_class=1)]
for post in ("LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"):
    cases += [classifier("two_" + post, 2, [3, 2], post=post), classifier("four_" + post, 4, [2, 1, 3, 2], post=post),
              classifier("proba_" + post, 3, [2, 4, 3], post=post, proba=True), classifier("linear_" + post, 3, [], post=post),
              classifier("linear_one_" + post, 1, [], post=post), regressor(post, 5, post=post)]
cases += [
    classifier("proba_two", 2, [3, 2], proba=True),
    classifier("proba_four", 4, [2, 1, 3, 2], proba=True, names=True),
    classifier("proba_probit", 3, [2, 1, 3], proba=True, post="PROBIT", rtol=1e-3),  # the runtime's inverse of erf is an approximation
    classifier("positive", 3, [2, 1, 3], positive=True),
    classifier("linear_two", 2, []),
    classifier("linear_two_positive", 2, [], positive=True),
    classifier("linear_rbf", 3, [], kind="RBF"),
    classifier("double", 3, [2, 1, 3], x=f(5, 4).astype(np.float64)),
    classifier("int", 3, [2, 1, 3], x=rng.integers(-3, 3, (5, 4))),
    classifier("vector", 3, [2, 1, 3], x=f(4)),
    regressor("linear", 0, "LINEAR"),
    regressor("linear_poly", 0, "POLY"),
    regressor("linear_one_class", 0, "LINEAR", one_class=1),
    regressor("vector", 5, x=f(4)),
]
write("svm.json", cases)
