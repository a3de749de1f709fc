"""Cases for recurrent operators, computed by ONNX Runtime: python rnn.py"""
import numpy as np
from golden import run, write

rng = np.random.default_rng(9)


def f(*shape):
    return (rng.standard_normal(shape) * 0.6).astype(np.float32)


T, B, I, H = 5, 3, 4, 6
cases = []
for op, g in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    outs = 3 if op == "LSTM" else 2
    for direction in ("forward", "reverse", "bidirectional"):
        d = 2 if direction == "bidirectional" else 1
        for lens in (None, np.array([5, 2, 4], np.int32)):
            for extra in ([{}, {"linear_before_reset": 1}] if op == "GRU" else [{}]):
                ins = [f(T, B, I), f(d, g * H, I), f(d, g * H, H), f(d, 2 * g * H), lens, f(d, B, H)]
                if op == "LSTM":
                    ins += [f(d, B, H), f(d, 3 * H)]
                name = "_".join([op.lower(), direction] + (["lens"] if lens is not None else []) + list(extra))
                cases.append(run(op, ins, outputs=outs, name=name, direction=direction, hidden_size=H, opset=14, **extra))
    x, w, r = f(T, 1, I), f(1, g * H, I), f(1, g * H, H)
    cases.append(run(op, [x, w, r], outputs=outs, name=op.lower() + "_bare", hidden_size=H, opset=14))
    cases.append(run(op, [x, w, r], outputs=[False, True], name=op.lower() + "_last", hidden_size=H, opset=14))
    cases.append(run(op, [3 * x, 3 * w, r], outputs=outs, name=op.lower() + "_clip", hidden_size=H, opset=14, clip=0.5))
    n = {"LSTM": 3, "GRU": 2, "RNN": 1}[op]
    for acts, alpha, beta in (
        (["HardSigmoid", "LeakyRelu", "ScaledTanh"], [0.3, 0.2, 1.5], [0.4, 0.7]),
        (["Softsign", "Elu", "Affine"], [0.9, 0.8], [0.1]),
        (["Relu", "ThresholdedRelu", "Softplus"], [0.1], []),
    ):
        take = {"HardSigmoid": (1, 1), "LeakyRelu": (1, 0), "ScaledTanh": (1, 1), "Elu": (1, 0), "Affine": (1, 1), "ThresholdedRelu": (1, 0)}
        na = sum(take.get(a, (0, 0))[0] for a in acts[:n])
        nb = sum(take.get(a, (0, 0))[1] for a in acts[:n])
        attrs = dict(activations=acts[:n])
        if na:
            attrs["activation_alpha"] = alpha[:na]
        if nb:
            attrs["activation_beta"] = beta[:nb]
        cases.append(run(op, [x, w, r], outputs=outs, name=op.lower() + "_" + acts[0].lower(), hidden_size=H, opset=14, **attrs))
cases.append(run("LSTM", [f(T, B, I), f(1, 4 * H, I), f(1, 4 * H, H)], outputs=3, name="lstm_coupled", hidden_size=H, opset=14, input_forget=1))
write("rnn.json", cases)
