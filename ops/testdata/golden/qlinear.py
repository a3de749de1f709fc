"""Cases for operators on 8-bit codes, computed by ONNX Runtime: python qlinear.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(11)
MS = "com.microsoft"


def codes(t, *shape):
    i = np.iinfo(t)
    return rng.integers(i.min, i.max + 1, shape).astype(t)


def mid(t, *shape):
    """Zero points near the middle of the type."""
    i = np.iinfo(t)
    return rng.integers((i.min + i.max) // 2 - 9, (i.min + i.max) // 2 + 9, shape).astype(t)


def scale(*shape):
    return np.asarray(rng.random(shape) * 0.02 + 0.01, np.float32)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


exact = dict(rtol=0, atol=0)
u8, i8 = np.uint8, np.int8
cases = []
for a, b in ((u8, i8), (u8, u8), (i8, i8)):
    n = f"{a.__name__}_{b.__name__}"
    cases += [
        run("MatMulInteger", [codes(a, 4, 7), codes(b, 7, 5), mid(a), mid(b)], name="mmi_" + n, const=(1, 3), **exact),
        run("MatMulInteger", [codes(a, 2, 3, 4, 7), codes(b, 7, 5)], name="mmi_batch_" + n, **exact),
        run("MatMulInteger", [codes(a, 2, 4, 7), codes(b, 2, 7, 5), mid(a), mid(b, 2, 1, 5)], name="mmi_columns_" + n, const=(1, 3), **exact),
        run("QLinearMatMul", [codes(a, 4, 7), scale(), mid(a), codes(b, 7, 5), scale(), mid(b), 20 * scale(), mid(a)], name="qmm_" + n, **exact),
        run("QLinearMatMul", [codes(a, 3, 4, 7), scale(), mid(a), codes(b, 7, 5), scale(5), mid(b, 5), 20 * scale(), mid(a)], name="qmm_columns_" + n, **exact),
        run("MatMulIntegerToFloat", [codes(a, 3, 4, 7), codes(b, 7, 5), scale(), scale(5), mid(a), mid(b, 5), f(5)], domain=MS, name="mmf_" + n),
        run("QGemm", [codes(a, 4, 7), scale(), mid(a), codes(b, 5, 7), scale(5), np.zeros(5, b), rng.integers(-999, 999, 5).astype(np.int32), 20 * scale(), mid(a)],
            domain=MS, name="qgemm_" + n, transB=1, **exact),
        run("QGemm", [codes(a, 7, 4), scale(), mid(a), codes(b, 7, 5), scale(), mid(b), rng.integers(-999, 999, (4, 5)).astype(np.int32)],
            domain=MS, name="qgemm_float_" + n, transA=1, alpha=0.5),
        run("QLinearConv", [codes(a, 2, 4, 7, 6), scale(), mid(a), codes(b, 6, 4, 3, 3), scale(), mid(b), 20 * scale(), mid(a), rng.integers(-999, 999, 6).astype(np.int32)],
            name="qconv_" + n, pads=[1, 0, 1, 2], strides=[2, 1], **exact),
    ]
    if b == i8:
        z = np.zeros(6, b)
        cases += [
            run("QLinearConv", [codes(a, 1, 4, 7, 6), scale(), mid(a), codes(b, 6, 2, 3, 3), scale(6), z, 20 * scale(), mid(a)],
                name="qconv_group_" + n, group=2, dilations=[2, 1], **exact),
            run("QLinearConv", [codes(a, 1, 6, 7, 6), scale(), mid(a), codes(b, 6, 1, 3, 3), scale(6), z, 5 * scale(), mid(a), rng.integers(-999, 999, 6).astype(np.int32)],
                name="qconv_depthwise_" + n, group=6, auto_pad="SAME_UPPER", strides=[2, 2], **exact),
            run("QLinearConv", [codes(a, 1, 6, 9), scale(), mid(a), codes(b, 6, 6, 1), scale(6), z, 20 * scale(), mid(a)], name="qconv1d_" + n, **exact),
            run("QLinearConv", [codes(a, 1, 7, 6, 4), scale(), mid(a), codes(b, 6, 4, 3, 3), scale(6), z, 20 * scale(), mid(a)],
                domain=MS, name="qconv_last_" + n, channels_last=1, pads=[1, 1, 1, 1], **exact),
        ]
for t in (u8, i8):
    n = t.__name__
    cases += [
        run("QLinearAdd", [codes(t, 3, 40), scale(), mid(t), codes(t, 3, 40), scale(), mid(t), scale(), mid(t)], domain=MS, name="add_" + n, **exact),
        run("QLinearAdd", [codes(t, 3, 40), scale(), mid(t), codes(t, 1), scale(), mid(t), scale(), mid(t)], domain=MS, name="add_scalar_" + n, **exact),
        run("QLinearMul", [codes(t, 3, 40), scale(), mid(t), codes(t, 40), scale(), mid(t), scale(), mid(t)], domain=MS, name="mul_" + n, **exact),
        run("QLinearMul", [codes(t, 2, 3, 4), scale(), mid(t), codes(t, 3, 1), scale(), mid(t), scale(), mid(t)], domain=MS, name="mul_broadcast_" + n, **exact),
        run("QLinearSigmoid", [codes(t, 3, 40), 2 * scale(), mid(t), scale() / 5, mid(t)], domain=MS, name="sigmoid_" + n, const=(1, 2, 3, 4), rtol=0, atol=1),
        run("QLinearLeakyRelu", [codes(t, 3, 40), scale(), mid(t), scale(), mid(t)], domain=MS, name="leaky_" + n, const=(1, 2, 3, 4), alpha=0.3, **exact),
        run("QLinearSoftmax", [codes(t, 3, 20), 2 * scale(), mid(t), np.float32(1 / 256), np.asarray(np.iinfo(t).min, t)], domain=MS, name="softmax_" + n,
            const=(1, 2, 3, 4), rtol=0, atol=1, axis=-1, extra={"opset": 13}),
        run("QLinearConcat", [scale(), mid(t), codes(t, 2, 3, 4), scale(), mid(t), codes(t, 2, 5, 4), scale(), mid(t)], domain=MS, name="concat_" + n, axis=1, **exact),
        run("QLinearAveragePool", [codes(t, 2, 3, 7, 6), scale(), mid(t), scale(), mid(t)], domain=MS, name="average_" + n, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0],
            const=(1, 2, 3, 4), rtol=0, atol=1),
        run("QLinearAveragePool", [codes(t, 2, 7, 6, 3), scale(), mid(t), scale(), mid(t)], domain=MS, name="average_last_" + n, kernel_shape=[3, 2], strides=[2, 1],
            channels_last=1, const=(1, 2, 3, 4), rtol=0, atol=1),
        run("QLinearGlobalAveragePool", [codes(t, 2, 3, 7, 6), scale(), mid(t), scale(), mid(t)], domain=MS, name="global_" + n, **exact),
        run("QLinearGlobalAveragePool", [codes(t, 2, 7, 6, 3), scale(), mid(t), scale(), mid(t)], domain=MS, name="global_last_" + n, channels_last=1, **exact),
    ]
cases += [
    run("ConvInteger", [codes(u8, 2, 4, 7, 6), codes(u8, 6, 4, 3, 3), mid(u8), mid(u8)], name="convint", pads=[1, 0, 1, 2], strides=[2, 1], **exact),
    run("ConvInteger", [codes(u8, 1, 4, 7, 6), codes(i8, 6, 2, 3, 3)], name="convint_group", group=2, **exact),
    run("DynamicQuantizeMatMul", [f(3, 4, 7), codes(i8, 7, 5), scale(5), mid(i8, 5), f(5)], domain=MS, name="dynamic"),
    run("DynamicQuantizeMatMul", [f(4, 7), codes(u8, 7, 5), scale(), mid(u8)], domain=MS, name="dynamic_u8"),
    run("DynamicQuantizeMatMul", [f(4, 7), codes(i8, 7, 5), scale()], domain=MS, name="dynamic_plain"),
]
write("qlinear.json", cases)
