#!/usr/bin/env python3
"""onnxq beside other tools in one run: python benchmarks.py --onnxq BIN --shared DIR [--only NAME,...] [--pairs N] [--cache FILE] [-o PAGE.md]

Each tool quantizes each model with the same calibration samples, as a process of its own: its processor time and peak
memory, the size of the file, the task's metric and how many times as fast as the float model ONNX Runtime runs it (one
thread, median of interleaved pairs of processor time). Then what simplifying takes. Measurements are kept in a JSON file, so
that a run can be stopped and taken up; --fresh starts anew. Needs onnx, onnxruntime, onnxsim, numpy, pillow, sympy.
"""
import argparse, glob, importlib.metadata, json, os, platform, subprocess, sys, tempfile
import numpy as np, onnx
from runtime import metric, speed

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='vww_mobilenet,cifar_resnet8,crepe_tiny,mnist_cntk,superres,efficientnet_lite0,magika,minilm')
ap.add_argument('--pairs', type=int, default=9)
ap.add_argument('--cache', default='bin/benchmarks.json')
ap.add_argument('--fresh', action='store_true')
ap.add_argument('-o', default='docs/benchmarks.md')
A = ap.parse_args()
A.onnxq, A.shared = os.path.abspath(A.onnxq), os.path.abspath(A.shared)
ZOO = os.path.join(A.shared, 'zoo')
known = json.load(open(A.cache)) if os.path.exists(A.cache) and not A.fresh else {}

# What the other tools do, as a program of its own: TOOL MODEL CALIB OUT.
THEIRS = '''
import glob, os, sys, numpy as np, onnx
tool, model, folder, out = sys.argv[1:]
def feeds():
    for p in sorted(glob.glob(folder + '/*.npz')):
        yield dict(np.load(p))
if tool == 'onnxsim':
    import onnxsim
    onnx.save(onnxsim.quantize_static(model, calibration_data=list(feeds()), method='minmax', full_graph=True), out)
elif tool == 'simplify':
    import onnxsim
    m, ok = onnxsim.simplify(onnx.load(model))
    onnx.save(m, out)
else:
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    class Reader(CalibrationDataReader):
        def __init__(self): self.all = feeds()
        def get_next(self): return next(self.all, None)
    pre = out + '.pre.onnx'
    # As its documents say, then with less of its pre-processing, until it works.
    for prepare in (dict(), dict(skip_symbolic_shape=True), None):
        try:
            if prepare is not None: quant_pre_process(model, pre, **prepare)
            src = model if prepare is None else pre
            if tool == 'static': quantize_static(src, out, Reader(), per_channel=True)
            else: quantize_dynamic(src, out, per_channel=True)
            break
        except Exception:
            if prepare is None: raise
'''
TOOLS = [('onnxq', 'onnxq'), ('static', 'onnxruntime static, per channel'), ('dynamic', 'onnxruntime dynamic, per channel'), ('onnxsim', 'onnxsim static')]
PREPARERS = [('prepare', 'onnxq prepare'), ('simplify', 'onnxsim')]


def process(*argv):
    """processor seconds and peak megabytes of a process, and why it failed"""
    with tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=err, cwd=os.path.dirname(script))  # where onnxruntime leaves files
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        lines = err.read().decode('utf8', 'replace').strip().splitlines()
    why = (lines[-1][:160] if lines else f'exit {p.returncode}') if p.returncode else None
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, why


def keep(key, value):
    known[key] = value
    os.makedirs(os.path.dirname(A.cache) or '.', exist_ok=True)
    json.dump(known, open(A.cache, 'w'), indent=1)
    print(key, value, flush=True)


def measure(name, tool, tmp):
    src, calib, out = f'{ZOO}/{name}/model.onnx', f'{ZOO}/{name}/calib', os.path.join(tmp, f'{name}.{tool}.onnx')
    if tool == 'onnxq':
        seconds, mb, why = process(A.onnxq, 'quantize', src, '-o', out, '--data', calib, '-q')
    elif tool == 'prepare':
        seconds, mb, why = process(A.onnxq, 'prepare', src, '-o', out, '-q')
    else:
        seconds, mb, why = process(sys.executable, script, tool, src, calib, out)
    r = dict(seconds=seconds, mb=mb)
    try:
        if why: raise RuntimeError(why)
        r['bytes'] = os.path.getsize(out) / os.path.getsize(src)
        r['nodes'] = len(onnx.load(out, load_external_data=False).graph.node)
        feeds = [dict(np.load(p)) for p in sorted(glob.glob(calib + '/*.npz'))[:4]]
        r['speed'] = speed(src, out, feeds, A.pairs)
        if tool not in ('prepare', 'simplify'): r['metric'] = metric(ZOO, name, out)
    except Exception as e:
        r['failed'] = str(e).replace(tmp + '/', '').replace('|', '/').splitlines()[0][:160]
    return r


def number(m):
    """the metric, and the share of inputs with float's arg-max where there is one"""
    agree = m.get('agree_float')
    return f'{m["value"]:.4f}' + (f' ({agree:.3f})' if agree is not None else '')


def versions():
    v = {p: importlib.metadata.version(p) for p in ('onnx', 'onnxruntime', 'onnxsim', 'numpy')}
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
    flags = next((l for l in open('/proc/cpuinfo') if l.startswith('flags')), '')
    has = [f for f in ('avx2', 'avx512f', 'avx512_vnni', 'avx_vnni') if f' {f}' in flags]
    return ', '.join(f'{k} {x}' for k, x in v.items()) + f', Python {platform.python_version()}, on {cpu} ({", ".join(has)})'


def row(w, title, key, what):
    """a row of the page, if key has been measured; what gives its first column"""
    r = known.get(key)
    if r:
        cells = f'fails: {r["failed"]} | |' if r.get('failed') else f'{what(r)} | {r["bytes"]:.3f} | {r["speed"]:.2f}'
        print(f'| {title} | {cells} | {r["seconds"]:.1f} | {r["mb"]:.0f} |', file=w)


def page():
    w = open(A.o, 'w')
    print(f'''# onnxq beside other tools

Made by one run of [gates/benchmarks.py](../gates/benchmarks.py) (`make benchmarks`): {versions()}. The models and evaluation sets are not part of this repository.

All tools get the same calibration samples, and their own defaults otherwise: `onnxq quantize MODEL -o OUT --data SAMPLES`; of onnxruntime `quant_pre_process` (where it fails, without symbolic shapes or not at all), then
`quantize_static` (min-max) or `quantize_dynamic` with `per_channel=True`; of onnxsim `quantize_static` of the full graph with min-max.

- The first column is the task’s metric by ONNX Runtime, in brackets the share of inputs with the float model’s arg-max, which moves less by chance.
- **bytes**: the file, relative to the float model’s. **speed**: how many times as fast as the float model ONNX Runtime runs it, one thread, median of interleaved pairs of processor time.
- **seconds**, **MB**: processor time and peak memory of the whole process that quantizes. onnxq’s default measures several candidates on the samples in this time; the others compute one.
''', file=w)
    for name in A.only.split(','):
        if f'{name}/float' not in known: continue
        print(f'## {name}\n\n| | {known[f"{name}/float"]["metric"]} | bytes | speed | seconds | MB |\n|---|---:|---:|---:|---:|---:|', file=w)
        print(f'| float | {number(known[f"{name}/float"])} | 1 | 1 | | |', file=w)
        for tool, title in TOOLS:
            row(w, title, f'{name}/{tool}', lambda r: number(r['metric']))
        print(file=w)
    print('''## Simplifying alone

| model | | nodes | bytes | speed | seconds | MB |
|---|---|---:|---:|---:|---:|---:|''', file=w)
    for name in A.only.split(','):
        for tool, title in PREPARERS:
            row(w, f'{name} | {title}', f'{name}/{tool}', lambda r: f'{known[name + "/nodes"]} → {r["nodes"]}')
    w.close()


with tempfile.TemporaryDirectory() as tmp:
    script = os.path.join(tmp, 'theirs.py')
    open(script, 'w').write(THEIRS)
    for name in A.only.split(','):
        if f'{name}/nodes' not in known:
            keep(f'{name}/nodes', len(onnx.load(f'{ZOO}/{name}/model.onnx', load_external_data=False).graph.node))
        if f'{name}/float' not in known:
            keep(f'{name}/float', metric(ZOO, name, f'{ZOO}/{name}/model.onnx'))
        for tool, _ in TOOLS + PREPARERS:
            if f'{name}/{tool}' not in known:
                keep(f'{name}/{tool}', measure(name, tool, tmp))
        page()
