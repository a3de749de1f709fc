#!/usr/bin/env python3
"""Whether `onnxq lint` is right: python lint.py --onnxq BIN MODEL...

Gives every node of each model a name of its own, has ONNX Runtime write the graph that it makes of it (extended
optimizations, CPU provider), and compares what became of each node with what lint says. Groups whose node other
fusions of the runtime consumed are counted apart. Prints a line a model and each disagreement; ends with
`N groups agree, N disagree`. Needs onnx and onnxruntime.
"""
import argparse, collections, json, os, subprocess, sys, tempfile
import onnx, onnxruntime as ort


# Operators that run on codes under their own name.
MOVES = {'MaxPool', 'ReduceMax', 'ReduceMin', 'Resize', 'Expand', 'Flatten', 'Gather', 'GatherElements', 'Reshape', 'Slice', 'Squeeze', 'Tile',
         'Transpose', 'Unsqueeze', 'Split', 'ArgMax'}


def graphs(g):
    yield g
    for n in g.node:
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from graphs(a.g)
            for x in a.graphs:
                yield from graphs(x)


def optimized(path, out):
    """what became of the nodes, by name: operator, and whether an input is dequantized"""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = out
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    found = {}
    for g in graphs(onnx.load(out).graph):
        made = {o: n for n in g.node for o in n.output}
        for n in g.node:
            behind = any(i in made and made[i].op_type == 'DequantizeLinear' for i in n.input)
            found[n.name] = (n.op_type, behind)
    return found


def compare(onnxq, model, work):
    """the number of groups that agree, those that other fusions took, and the disagreements"""
    m = onnx.load(model)
    k = 0
    for g in graphs(m.graph):
        for n in g.node:
            n.name = f'node{k:05d}'
            k += 1
    named = os.path.join(work, 'named.onnx')
    onnx.save(m, named)
    r = subprocess.run([onnxq, 'lint', named, '--json', '-'], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f'onnxq lint {model}: exit {r.returncode}: {r.stderr.strip()[:300]}')
    found = optimized(named, os.path.join(work, 'optimized.onnx'))
    same, gone, bad = 0, collections.Counter(), []
    for g in json.loads(r.stdout)['groups']:
        name, op = g['node'], g['op']
        got = found.get(name) or found.get(name + '/MatMulAddFusion')
        kernel = g.get('kernel', '').split('.')[-1]
        if got is None and kernel == 'QuantizeLinear':
            same += 1  # a Relu or Clip that the clamp of QuantizeLinear replaces
        elif got is None:
            gone[op + (' fused' if g['fused'] else ' float')] += 1
        elif g['fused'] and got[0] == kernel and not got[1] or not g['fused'] and (got[1] or got[0] == op and op not in MOVES):
            same += 1
        else:
            bad.append(f'{name} {op}: lint says {kernel or "float: " + g["why"]}, the runtime has {got[0]}{" behind DequantizeLinear" if got[1] else ""}')
    return same, gone, bad


if __name__ == '__main__':
    ap = argparse.ArgumentParser()
    ap.add_argument('--onnxq', required=True)
    ap.add_argument('models', nargs='+')
    A = ap.parse_args()
    agree = disagree = 0
    with tempfile.TemporaryDirectory() as work:
        for path in A.models:
            same, gone, bad = compare(A.onnxq, path, work)
            agree, disagree = agree + same, disagree + len(bad)
            print(f'{"FAIL" if bad else "ok  "} {path}: {same} groups agree, {len(bad)} do not' + (f'; taken by other fusions: {dict(gone)}' if gone else ''))
            for b in bad[:20]:
                print('     ' + b)
    print(f'{agree} groups agree, {disagree} disagree')
    sys.exit(disagree > 0)
