"""Writes, as JSON by model, the nodes of the graphs that ONNX Runtime makes of models."""
import json
import os
import sys

import onnx
import onnxruntime as ort


def nodes(graph, out):
    constants = {i.name for i in graph.initializer}
    made = {o: n for n in graph.node for o in n.output}
    for n in graph.node:
        behind = [made[i] for i in n.input if i in made and made[i].op_type == "DequantizeLinear"]
        out.append({
            "name": n.name,
            "op": n.op_type,
            "behind": len(behind) > 0,
            "constant": n.op_type in ("DequantizeLinear", "Cast") and n.input[0] in constants
            and not n.name.startswith("InsertedPrecisionFreeCast"),
        })
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                nodes(a.g, out)
    return out


result = {}
for path in sys.argv[1:]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = path + ".optimized"
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result[os.path.basename(path)] = nodes(onnx.load(path + ".optimized").graph, [])
json.dump(result, sys.stdout)
