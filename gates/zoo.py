#!/usr/bin/env python3
"""Gates on real models: python zoo.py --onnxq BIN --shared DIR [--only NAME,...] [--gates exec,quant,speed] [--work DIR]

exec   runs every calibration sample through `onnxq run` and ONNX Runtime and compares the outputs, pooled per output
quant  quantizes with default flags and checks: loads, passes the checker, size, task metric, integer kernels in the
       runtime's optimized graph, the embedded executor against the runtime on the quantized model, the same bytes for
       GOMAXPROCS 1, 2 and 7
speed  times float and quantized model in ONNX Runtime, interleaved, one thread (median of the ratios)

Prints a line a check and ends with `N passed, N failed`. Needs onnx, onnxruntime, numpy, pillow.
"""
import argparse, collections, glob, hashlib, json, os, subprocess, sys, tempfile, time
import numpy as np, onnx, onnxruntime as ort
from onnx import numpy_helper

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--gates', default='exec,quant')
ap.add_argument('--work', default='')
ap.add_argument('--pairs', type=int, default=9)
A = ap.parse_args()
ZOO = os.path.join(A.shared, 'zoo')
WORK = A.work or tempfile.mkdtemp(prefix='onnxq-gates')
os.makedirs(WORK, exist_ok=True)

# What is demanded of each model: loss = relative loss of the task metric that is allowed (items: the size of one
# evaluation item is allowed as well), floor = the metric's lowest value, fine = the best of the peers' single
# configurations for agreement, KL and SQNR, of which one has to be reached within the tolerance; speed = float/int8.
DEMANDS = {
    'efficientnet_lite0': dict(loss=.01, fine=[(.983, .0080, 19.4), (.976, .0082, 19.5), (.986, .0080, 19.7), (.876, .209, 5.9)], speed=2.0,
                               data='efficientnet_lite0/calib_images', image='resize=256,crop=224,mean=127,std=128,layout=nchw,color=rgb'),
    'cifar_resnet8': dict(loss=.01, fine=[(.961, .0316, 22.2), (.969, .0297, 23.1)], speed=1.4),
    'vww_mobilenet': dict(loss=.01, fine=[(.990, .0054, 29.6), (.995, .0068, 23.0)]),
    'crepe_tiny': dict(loss=.01), 'mnist_cntk': dict(loss=.01),
    'fastestdet': dict(loss=.02, sqnr=20.0),
    'superres': dict(floor=23.98, speed=2.4), 'minilm': dict(floor=.8150, speed=1.9, exec_tol=1e-4),
    'basic_pitch': dict(floor=.7748), 'ppocr_det': dict(floor=.880, speed=1.5), 'magika': dict(floor=.940, speed=2.3),
}
only = [n for n in A.only.split(',') if n]
NAMES = [n for n in DEMANDS if not only or n in only]
GATES = A.gates.split(',')
passed = failed = 0

def check(ok, name, text):
    global passed, failed
    passed += bool(ok)
    failed += not ok
    print(('ok   ' if ok else 'FAIL ') + f'{name}: {text}', flush=True)

def onnxq(*args, env=None):
    r = subprocess.run([A.onnxq, *args], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if r.returncode:
        raise RuntimeError(f'onnxq {" ".join(args)}: exit {r.returncode}: {r.stderr.strip()[:400]}')
    return r.stdout

def session(path, opt=None, save=None, threads=1):
    so = ort.SessionOptions()
    so.intra_op_num_threads = threads
    so.log_severity_level = 4
    if save:
        so.optimized_model_filepath = save
    if opt is not None:
        so.graph_optimization_level = opt
    return ort.InferenceSession(path, so, providers=['CPUExecutionProvider'])

def samples(name):
    for p in sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz')):
        z = np.load(p)
        yield os.path.basename(p)[:-4], {k: z[k] for k in z.files}

def pooled(model, name, out):
    """worst relative L2 error and lowest SQNR over the outputs of `onnxq run` against the runtime; equality of others"""
    onnxq('run', model, '--data', f'{ZOO}/{name}/calib', '-o', out, '--format', 'npz', '-q')
    s = session(model)
    sums = collections.defaultdict(lambda: [0.0, 0.0, 0.0]); wrong = 0
    for sample, feed in samples(name):
        got = np.load(f'{out}/{sample}.npz')
        ref = s.run(None, {i.name: feed[i.name] for i in s.get_inputs()})
        for o, r in zip(s.get_outputs(), ref):
            g = got[o.name]
            if r.dtype.kind != 'f':
                wrong += not np.array_equal(r, g); continue
            r, g = r.astype(np.float64), g.astype(np.float64)
            t = sums[o.name]; t[0] += (r * r).sum(); t[1] += ((r - g) ** 2).sum(); t[2] = max(t[2], np.abs(g[r == 0]).max(initial=0))
    rel = max((np.sqrt(b / a) if a else 0) for a, b, _ in sums.values())
    zero = max(z for _, _, z in sums.values())
    db = min((10 * np.log10(a / b) if b else np.inf) for a, b, _ in sums.values())
    return rel, zero, db, wrong

def gate_exec(name):
    rel, zero, _, wrong = pooled(f'{ZOO}/{name}/model.onnx', name, f'{WORK}/{name}.run')
    tol = DEMANDS[name].get('exec_tol', 1e-5)
    check(rel <= tol and zero <= 1e-6 and not wrong, name, f'executor against runtime: relative L2 {rel:.2e}, {zero:.1e} where 0, {wrong} other outputs differ')

def metric(name, path=None):
    r = subprocess.run([sys.executable, f'{ZOO}/eval.py', name, *([path] if path else [])], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f'eval.py {name}: {r.stderr.strip()[-300:]}')
    return json.loads(r.stdout.strip().splitlines()[-1])

def floats(name):
    cache = f'{WORK}/float.json'
    known = json.load(open(cache)) if os.path.exists(cache) else {}
    if name not in known:
        known[name] = metric(name)
        json.dump(known, open(cache, 'w'))
    return known[name]

def quantize(name, out, images=False, env=None):
    d = DEMANDS[name]
    data = ['--data', f'{ZOO}/{d["data"]}', '--image', d['image']] if images else ['--data', f'{ZOO}/{name}/calib']
    onnxq('quantize', f'{ZOO}/{name}/model.onnx', '-o', out, *data, '--json', out + '.json', '-q', env=env)
    return json.load(open(out + '.json'))

INTEGER = {'QLinearConv', 'QLinearMatMul', 'MatMulIntegerToFloat', 'QGemm', 'ConvInteger', 'MatMulInteger', 'DynamicQuantizeMatMul'}

def gate_quant(name, images):
    d = DEMANDS[name]; src = f'{ZOO}/{name}/model.onnx'; label = name + (' (photographs)' if images else '')
    out = f'{WORK}/{name}{".img" if images else ""}.onnx'
    res = quantize(name, out, images)
    onnx.checker.check_model(out, full_check=True)
    session(out)
    size = os.path.getsize(out) / os.path.getsize(src); limit = .32 if os.path.getsize(src) >= 2_000_000 else .6
    check(size <= limit, label, f'file {size:.3f} of float (limit {limit}); {res["quantized"]} of {res["nodes"]} nodes, {res["seconds"]:.1f} s, {res["peak_rss_bytes"] / 1e6:.0f} MB, SQNR {res["sqnr_db"]}')
    f, q = floats(name), metric(name, out)
    if 'loss' in d:
        low = f['value'] * (1 - d['loss']); low = min(low, f['value'] - 1 / f['n'])
        check(q['value'] >= low, label, f'{q["metric"]} {q["value"]:.4f} of {f["value"]:.4f} (at least {low:.4f})')
    else:
        check(q['value'] >= d['floor'], label, f'{q["metric"]} {q["value"]:.4f} of {f["value"]:.4f} (at least {d["floor"]})')
    if 'sqnr' in d:
        check(res['sqnr_db'] >= d['sqnr'], label, f'output SQNR {res["sqnr_db"]:.2f} dB (at least {d["sqnr"]})')
    if 'fine' in d and (images or 'data' not in d):
        a, k, s = q['agree_float'], q['kl'], q['sqnr_db']
        ok = any(a >= x - .01 and k <= y * 1.2 and s >= z - .5 for x, y, z in d['fine'])
        check(ok, label, f'agreement {a:.4f}, KL {k:.4f}, SQNR {s:.1f} dB against one of {d["fine"]}')
    if images:
        return
    opt = f'{WORK}/{name}.opt.onnx'
    session(out, save=opt)
    left = collections.Counter(); ints = collections.Counter()
    g = onnx.load(opt).graph; dq = {o for n in g.node if n.op_type == 'DequantizeLinear' for o in n.output}
    for n in g.node:
        if n.op_type in INTEGER: ints[n.op_type] += 1
        if n.op_type in ('Conv', 'FusedConv', 'Gemm', 'FusedGemm', 'MatMul', 'FusedMatMul') and any(i in dq for i in n.input[:2]): left[n.op_type] += 1
    planned = sum(1 for n in onnx.load(out).graph.node if n.op_type in ('Conv', 'Gemm', 'MatMul')) - sum(x['op'] in ('Conv', 'Gemm', 'MatMul') for x in res['float'])
    check(not left and sum(ints.values()) >= planned, label, f'integer kernels {dict(ints)} for {planned} nodes; behind DequantizeLinear {dict(left)}')
    _, _, db, wrong = pooled(out, name, f'{WORK}/{name}.qrun')
    check(db >= 35 and not wrong, label, f'executor against runtime on the quantized model: {db:.1f} dB')
    hashes = []
    for procs in ('1', '2', '7'):
        quantize(name, f'{WORK}/{name}.p{procs}.onnx', env={'GOMAXPROCS': procs})
        hashes.append(hashlib.sha256(open(f'{WORK}/{name}.p{procs}.onnx', 'rb').read()).hexdigest())
    check(len(set(hashes)) == 1 and hashes[0] == hashlib.sha256(open(out, 'rb').read()).hexdigest(), label, 'same bytes for GOMAXPROCS 1, 2, 7')

def gate_speed(name):
    want = DEMANDS[name].get('speed')
    a, b = session(f'{ZOO}/{name}/model.onnx'), session(f'{WORK}/{name}.onnx')
    feeds = [f for _, f in samples(name)][:8]
    def once(s):
        fs = [{i.name: f[i.name] for i in s.get_inputs()} for f in feeds]
        t = time.perf_counter()
        for f in fs: s.run(None, f)
        return time.perf_counter() - t
    reps = max(1, int(.1 / max(once(a), 1e-6)))
    ratios = []
    for _ in range(A.pairs + 1):
        x = sum(once(a) for _ in range(reps)); y = sum(once(b) for _ in range(reps))
        ratios.append(x / y)
    r = float(np.median(ratios[1:]))
    check(want is None or r >= want, name, f'runtime is {r:.2f} times as fast as on float (at least {want}); {min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}')

for name in NAMES:
    for gate, f in (('exec', gate_exec), ('quant', None), ('speed', gate_speed)):
        if gate not in GATES: continue
        try:
            if gate == 'quant':
                gate_quant(name, False)
                if 'data' in DEMANDS[name]: gate_quant(name, True)
            else:
                f(name)
        except Exception as x:
            check(False, name, f'{gate}: {type(x).__name__}: {str(x)[:500]}')
if 'quant' in GATES and (not only or 'skl_forest' in only):
    try:
        src = f'{ZOO}/skl_forest/model.onnx'
        text = onnxq('quantize', src, '-o', f'{WORK}/skl_forest.onnx', '--data', f'{ZOO}/skl_forest/calib')
        same = open(src, 'rb').read() == open(f'{WORK}/skl_forest.onnx', 'rb').read()
        check(same and 'nothing' in text, 'skl_forest', 'passes through byte for byte, and says why')
    except Exception as x:
        check(False, 'skl_forest', str(x)[:500])
print(f'{passed} passed, {failed} failed')
sys.exit(failed > 0)
