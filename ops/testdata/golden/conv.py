"""Cases for convolution and pooling, computed by ONNX Runtime: python conv.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(7)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


cases = [
    run("Conv", [f(2, 3, 9, 8), f(5, 3, 3, 3), f(5)], name="conv", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]),
    run("Conv", [f(1, 4, 6, 6), f(8, 4, 1, 1), f(8)], name="conv_pointwise"),
    run("Conv", [f(1, 6, 7, 5), f(4, 3, 2, 3)], name="conv_group", group=2, auto_pad="SAME_LOWER", strides=[2, 2]),
    run("Conv", [f(1, 6, 8, 9), f(6, 1, 3, 3), f(6)], name="conv_depthwise", group=6, auto_pad="SAME_UPPER", strides=[2, 2]),
    run("Conv", [f(1, 3, 8, 9), f(6, 1, 3, 3)], name="conv_multiplier", group=3, pads=[1, 1, 1, 1], dilations=[2, 1]),
    run("Conv", [f(2, 4, 12), f(3, 4, 5), f(3)], name="conv1d", strides=[3], pads=[2, 4], dilations=[2]),
    run("Conv", [f(1, 2, 5, 6, 7), f(4, 2, 3, 2, 3), f(4)], name="conv3d", pads=[1, 0, 1, 1, 1, 0], strides=[1, 2, 2]),
    run("Conv", [f(1, 2, 4, 4), f(3, 2, 3, 3)], name="conv_valid", auto_pad="VALID"),
    run("FusedConv", [f(1, 4, 6, 6), f(4, 4, 3, 3), f(4), f(1, 4, 6, 6)], domain="com.microsoft", name="fused_conv_sum",
        pads=[1, 1, 1, 1], activation="Relu"),
    run("FusedConv", [f(1, 4, 6, 6), f(4, 4, 3, 3)], domain="com.microsoft", name="fused_conv_leaky",
        activation="LeakyRelu", activation_params=[0.3]),
    run("FusedConv", [f(1, 4, 6, 6), f(4, 4, 3, 3), f(4)], domain="com.microsoft", name="fused_conv_hard",
        activation="HardSigmoid", activation_params=[0.1, 0.4]),
    run("ConvTranspose", [f(2, 4, 5, 6), f(4, 3, 3, 2), f(3)], name="convt", strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]),
    run("ConvTranspose", [f(1, 4, 5, 6), f(4, 3, 3, 3)], name="convt_group", group=2, strides=[2, 2], dilations=[2, 1]),
    run("ConvTranspose", [f(1, 4, 5, 6), f(4, 3, 3, 3)], name="convt_shape", strides=[2, 2], output_shape=[10, 12]),
    run("ConvTranspose", [f(1, 4, 5, 6), f(4, 3, 3, 3)], name="convt_same", strides=[2, 2], auto_pad="SAME_UPPER"),
    run("ConvTranspose", [f(1, 4, 7), f(4, 2, 4), f(2)], name="convt1d", strides=[2], pads=[1, 1]),
    run("ConvTranspose", [f(1, 2, 3, 4, 3), f(2, 2, 2, 3, 2)], name="convt3d", strides=[2, 1, 2]),
    run("MaxPool", [f(2, 3, 9, 8)], outputs=2, name="maxpool_indices", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 0]),
    run("MaxPool", [f(1, 2, 7, 6)], outputs=2, name="maxpool_columns", kernel_shape=[2, 2], strides=[2, 2], storage_order=1),
    run("MaxPool", [f(1, 2, 9, 9)], name="maxpool_ceil", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
    run("MaxPool", [f(1, 2, 9)], name="maxpool1d", kernel_shape=[4], strides=[3], pads=[1, 2]),
    run("MaxPool", [f(1, 2, 5, 6, 7)], outputs=2, name="maxpool3d", kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
    run("MaxPool", [rng.integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)], name="maxpool_u8", kernel_shape=[3, 3], strides=[2, 2]),
    run("MaxPool", [rng.integers(-128, 127, (1, 2, 6, 6)).astype(np.int8)], name="maxpool_i8", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    run("AveragePool", [f(2, 3, 9, 8)], name="avgpool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 0]),
    run("AveragePool", [f(1, 3, 9, 8)], opset=19, name="avgpool_pad", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    run("AveragePool", [f(1, 3, 9, 8)], opset=19, name="avgpool_dilated", kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1]),
    run("AveragePool", [f(1, 2, 5, 6, 7)], name="avgpool3d", kernel_shape=[2, 3, 2], strides=[1, 2, 2], ceil_mode=1),
    run("AveragePool", [f(1, 3, 9)], name="avgpool1d", kernel_shape=[5], auto_pad="SAME_LOWER", strides=[2]),
    run("LpPool", [f(1, 3, 9, 8)], opset=18, name="lppool", kernel_shape=[3, 2], strides=[2, 1], p=3),
    run("GlobalAveragePool", [f(2, 3, 5, 7)], name="global_average"),
    run("GlobalMaxPool", [f(2, 3, 5, 7)], name="global_max"),
    run("GlobalLpPool", [f(2, 3, 5, 7)], name="global_lp", p=3),
    run("MaxUnpool", [f(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]], np.int64)], name="unpool", kernel_shape=[2, 2], strides=[2, 2]),
]
write("conv.json", cases)
