"""What the scripts beside this file share: nodes and their results as JSON.

A script makes nodes and inputs, computes the outputs with ONNX Runtime (or takes
them from elsewhere), and writes a list of cases that golden_test.go reads.
"""
import base64
import json

import numpy as np
import onnx
from onnx import helper, numpy_helper


def tensor(t, const=False):
    """Returns the JSON form of an array or TensorProto; None is an omitted value."""
    if t is None:
        return None
    if not isinstance(t, onnx.TensorProto):
        t = numpy_helper.from_array(np.asarray(t))
    out = dict(DType=t.data_type, Shape=list(t.dims))
    if t.data_type == onnx.TensorProto.STRING:
        out["Strings"] = [s.decode() for s in t.string_data]
    else:
        if not t.HasField("raw_data"):
            t = numpy_helper.from_array(numpy_helper.to_array(t))
        if t.data_type != out["DType"]:
            raise ValueError("no raw form")
        out["Data"] = base64.b64encode(t.raw_data).decode()
    if const:
        out["Const"] = True
    return out


def number(v):
    """JSON has no NaN: null stands for it."""
    return None if v != v else v


def attribute(a):
    out = dict(Name=a.name, Kind=a.type)
    A = onnx.AttributeProto
    if a.type == A.INT:
        out["I"] = a.i
    elif a.type == A.FLOAT:
        out["F"] = number(a.f)
    elif a.type == A.STRING:
        out["S"] = a.s.decode()
    elif a.type == A.INTS:
        out["Ints"] = list(a.ints)
    elif a.type == A.FLOATS:
        out["Floats"] = [number(v) for v in a.floats]
    elif a.type == A.STRINGS:
        out["Strings"] = [s.decode() for s in a.strings]
    elif a.type == A.TENSOR:
        out["T"] = tensor(a.t)
    else:
        raise ValueError(a.type)
    return out


def case(name, node, opset, inputs, outputs, rtol=1e-5, atol=1e-5, const=()):
    """One case: inputs and outputs in the node's order, None where omitted."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return dict(
        Name=name, Domain=domain, Op=node.op_type, Opset=opset,
        Attrs=[attribute(a) for a in node.attribute],
        Inputs=[tensor(t, i in const) for i, t in enumerate(inputs)],
        Outputs=[tensor(t) for t in outputs], Rtol=rtol, Atol=atol)


def run(op_type, inputs, outputs=1, opset=17, domain="", name=None, rtol=1e-5, atol=1e-5, const=(), narrow=None, extra=None, **attrs):
    """One case whose outputs ONNX Runtime computes. `outputs` counts them, or tells for each whether it is wanted.
    `extra` holds attributes whose names are those of arguments here. `narrow` is the type of output 0 if numpy has none like it; it is then fetched through a Cast."""
    import onnxruntime

    wanted = [True] * outputs if isinstance(outputs, int) else outputs
    node = helper.make_node(
        op_type, [f"i{i}" if t is not None else "" for i, t in enumerate(inputs)],
        [f"o{i}" if w else "" for i, w in enumerate(wanted)], domain=domain, **attrs, **(extra or {}))
    infos, inits = [], []
    for i, t in enumerate(inputs):
        if t is None:
            continue
        p = t if isinstance(t, onnx.TensorProto) else numpy_helper.from_array(np.asarray(t))
        if i in const or isinstance(t, onnx.TensorProto):
            q = onnx.TensorProto()
            q.CopyFrom(p)
            q.name = f"i{i}"
            inits.append(q)
        else:
            infos.append(helper.make_tensor_value_info(f"i{i}", p.data_type, list(p.dims)))
    outs = [helper.make_empty_tensor_value_info(f"o{i}") for i, w in enumerate(wanted) if w]
    nodes = [node]
    if narrow:
        nodes.append(helper.make_node("Cast", ["o0"], ["wide"], to=onnx.TensorProto.FLOAT))
        outs[0].name = "wide"
    graph = helper.make_graph(nodes, "g", infos, outs, inits)
    opsets = [helper.make_opsetid("", opset if domain == "" else 21)]
    if domain:
        opsets.append(helper.make_opsetid(domain, opset if domain != "com.microsoft" else 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = iter(session.run(None, {f"i{i}": np.asarray(t) for i, t in enumerate(inputs)
                                  if t is not None and i not in const and not isinstance(t, onnx.TensorProto)}))
    results = [next(got) if w else None for w in wanted]
    if narrow:
        results[0] = numpy_helper.from_array(results[0].astype(helper.tensor_dtype_to_np_dtype(narrow)))
    return case(name or op_type, node, opset if domain != "com.microsoft" else 1, inputs, results, rtol, atol, const)


def write(path, cases):
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    print(path, len(cases), "cases")
