"""Cases for element-wise operators, computed by ONNX Runtime: python elementwise.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(3)


def f(*shape, scale=2):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def i(dtype, *shape, lo=-50, hi=50):
    return rng.integers(lo, hi, shape).astype(dtype)


x = f(3, 20)
cases = []
for op in ["Abs", "Neg", "Floor", "Ceil", "Exp", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Erf", "Sigmoid", "Tanh",
           "Softsign", "Softplus", "Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "Sign", "Round", "Celu", "ThresholdedRelu",
           "Shrink", "HardSwish", "Reciprocal"]:
    cases.append(run(op, [x], name=op.lower()))
for op in ["Log", "Sqrt"]:
    cases.append(run(op, [np.abs(x)], name=op.lower()))
for op in ["Asin", "Acos", "Atanh"]:
    cases.append(run(op, [np.tanh(x)], name=op.lower(), atol=1e-4, rtol=1e-4))
cases += [
    run("Acosh", [np.abs(x) + 1], name="acosh"),
    run("Mish", [x], opset=18, name="mish"),
    run("Gelu", [x], opset=20, name="gelu"),
    run("Gelu", [x], opset=20, name="gelu_tanh", approximate="tanh"),
    run("Gelu", [x], domain="com.microsoft", name="ms_gelu"),
    run("FastGelu", [x, f(20)], domain="com.microsoft", name="fast_gelu_bias", rtol=1e-4),
    run("FastGelu", [x], domain="com.microsoft", name="fast_gelu", rtol=1e-4),
    run("QuickGelu", [x], domain="com.microsoft", name="quick_gelu"),
    run("QuickGelu", [x], domain="com.microsoft", name="quick_gelu_alpha", alpha=0.5),
    run("BiasGelu", [x, f(20)], domain="com.microsoft", name="bias_gelu"),
    run("LeakyRelu", [x], name="leaky", alpha=0.3),
    run("Elu", [x], name="elu_alpha", alpha=2.5),
    run("Selu", [x], name="selu_alpha", alpha=2.0, gamma=0.5),
    run("HardSigmoid", [x], name="hard_sigmoid_alpha", alpha=0.5, beta=0.6),
    run("Clip", [x, np.float32(-1), np.float32(0.5)], name="clip"),
    run("Clip", [x, None, np.float32(0.5)], name="clip_max"),
    run("Clip", [x, np.float32(0)], name="clip_min"),
    run("Clip", [x], opset=10, name="clip_attributes", min=-0.5, max=1.5),
    run("Clip", [i(np.int8, 40), np.int8(-5), np.int8(9)], name="clip_int8"),
    run("Clip", [i(np.uint64, 40, lo=0), np.uint64(5), np.uint64(9)], name="clip_uint64"),
    run("PRelu", [f(2, 5, 4), f(5, 1)], name="prelu"),
    run("PRelu", [f(2, 5, 4), f(1)], name="prelu_scalar"),
    run("Neg", [i(np.int32, 30)], name="neg_int32"),
    run("Abs", [i(np.int64, 30)], name="abs_int64"),
    run("Sign", [i(np.uint8, 30, lo=0)], name="sign_uint8"),
    run("Add", [f(4, 1, 30), f(3, 1)], name="add_broadcast"),
    run("Sub", [f(20, 3), f(3)], name="sub_short"),
    run("Div", [f(2, 3, 40), f(3, 1)], name="div_channel"),
    run("Div", [i(np.int32, 30), i(np.int32, 30, lo=1)], name="div_int32"),
    run("Div", [i(np.int64, 30), np.int64(-7)], name="div_int64"),
    run("Mod", [i(np.int32, 30), i(np.int32, 30, lo=1, hi=9)], name="mod_int32"),
    run("Mod", [i(np.int64, 30), np.int64(-7)], name="mod_negative"),
    run("Mod", [i(np.int64, 30), np.int64(-7)], name="fmod_int64", fmod=1),
    run("Mod", [f(30), f(30)], name="fmod_float", fmod=1),
    run("Pow", [np.abs(f(30)), f(30)], name="pow"),
    run("Pow", [f(30), np.float32(2)], name="pow_square"),
    run("Pow", [f(30), i(np.int64, 30, lo=0, hi=5)], name="pow_int_exponent"),
    run("Max", [f(2, 3), f(3), f(1)], name="max3"),
    run("Min", [i(np.int32, 2, 3), i(np.int32, 3)], name="min_int32"),
    run("Max", [i(np.uint64, 2, 3, lo=0), i(np.uint64, 2, 1, lo=0)], name="max_uint64"),
    run("Sum", [f(2, 3), f(3), f(2, 1), f(1)], name="sum4"),
    run("Mean", [f(2, 3), f(3), f(2, 1)], name="mean3"),
    run("BitShift", [i(np.uint8, 20, lo=0), i(np.uint8, 20, lo=0, hi=8)], name="shift_left", direction="LEFT"),
    run("BitShift", [i(np.uint64, 20, lo=0), i(np.uint64, 20, lo=0, hi=8)], name="shift_right", direction="RIGHT"),
    run("BitwiseAnd", [i(np.int16, 20), i(np.int16, 20)], opset=18, name="bitwise_and"),
    run("BitwiseOr", [i(np.uint8, 20, lo=0), i(np.uint8, 20, lo=0)], opset=18, name="bitwise_or"),
    run("BitwiseXor", [i(np.int64, 20), i(np.int64, 20)], opset=18, name="bitwise_xor"),
    run("BitwiseNot", [i(np.uint16, 20, lo=0)], opset=18, name="bitwise_not"),
    run("Xor", [i(bool, 4, 5, lo=0, hi=2), i(bool, 5, lo=0, hi=2)], name="xor"),
    run("Equal", [i(np.int64, 4, 5, lo=0, hi=3), i(np.int64, 5, lo=0, hi=3)], name="equal"),
    run("Equal", [np.array(["a", "b", ""], object), np.array(["a"], object)], opset=19, name="equal_strings"),
    run("GreaterOrEqual", [f(4, 5), f(4, 1)], name="greater_or_equal"),
    run("Where", [i(bool, 4, 1, lo=0, hi=2), f(5), f(4, 5)], name="where"),
    run("Where", [i(bool, 3, lo=0, hi=2), np.array(["a", "b", "c"], object), np.array(["x"], object)], name="where_strings"),
    run("IsInf", [np.array([1, np.inf, -np.inf, np.nan], np.float32)], name="is_inf", detect_negative=0),
    run("Cast", [f(40, scale=100)], name="cast_int32", to=6),
    run("Cast", [i(np.int64, 40, lo=-1000, hi=1000)], name="cast_uint8", to=2),
    run("Cast", [f(40, scale=100)], name="cast_float16", to=10),
    run("Cast", [f(40)], name="cast_bool", to=9),
    run("Cast", [np.array(["1.5", "-3", "1e3"], object)], name="cast_strings", to=1),
    run("Add", [f(40).astype(np.float16), f(40).astype(np.float16)], name="add_half"),
    run("Sigmoid", [f(40).astype(np.float64)], name="sigmoid_double"),
]
write("elementwise.json", cases)
