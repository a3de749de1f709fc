"""Cases for ai.onnx.ml, computed by ONNX Runtime: python ml.py"""
import numpy as np
from golden import run, write
from onnx import helper

rng = np.random.default_rng(12)
ML = "ai.onnx.ml"


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def forest(trees, features, depth, prefix, targets, positive=False, values=None):
    """Random full trees as the attributes of the ensembles of opset 1."""
    a = {k: [] for k in ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids", "missing_value_tracks_true")}
    modes, thresholds = [], []
    v = {k: [] for k in ("treeids", "nodeids", "ids")}
    weights = []
    for t in range(trees):
        n = 2 ** (depth + 1) - 1
        for i in range(n):
            leaf = i >= 2 ** depth - 1
            a["treeids"].append(t)
            a["nodeids"].append(i)
            a["featureids"].append(0 if leaf else int(rng.integers(features)))
            a["truenodeids"].append(0 if leaf else 2 * i + 1)
            a["falsenodeids"].append(0 if leaf else 2 * i + 2)
            a["missing_value_tracks_true"].append(0 if leaf else int(rng.integers(2)))
            modes.append("LEAF" if leaf else str(rng.choice(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"])))
            thresholds.append(0.0 if leaf else float(np.float32(rng.standard_normal() * 0.7)))
            if leaf:
                for target in targets:
                    v["treeids"].append(t)
                    v["nodeids"].append(i)
                    v["ids"].append(target)
                    w = float(np.float32(rng.standard_normal()))
                    weights.append(abs(w) if positive else w)
    out = {"nodes_" + k: x for k, x in a.items()}
    out |= dict(nodes_modes=modes, nodes_values=thresholds)
    out |= {f"{prefix}_{k}": x for k, x in v.items()}
    out[prefix + "_weights"] = weights
    return out


x = f(7, 5)
gaps = x.copy()
gaps[2, 3] = gaps[4, 0] = np.nan
cases = []
for post in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
    cases += [
        run("LinearRegressor", [x], domain=ML, opset=1, name="linreg_" + post, coefficients=f(15).tolist(), intercepts=f(3).tolist(), targets=3, post_transform=post),
        run("LinearClassifier", [x], outputs=2, domain=ML, opset=1, name="lincls_" + post, coefficients=f(15).tolist(), intercepts=f(3).tolist(),
            classlabels_ints=[4, 2, 9], post_transform=post),
        run("TreeEnsembleRegressor", [gaps], domain=ML, opset=1, name="treereg_" + post, post_transform=post, n_targets=2, **forest(3, 5, 3, "target", [0, 1])),
        run("TreeEnsembleClassifier", [gaps], outputs=2, domain=ML, opset=1, name="treecls_" + post, post_transform=post, classlabels_int64s=[4, 2, 9],
            **forest(3, 5, 2, "class", [0, 1, 2])),
        run("TreeEnsembleClassifier", [x], outputs=2, domain=ML, opset=1, name="treecls_two_" + post, post_transform=post, classlabels_int64s=[4, 2],
            **forest(3, 5, 2, "class", [0, 1])),
    ]
    for positive in (False, True):
        cases.append(run("TreeEnsembleClassifier", [x], outputs=2, domain=ML, opset=1, name=f"treecls_binary_{post}_{positive}", post_transform=post,
                         classlabels_strings=["no", "yes"], **forest(3, 5, 2, "class", [0 if positive else 1], positive)))
for post in ("NONE", "LOGISTIC"):
    cases += [
        run("TreeEnsembleClassifier", [x], outputs=2, domain=ML, opset=1, name="treecls_base_" + post, post_transform=post, classlabels_int64s=[4, 2, 9],
            base_values=[0.3, -0.2, 0.1], **forest(3, 5, 2, "class", [0, 1, 2])),
        run("TreeEnsembleClassifier", [x], outputs=2, domain=ML, opset=1, name="treecls_binary_base_" + post, post_transform=post, classlabels_int64s=[0, 1],
            base_values=[-0.7], **forest(3, 5, 2, "class", [0])),
        run("LinearClassifier", [x], outputs=2, domain=ML, opset=1, name="lincls_binary_" + post, coefficients=f(5).tolist(), intercepts=f(1).tolist(),
            classlabels_strings=["a", "b"], post_transform=post),
        run("LinearClassifier", [x], outputs=2, domain=ML, opset=1, name="lincls_two_" + post, coefficients=f(10).tolist(), intercepts=f(2).tolist(),
            classlabels_ints=[0, 1], post_transform=post),
    ]
for merge in ("AVERAGE", "SUM", "MIN", "MAX"):
    cases.append(run("TreeEnsembleRegressor", [x], domain=ML, opset=1, name="treereg_" + merge, aggregate_function=merge, n_targets=2, base_values=[0.5, -1.0],
                     **forest(4, 5, 2, "target", [0, 1])))
cases.append(run("TreeEnsembleRegressor", [x.astype(np.float64)], domain=ML, opset=1, name="treereg_double", n_targets=1, **forest(4, 5, 3, "target", [0])))
cases += [
    run("Scaler", [x], domain=ML, opset=1, name="scaler", offset=f(5).tolist(), scale=f(5).tolist()),
    run("Scaler", [rng.integers(-9, 9, (4, 3))], domain=ML, opset=1, name="scaler_int", offset=[0.5], scale=[2.0]),
    run("Imputer", [gaps], domain=ML, opset=1, name="imputer", imputed_value_floats=[1.0, 2.0, 3.0, 4.0, 5.0], replaced_value_float=float("nan")),
    run("Imputer", [rng.integers(0, 3, (4, 3))], domain=ML, opset=1, name="imputer_int", imputed_value_int64s=[7], replaced_value_int64=1),
    run("Binarizer", [x], domain=ML, opset=1, name="binarizer", threshold=0.2),
    run("ArrayFeatureExtractor", [x, np.array([3, 0, 3])], domain=ML, opset=1, name="extractor"),
    run("ArrayFeatureExtractor", [x[0], np.array([[3, 1]])], domain=ML, opset=1, name="extractor_vector"),
    run("FeatureVectorizer", [x, f(7, 2)], domain=ML, opset=1, name="vectorizer", inputdimensions=[5, 2]),
    run("LabelEncoder", [np.array([["a", "b"], ["c", "a"]], object)], domain=ML, opset=2, name="label_strings", keys_strings=["a", "c"], values_int64s=[3, 9], default_int64=-4),
    run("LabelEncoder", [np.array([1, 5, 2])], domain=ML, opset=2, name="label_ints", keys_int64s=[1, 2], values_strings=["x", "y"]),
    run("LabelEncoder", [np.array([1, np.nan, 2], np.float32)], domain=ML, opset=2, name="label_floats", keys_floats=[2.0, float("nan")], values_floats=[0.5, 7.0]),
    run("LabelEncoder", [np.array(["a", "b"], object)], domain=ML, opset=1, name="label_1", classes_strings=["b", "c"]),
    run("LabelEncoder", [np.array([1, 7])], domain=ML, opset=1, name="label_1_back", classes_strings=["b", "c"]),
    run("LabelEncoder", [np.array([1.5, 7.0])], domain=ML, opset=4, name="label_4",
        keys_tensor=helper.make_tensor("k", 11, [2], [1.5, 2.0]), values_tensor=helper.make_tensor("v", 11, [2], [8.0, 9.0]), default_tensor=helper.make_tensor("d", 11, [1], [-3.0])),
    run("CategoryMapper", [np.array(["a", "z"], object)], domain=ML, opset=1, name="category", cats_strings=["a", "b"], cats_int64s=[10, 20]),
    run("CategoryMapper", [np.array([20, 30])], domain=ML, opset=1, name="category_back", cats_strings=["a", "b"], cats_int64s=[10, 20]),
    run("OneHotEncoder", [np.array([[2, 4], [9, 2]])], domain=ML, opset=1, name="onehot", cats_int64s=[2, 4, 7]),
    run("OneHotEncoder", [np.array(["q", "p"], object)], domain=ML, opset=1, name="onehot_strings", cats_strings=["p", "q"]),
]
# With votes for both of two classes ONNX Runtime returns the label 0 or 1, whatever the labels are: only scores are compared.
for c in cases:
    if c["Name"].startswith("treecls_two"):
        c["Outputs"][0] = None
cases.append(run("LabelEncoder", [np.array([1, np.nan, 2], np.float32)], domain=ML, opset=4, name="label_nan", keys_floats=[2.0, float("nan")], values_floats=[0.5, 7.0]))
for norm in ("MAX", "L1", "L2"):
    cases.append(run("Normalizer", [x], domain=ML, opset=1, name="normalizer_" + norm, norm=norm))
write("ml.json", cases)
