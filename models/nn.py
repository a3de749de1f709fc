"""Reverse-mode differentiation in numpy: just what the sample models need.

Importing this module pins BLAS to one thread, so it must come before numpy.
`python nn.py` compares every gradient with central differences.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf


class Var:
    """An array, its gradient once `backward` ran, and how to pass it on."""

    def __init__(self, data, parents=(), back=None):
        self.data, self.grad = data, None
        self.parents, self.back = parents, back

    @property
    def shape(self):
        return self.data.shape

    def add_grad(self, g):
        """Adds g, summed over the axes along which this value was broadcast."""
        g = g.sum(axis=tuple(range(g.ndim - self.data.ndim)))
        axes = tuple(i for i, n in enumerate(self.shape) if n == 1 and g.shape[i] > 1)
        if axes:
            g = g.sum(axis=axes, keepdims=True)
        self.grad = g if self.grad is None else self.grad + g

    def backward(self):
        """Sets grad on everything this scalar was computed from."""
        order, seen = [], set()

        def visit(v):
            if id(v) not in seen:
                seen.add(id(v))
                for p in v.parents:
                    visit(p)
                order.append(v)

        visit(self)
        self.grad = np.ones_like(self.data)
        for v in reversed(order):
            if v.back:
                v.back(v.grad)
                v.grad = None


def add(a, b):
    def back(g):
        a.add_grad(g)
        b.add_grad(g)

    return Var(a.data + b.data, (a, b), back)


def scale(a, factor):
    factor = a.data.dtype.type(factor)
    return Var(a.data * factor, (a,), lambda g: a.add_grad(g * factor))


def matmul(a, b):
    """a [..., m, k] times b [k, n] or b [..., k, n] with a's leading axes."""
    if b.data.ndim == 2:
        rows = a.data.reshape(-1, a.shape[-1])

        def back(g):
            g2 = g.reshape(-1, g.shape[-1])
            a.add_grad((g2 @ b.data.T).reshape(a.shape))
            b.add_grad(rows.T @ g2)

        return Var((rows @ b.data).reshape(*a.shape[:-1], -1), (a, b), back)

    def back(g):
        a.add_grad(g @ b.data.swapaxes(-1, -2))
        b.add_grad(a.data.swapaxes(-1, -2) @ g)

    return Var(a.data @ b.data, (a, b), back)


def reshape(a, shape):
    return Var(a.data.reshape(shape), (a,), lambda g: a.add_grad(g.reshape(a.shape)))


def transpose(a, axes):
    inverse = np.argsort(axes)
    return Var(a.data.transpose(axes), (a,), lambda g: a.add_grad(g.transpose(inverse)))


def gather(table, index):
    def back(g):
        full = np.zeros_like(table.data)
        np.add.at(full, index.ravel(), g.reshape(-1, table.shape[1]))
        table.add_grad(full)

    return Var(table.data[index], (table,), back)


def relu(a):
    return Var(np.maximum(a.data, 0), (a,), lambda g: a.add_grad(g * (a.data > 0)))


def gelu(a):
    x = a.data
    root2 = x.dtype.type(np.sqrt(2))
    cdf = (1 + erf(x / root2)) / 2
    density = x.dtype.type(1 / np.sqrt(2 * np.pi))
    return Var(x * cdf, (a,), lambda g: a.add_grad(g * (cdf + x * density * np.exp(-x * x / 2))))


def masked_softmax(a, mask):
    """Softmax over the last axis of the entries where mask is true."""
    z = np.where(mask, a.data, a.data.dtype.type(-3e38))
    y = np.exp(z - z.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    return Var(y, (a,), lambda g: a.add_grad(y * (g - (g * y).sum(-1, keepdims=True))))


def normalize(a, axes, epsilon):
    """(a - mean) / sqrt(variance + epsilon) over axes; also mean and variance."""
    mean = a.data.mean(axes, keepdims=True)
    centred = a.data - mean
    var = (centred * centred).mean(axes, keepdims=True)
    inv = 1 / np.sqrt(var + a.data.dtype.type(epsilon))
    y = centred * inv

    def back(g):
        a.add_grad(inv * (g - g.mean(axes, keepdims=True) - y * (g * y).mean(axes, keepdims=True)))

    return Var(y, (a,), back), mean, var


def affine(a, gamma, beta):
    def back(g):
        a.add_grad(g * gamma.data)
        gamma.add_grad(g * a.data)
        beta.add_grad(g)

    return Var(a.data * gamma.data + beta.data, (a, gamma, beta), back)


def conv(x, w):
    """Stride 1, zero padding that keeps the size. x [N, C, H, W], w [O, C, k, k], k odd."""
    n, c, h, wd = x.shape
    o, _, k, _ = w.shape
    p = k // 2
    win = sliding_window_view(np.pad(x.data, ((0, 0), (0, 0), (p, p), (p, p))), (k, k), axis=(2, 3))
    cols = win.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wd, c * k * k)
    flat = w.data.reshape(o, -1)

    def back(g):
        rows = g.transpose(0, 2, 3, 1).reshape(-1, o)
        w.add_grad((rows.T @ cols).reshape(w.shape))
        d = (rows @ flat).reshape(n, h, wd, c, k, k).transpose(0, 3, 4, 5, 1, 2)
        dx = np.zeros((n, c, h + 2 * p, wd + 2 * p), x.data.dtype)
        for i in range(k):
            for j in range(k):
                dx[:, :, i : i + h, j : j + wd] += d[:, :, i, j]
        x.add_grad(dx[:, :, p : p + h, p : p + wd])

    return Var((cols @ flat.T).reshape(n, h, wd, o).transpose(0, 3, 1, 2), (x, w), back)


def depthwise(x, w):
    """conv with one filter a channel. x [N, C, H, W], w [C, 1, k, k], k odd."""
    _, _, h, wd = x.shape
    k = w.shape[2]
    p = k // 2
    pad = ((0, 0), (0, 0), (p, p), (p, p))
    xp = np.pad(x.data, pad)
    y = np.zeros_like(x.data)
    taps = [(i, j) for i in range(k) for j in range(k)]
    for i, j in taps:
        y += xp[:, :, i : i + h, j : j + wd] * w.data[:, 0, i, j, None, None]

    def back(g):
        dw, dx = np.zeros_like(w.data), np.zeros_like(xp)
        for i, j in taps:
            dw[:, 0, i, j] = (g * xp[:, :, i : i + h, j : j + wd]).sum((0, 2, 3))
            dx[:, :, i : i + h, j : j + wd] += g * w.data[:, 0, i, j, None, None]
        w.add_grad(dw)
        x.add_grad(dx[:, :, p : p + h, p : p + wd])

    return Var(y, (x, w), back)


def maxpool2(x):
    """2x2 windows, stride 2, H and W even. Equal maxima share the gradient."""
    n, c, h, w = x.shape
    win = x.data.reshape(n, c, h // 2, 2, w // 2, 2)
    y = win.max((3, 5), keepdims=True)
    hit = win == y
    share = hit / hit.sum((3, 5), keepdims=True, dtype=x.data.dtype)
    return Var(y[:, :, :, 0, :, 0], (x,),
               lambda g: x.add_grad((share * g[:, :, :, None, :, None]).reshape(x.shape)))


def global_average(x):
    n, c, h, w = x.shape
    return Var(x.data.mean((2, 3)), (x,),
               lambda g: x.add_grad(np.broadcast_to((g / (h * w))[:, :, None, None], x.shape)))


def cross_entropy(logits, labels, smoothing=0.0):
    """Mean over all but the last axis of logits; labels has the shape of the rest."""
    z = logits.data.reshape(-1, logits.shape[-1])
    rows, k = z.shape
    z = z - z.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    want = np.full_like(z, smoothing / k)
    want[np.arange(rows), labels.ravel()] += 1 - smoothing
    loss = -(want * logp).sum() / rows
    return Var(z.dtype.type(loss), (logits,),
               lambda g: logits.add_grad(((np.exp(logp) - want) * (g / rows)).reshape(logits.shape)))


class Adam:
    """AdamW (Loshchilov and Hutter, 2019), decay on matrices and filters only;
    the rate rises over `warmup` steps, then falls to zero as a cosine."""

    def __init__(self, params, rate, steps, warmup, decay):
        self.params, self.rate, self.steps, self.warmup, self.decay = params, rate, steps, warmup, decay
        self.m = [np.zeros_like(p.data) for p in params]
        self.v = [np.zeros_like(p.data) for p in params]
        self.t = 0

    def step(self):
        self.t += 1
        rate = self.rate * min(1, self.t / self.warmup) * (1 + np.cos(np.pi * self.t / self.steps)) / 2
        norm = np.sqrt(sum(float((p.grad * p.grad).sum()) for p in self.params))
        clip = min(1.0, 1.0 / (norm + 1e-12))
        for p, m, v in zip(self.params, self.m, self.v):
            g = p.grad * p.data.dtype.type(clip)
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            update = (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.99**self.t)) + 1e-8)
            if p.data.ndim > 1:
                update = update + self.decay * p.data
            p.data -= (rate * update).astype(p.data.dtype)
            p.grad = None


def _check():
    rng = np.random.default_rng(1)
    r = lambda *shape: Var(rng.standard_normal(shape))
    mask, labels = np.tril(np.ones((5, 5), bool)), rng.integers(0, 5, (3, 5))
    cases = {
        "add": (lambda a, b: add(a, b), r(3, 5, 5), r(5)),
        "scale": (lambda a: scale(a, 0.3), r(3, 5)),
        "matmul 2d": (matmul, r(3, 5, 4), r(4, 6)),
        "matmul": (matmul, r(3, 5, 4), r(3, 4, 6)),
        "reshape": (lambda a: reshape(a, (5, 12)), r(3, 5, 4)),
        "transpose": (lambda a: transpose(a, (0, 2, 1)), r(3, 5, 4)),
        "gather": (lambda t: gather(t, labels), r(5, 4)),
        "relu": (relu, r(3, 5)),
        "gelu": (gelu, r(3, 5)),
        "softmax": (lambda a: masked_softmax(a, mask), r(3, 5, 5)),
        "normalize": (lambda a: normalize(a, (0, 2), 1e-5)[0], r(3, 5, 4)),
        "affine": (affine, r(3, 5, 4), r(4), r(4)),
        "conv": (conv, r(2, 3, 4, 5), r(4, 3, 3, 3)),
        "depthwise": (depthwise, r(2, 3, 4, 5), r(3, 1, 3, 3)),
        "maxpool2": (maxpool2, r(2, 3, 4, 6)),
        "global_average": (global_average, r(2, 3, 4, 6)),
        "cross_entropy": (lambda a: cross_entropy(a, labels, 0.1), r(3, 5, 5)),
    }
    for name, (f, *args) in cases.items():
        y = f(*args)
        weight = np.asarray(rng.standard_normal(y.shape))
        Var((y.data * weight).sum(), (y,), lambda g: y.add_grad(weight)).backward()
        for a in args:
            numeric = np.zeros_like(a.data)
            for i in np.ndindex(a.shape):
                keep, sides = a.data[i], []
                for h in (1e-6, -1e-6):
                    a.data[i] = keep + h
                    sides.append((f(*args).data * weight).sum())
                a.data[i] = keep
                numeric[i] = (sides[0] - sides[1]) / 2e-6
            np.testing.assert_allclose(a.grad, numeric, rtol=1e-5, atol=1e-6, err_msg=name)
    print(f"{len(cases)} gradients agree with central differences")


if __name__ == "__main__":
    _check()
