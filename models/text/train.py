"""Trains the byte-level language model and writes this folder's model and samples.

    python models/text/train.py          (under ten minutes on one core)
"""

import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import nn  # first: it sets the number of BLAS threads
import numpy as np
import sample
from onnx import TensorProto, helper

SEED = 1
VOCAB, CONTEXT = 128, 128
WIDTH, HEADS, HIDDEN, LAYERS = 64, 4, 256, 2
STEPS, BATCH = 10000, 16
EPSILON = 1e-5
CALIB_LENGTHS = [128, 96, 64, 33]


def corpus():
    """The novel as bytes below 128, one line a paragraph."""
    text = (HERE / "pride-and-prejudice.txt").read_text(encoding="ascii")
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return np.frombuffer("\n".join(p for p in paragraphs if p).encode("ascii"), np.uint8)


class Net:
    def __init__(self, rng):
        normal = lambda std, *shape: nn.Var((std * rng.standard_normal(shape)).astype(np.float32))
        self.p = {"embedding": normal(0.05, VOCAB, WIDTH), "position": normal(0.05, CONTEXT, WIDTH)}
        for i in range(LAYERS):
            for name in "qkv":
                self.linear(f"h{i}_{name}", normal(WIDTH**-0.5, WIDTH, WIDTH))
            self.linear(f"h{i}_out", normal((2 * LAYERS * WIDTH) ** -0.5, WIDTH, WIDTH))
            self.linear(f"h{i}_up", normal(WIDTH**-0.5, WIDTH, HIDDEN))
            self.linear(f"h{i}_down", normal((2 * LAYERS * HIDDEN) ** -0.5, HIDDEN, WIDTH))
            self.norm(f"h{i}_norm1")
            self.norm(f"h{i}_norm2")
        self.norm("norm")
        self.linear("head", normal(WIDTH**-0.5, WIDTH, VOCAB))

    def linear(self, name, weight):
        self.p[f"{name}_w"] = weight
        self.p[f"{name}_b"] = nn.Var(np.zeros(weight.shape[1], np.float32))

    def norm(self, name):
        self.p[f"{name}_gamma"] = nn.Var(np.ones(WIDTH, np.float32))
        self.p[f"{name}_beta"] = nn.Var(np.zeros(WIDTH, np.float32))

    def __call__(self, tokens):
        b, n = tokens.shape
        p = self.p
        linear = lambda name, x: nn.add(nn.matmul(x, p[f"{name}_w"]), p[f"{name}_b"])
        norm = lambda name, x: nn.affine(nn.normalize(x, -1, EPSILON)[0], p[f"{name}_gamma"], p[f"{name}_beta"])
        split = lambda x, axes: nn.transpose(nn.reshape(x, (b, n, HEADS, WIDTH // HEADS)), axes)
        mask = np.tril(np.ones((n, n), bool))
        h = nn.add(nn.gather(p["embedding"], tokens), nn.gather(p["position"], np.arange(n)))
        for i in range(LAYERS):
            x = norm(f"h{i}_norm1", h)
            q = nn.scale(split(linear(f"h{i}_q", x), (0, 2, 1, 3)), (WIDTH // HEADS) ** -0.5)
            k = split(linear(f"h{i}_k", x), (0, 2, 3, 1))
            v = split(linear(f"h{i}_v", x), (0, 2, 1, 3))
            a = nn.matmul(nn.masked_softmax(nn.matmul(q, k), mask), v)
            a = nn.reshape(nn.transpose(a, (0, 2, 1, 3)), (b, n, WIDTH))
            h = nn.add(h, linear(f"h{i}_out", a))
            x = nn.gelu(linear(f"h{i}_up", norm(f"h{i}_norm2", h)))
            h = nn.add(h, linear(f"h{i}_down", x))
        return linear("head", norm("norm", h))

    def export(self):
        nodes, inits, given = [], [], set()

        def const(name, array):
            if name not in given:
                given.add(name)
                inits.append(sample.initializer(name, np.asarray(array)))
            return name

        def node(op, name, inputs, **attrs):
            nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
            return name

        f32 = lambda name, value: const(name, np.float32(value))
        i64 = lambda name, value: const(name, np.array(value, np.int64))
        param = lambda name: const(name, self.p[name].data)

        def linear(name, x, output=None):
            y = node("MatMul", f"{name}_matmul", [x, param(f"{name}_w")])
            return node("Add", output or f"{name}_add", [y, param(f"{name}_b")])

        def norm(name, x):
            return node("LayerNormalization", f"{name}_y", [x, param(f"{name}_gamma"), param(f"{name}_beta")],
                        axis=-1, epsilon=EPSILON)

        def split(name, x, perm):
            x = node("Reshape", f"{name}_heads", [x, i64("split_shape", [0, 0, HEADS, WIDTH // HEADS])])
            return node("Transpose", f"{name}_t", [x], perm=perm)

        def gelu(name, x):
            y = node("Erf", f"{name}_erf", [node("Div", f"{name}_div", [x, f32("sqrt2", np.sqrt(2))])])
            y = node("Mul", f"{name}_mul", [x, node("Add", f"{name}_one", [y, f32("one", 1)])])
            return node("Mul", f"{name}_half", [y, f32("half", 0.5)])

        length = node("Gather", "length", [node("Shape", "shape", ["tokens"]), i64("length_index", 1)], axis=0)
        places = node("Range", "places", [i64("zero", 0), length, i64("step", 1)])
        rows = node("Unsqueeze", "rows", [places, i64("last", [1])])
        columns = node("Unsqueeze", "columns", [places, i64("first", [0])])
        mask = node("GreaterOrEqual", "mask", [rows, columns])

        h = node("Gather", "embedded", [param("embedding"), "tokens"], axis=0)
        h = node("Add", "embedded_placed", [h, node("Gather", "placed", [param("position"), places], axis=0)])
        for i in range(LAYERS):
            x = norm(f"h{i}_norm1", h)
            q = split(f"h{i}_q", linear(f"h{i}_q", x), [0, 2, 1, 3])
            k = split(f"h{i}_k", linear(f"h{i}_k", x), [0, 2, 3, 1])
            v = split(f"h{i}_v", linear(f"h{i}_v", x), [0, 2, 1, 3])
            q = node("Mul", f"h{i}_q_scaled", [q, f32("attention_scale", (WIDTH // HEADS) ** -0.5)])
            a = node("MatMul", f"h{i}_scores", [q, k])
            a = node("Where", f"h{i}_masked", [mask, a, f32("hidden", np.finfo(np.float32).min)])
            a = node("MatMul", f"h{i}_mixed", [node("Softmax", f"h{i}_weights", [a], axis=-1), v])
            a = node("Transpose", f"h{i}_mixed_t", [a], perm=[0, 2, 1, 3])
            a = node("Reshape", f"h{i}_joined", [a, i64("join_shape", [0, 0, WIDTH])])
            h = node("Add", f"h{i}_res1", [h, linear(f"h{i}_out", a)])
            x = gelu(f"h{i}_gelu", linear(f"h{i}_up", norm(f"h{i}_norm2", h)))
            h = node("Add", f"h{i}_res2", [h, linear(f"h{i}_down", x)])
        linear("head", norm("norm", h), output="logits")

        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", VOCAB])
        return sample.make_model(helper.make_graph(nodes, "text", [tokens], [logits], inits), 17)


def main(steps=STEPS):
    data = corpus()
    n = len(data)
    train, calib, test = np.split(data, [n * 8 // 10, n * 9 // 10])

    rng = np.random.default_rng(SEED)
    net = Net(rng)
    adam = nn.Adam(list(net.p.values()), rate=3e-3, steps=steps, warmup=200, decay=0.02)
    window = np.arange(CONTEXT)
    began, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        index = rng.integers(0, len(train) - CONTEXT, BATCH)[:, None] + window
        loss = nn.cross_entropy(net(train[index]), train[index + 1])
        loss.backward()
        adam.step()
        total += float(loss.data)
        if step % 250 == 0:
            print(f"step {step}: training perplexity {np.exp(total / 250):.3f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)
            total = 0.0

    starts = np.linspace(0, len(calib) - 3 * CONTEXT - 1, 32).astype(int)
    feeds = []
    for i, start in enumerate(starts):
        length = CALIB_LENGTHS[i % len(CALIB_LENGTHS)]
        rows = calib[start : start + 3 * length].reshape(3, length)
        feeds.append({"tokens": rows.astype(np.int64)})
    starts = np.linspace(0, len(test) - 4 * CONTEXT - 1, 24).astype(int)
    blocks = [test[s : s + 4 * CONTEXT + 1] for s in starts]
    sample.write(
        HERE, net.export(), feeds,
        [{"tokens": b[:-1].reshape(4, CONTEXT).astype(np.int64)} for b in blocks],
        [b[1:].reshape(4, CONTEXT) for b in blocks],
        title="Prose by the byte, two-layer transformer",
        source="Pride and Prejudice (Jane Austen, 1813), public domain",
        metric="perplexity",
    )
    feed = {"tokens": blocks[0][None, :CONTEXT].astype(np.int64)}
    ours, theirs = net(feed["tokens"]).data, sample.run((HERE / "model.onnx").read_bytes(), [feed])[0]
    print(f"largest difference of a logit between numpy and ONNX Runtime: {np.abs(ours - theirs).max():.2g}")


if __name__ == "__main__":
    main()
