"""Cases for normalizations, computed by ONNX Runtime: python norm.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(5)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def pos(*shape):
    return np.abs(f(*shape)) + np.float32(0.1)


cases = [
    run("BatchNormalization", [f(2, 5, 4, 3), f(5), f(5), f(5), pos(5)], name="batch"),
    run("BatchNormalization", [f(6, 5), f(5), f(5), f(5), pos(5)], name="batch_flat", epsilon=0.01),
    run("BatchNormalization", [f(2, 3, 7), f(3), f(3), f(3), pos(3)], opset=9, name="batch_9"),
    run("BatchNormalization", [f(2, 3, 7), f(3), f(3), f(3), pos(3)], opset=7, name="batch_7"),
    run("BatchNormalization", [f(2, 3, 4).astype(np.float64)] + [v.astype(np.float64) for v in (f(3), f(3), f(3), pos(3))], name="batch_double"),
    run("InstanceNormalization", [f(2, 3, 4, 5), f(3), f(3)], name="instance"),
    run("InstanceNormalization", [f(2, 3, 9) + 100, f(3), f(3)], name="instance_offset", epsilon=0.001, rtol=1e-3, atol=1e-3),
    run("LayerNormalization", [f(2, 3, 40), f(40), f(40)], outputs=3, name="layer"),
    run("LayerNormalization", [f(2, 3, 4, 5), f(4, 5), f(4, 5)], outputs=3, name="layer_axis", axis=2),
    run("LayerNormalization", [f(2, 3, 40), f(40)], name="layer_no_bias", axis=-1, epsilon=0.1),
    run("LayerNormalization", [f(2, 3, 40).astype(np.float64), f(40).astype(np.float64), f(40).astype(np.float64)], name="layer_double"),
    run("SimplifiedLayerNormalization", [f(2, 3, 40), f(40)], name="simplified", opset=17, axis=-1, epsilon=1e-6, stash_type=1),
    run("SkipLayerNormalization", [f(2, 3, 40), f(2, 3, 40), f(40), f(40), f(40)], domain="com.microsoft",
        outputs=[True, False, False, True], name="skip", epsilon=1e-5),
    run("SkipLayerNormalization", [f(2, 3, 40), f(2, 3, 40), f(40)], domain="com.microsoft", name="skip_plain", epsilon=1e-5),
    run("SkipLayerNormalization", [f(2, 3, 40), f(3, 40), f(40), f(40)], domain="com.microsoft", name="skip_broadcast", epsilon=1e-5),
    run("SkipSimplifiedLayerNormalization", [f(2, 3, 40), f(2, 3, 40), f(40), f(40)], domain="com.microsoft",
        outputs=[True, False, False, True], name="skip_simplified", epsilon=1e-5),
    run("GroupNormalization", [f(2, 6, 4, 5), f(6), f(6)], opset=21, name="group", num_groups=3),
    run("GroupNormalization", [f(2, 6, 4, 5), f(3), f(3)], opset=18, name="group_18", num_groups=3),
    run("RMSNormalization", [f(2, 3, 40), f(40)], opset=23, name="rms"),
    run("LRN", [f(2, 9, 4, 5)], name="lrn", size=5, alpha=0.3, beta=0.6, bias=1.5),
    run("LRN", [f(1, 4, 7, 1)], name="lrn_default", size=3),
    run("LpNormalization", [f(3, 4, 5)], name="lp2", axis=1),
    run("LpNormalization", [f(3, 4, 5)], name="lp1", p=1),
    run("MeanVarianceNormalization", [f(2, 3, 4, 5)], name="mvn"),
    run("MeanVarianceNormalization", [f(2, 3, 4, 5)], name="mvn_axes", axes=[2, 3]),
]
write("norm.json", cases)
