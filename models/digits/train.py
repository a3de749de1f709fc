"""Trains the digits classifier and writes this folder's model and samples.

    python models/digits/train.py        (under a minute on one core)
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import nn  # first: it sets the number of BLAS threads
import numpy as np
import sample
from onnx import TensorProto, helper
from sklearn.datasets import load_digits

SEED = 1
CALIB, TEST = 32 * 8, 16 * 32
EPOCHS, BATCH = 60, 64
EPSILON = 1e-5


class BatchNorm:
    def __init__(self, channels):
        self.gamma = nn.Var(np.ones((channels, 1, 1), np.float32))
        self.beta = nn.Var(np.zeros((channels, 1, 1), np.float32))
        self.mean = np.zeros((channels, 1, 1), np.float32)
        self.var = np.ones((channels, 1, 1), np.float32)

    def __call__(self, x):
        y, mean, var = nn.normalize(x, (0, 2, 3), EPSILON)
        self.mean += 0.1 * (mean[0] - self.mean)
        self.var += 0.1 * (var[0] - self.var)
        return nn.affine(y, self.gamma, self.beta)


def layers():
    """name -> (filter shape, groups) in the order of the forward pass."""
    return {
        "stem": ((16, 1, 3, 3), 1),
        "depthwise": ((16, 1, 3, 3), 16),
        "pointwise": ((32, 16, 1, 1), 1),
        "res_a": ((32, 32, 3, 3), 1),
        "res_b": ((32, 32, 3, 3), 1),
        "head": ((48, 32, 3, 3), 1),
    }


class Net:
    def __init__(self, rng):
        self.w, self.bn = {}, {}
        for name, (shape, _) in layers().items():
            std = np.sqrt(2 / np.prod(shape[1:]))
            self.w[name] = nn.Var((std * rng.standard_normal(shape)).astype(np.float32))
            self.bn[name] = BatchNorm(shape[0])
        self.fc_w = nn.Var((rng.standard_normal((48, 10)) / np.sqrt(48)).astype(np.float32))
        self.fc_b = nn.Var(np.zeros(10, np.float32))

    def params(self):
        norms = [p for b in self.bn.values() for p in (b.gamma, b.beta)]
        return [*self.w.values(), *norms, self.fc_w, self.fc_b]

    def block(self, name, x, activate=True):
        f = nn.depthwise if layers()[name][1] > 1 else nn.conv
        y = self.bn[name](f(x, self.w[name]))
        return nn.relu(y) if activate else y

    def __call__(self, x):
        h = self.block("stem", nn.Var(x))
        h = self.block("pointwise", self.block("depthwise", h))
        h = nn.maxpool2(h)
        h = nn.relu(nn.add(h, self.block("res_b", self.block("res_a", h), activate=False)))
        h = nn.global_average(self.block("head", h))
        return nn.add(nn.matmul(h, self.fc_w), self.fc_b)

    def export(self):
        nodes, inits = [], []

        def const(name, array):
            inits.append(sample.initializer(name, array.astype(np.float32)))
            return name

        def node(op, name, inputs, **attrs):
            nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
            return name

        def block(name, x, activate=True):
            shape, groups = layers()[name]
            pad = shape[2] // 2
            y = node("Conv", f"{name}_conv", [x, const(f"{name}_w", self.w[name].data)],
                     kernel_shape=shape[2:], pads=[pad] * 4, strides=[1, 1], group=groups)
            bn = self.bn[name]
            stats = {"gamma": bn.gamma.data, "beta": bn.beta.data, "mean": bn.mean, "var": bn.var}
            y = node("BatchNormalization", f"{name}_bn",
                     [y, *(const(f"{name}_{k}", v.ravel()) for k, v in stats.items())], epsilon=EPSILON)
            return node("Relu", f"{name}_relu", [y]) if activate else y

        h = block("pointwise", block("depthwise", block("stem", "image")))
        h = node("MaxPool", "pool", [h], kernel_shape=[2, 2], strides=[2, 2])
        h = node("Add", "res_add", [h, block("res_b", block("res_a", h), activate=False)])
        h = block("head", node("Relu", "res_relu", [h]))
        h = node("Flatten", "flat", [node("GlobalAveragePool", "average", [h])])
        node("Gemm", "logits", [h, const("fc_w", self.fc_w.data.T), const("fc_b", self.fc_b.data)], transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        return sample.make_model(helper.make_graph(nodes, "digits", [image], [logits], inits), 13)


def shift(rng, x):
    """Moves each image by -1, 0 or 1 pixel along each axis."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.stack([p[:, i : i + 8, j : j + 8] for p, (i, j) in zip(padded, rng.integers(0, 3, (len(x), 2)))])


def main():
    data = load_digits()
    x = (data.images / 16).astype(np.float32)[:, None]
    y = data.target.astype(np.uint8)
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(x))
    test, calib, train = order[:TEST], order[TEST : TEST + CALIB], order[TEST + CALIB :]

    net = Net(rng)
    steps = len(train) // BATCH
    adam = nn.Adam(net.params(), rate=3e-3, steps=EPOCHS * steps, warmup=steps, decay=0.02)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in rng.permutation(train)[: steps * BATCH].reshape(steps, BATCH):
            images = shift(rng, x[batch]) if epoch < EPOCHS * 3 // 4 else x[batch]
            loss = nn.cross_entropy(net(images), y[batch], smoothing=0.05)
            loss.backward()
            adam.step()
            total += float(loss.data)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: training loss {total / steps:.4f}", flush=True)

    feeds = lambda index, size: [{"image": x[i]} for i in index.reshape(-1, size)]
    sample.write(
        HERE, net.export(), feeds(calib, 8), feeds(test, 32), [y[i] for i in test.reshape(-1, 32)],
        title="Handwritten digits, residual convolutional network",
        source="Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998; UCI), CC BY 4.0",
        metric="accuracy",
    )


if __name__ == "__main__":
    main()
