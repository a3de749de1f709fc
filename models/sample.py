"""Writes what the Go package embeds of one sample model."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


def initializer(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def make_model(graph, opset):
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)], producer_name="onnxq-models"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model_bytes, feeds):
    """The first output for each feed, computed by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def accuracy(outputs, labels):
    hits = [o.argmax(-1) == l for o, l in zip(outputs, labels)]
    return float(np.concatenate([h.ravel() for h in hits]).mean())


def perplexity(outputs, labels):
    total, count = 0.0, 0
    for o, l in zip(outputs, labels):
        z = o.reshape(-1, o.shape[-1]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        total += (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), l.ravel()]).sum()
        count += len(z)
    return float(np.exp(total / count))


METRICS = {"accuracy": accuracy, "perplexity": perplexity}


def write(folder, model, calib, evaluation, labels, title, source, metric):
    """Writes model.onnx, calib/, eval/, labels.npz and sample.json to folder.

    calib and evaluation are lists of feeds (input name to array), labels one
    uint8 array for each feed of evaluation; source names the data and its licence.
    Returns the metric of the model.
    """
    for sub in ("calib", "eval"):
        shutil.rmtree(folder / sub, ignore_errors=True)
        (folder / sub).mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for i, feed in enumerate(calib):
        np.savez(folder / "calib" / f"{i:03}.npz", **feed)
    for i, feed in enumerate(evaluation):
        np.savez(folder / "eval" / f"{i:03}.npz", **feed)
    np.savez(folder / "labels.npz", **{f"{i:03}": l for i, l in enumerate(labels)})

    outputs = run((folder / "model.onnx").read_bytes(), evaluation)
    value = METRICS[metric](outputs, labels)
    names = ["model.onnx", "labels.npz"]
    names += [f"{sub}/{p.name}" for sub in ("calib", "eval") for p in (folder / sub).iterdir()]
    files = {}
    for name in sorted(names):
        data = (folder / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    card = {"title": title, "source": source, "metric": metric, "float": value, "classes": outputs[0].shape[-1], "files": files}
    (folder / "sample.json").write_text(json.dumps(card, indent=1) + "\n")
    size = sum(f["bytes"] for f in files.values())
    print(f"{folder.name}: {metric} {value:.6g} with ONNX Runtime {onnxruntime.__version__}, "
          f"{files['model.onnx']['bytes']} bytes of model, {size} of everything")
    return value
