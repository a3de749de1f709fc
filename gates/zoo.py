#!/usr/bin/env python3
"""Gates on real models: python zoo.py --onnxq BIN --shared DIR [--only NAME,...] [--gates exec,quant,speed] [--work DIR]

exec   runs all calibration and evaluation samples of every model through `onnxq run` and ONNX Runtime (one thread);
       the relative L2 error of each output of each run (a batch, a step of a stream) has to be small
match  the same on the quantized model: the SQNR of each output against the runtime's, over all samples. Single rows can be
       worse where a model amplifies the last bit of a float operator, which the runtime computes differently from
       processor to processor, into another code
quant  quantizes with default flags and checks: loads, passes the checker, size, task metric, integer kernels in the
       runtime's optimized graph, the same bytes for GOMAXPROCS 1, 2 and 7
lint   quantizes by default and as plainly as can be, and holds what `onnxq lint` says of each group against the
       runtime's optimized graph
speed  times float and quantized model in ONNX Runtime, interleaved, one thread (median of the ratios)

Prints a line a check and ends with `N passed, N failed`. Needs onnx, onnxruntime, numpy, pillow.
"""
import argparse, collections, glob, hashlib, json, os, shutil, subprocess, sys, tempfile, time
import numpy as np, onnx, onnxruntime as ort
from onnx import numpy_helper
import lint
from runtime import metric, session

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--gates', default='exec,quant,match,lint')
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
    'superres': dict(floor=23.98, speed=2.4), 'minilm': dict(floor=.8150, speed=1.9),
    'basic_pitch': dict(floor=.7748), 'ppocr_det': dict(floor=.880, speed=1.5), 'magika': dict(floor=.940, speed=2.3),
}
only = [n for n in A.only.split(',') if n]
NAMES = [n for n in DEMANDS if not only or n in only]

# What the executor is compared on besides calibration samples. rows: (batch, arrays), cut along axis 0 into feeds of
# that many rows; streams: feeds are the steps of a stream, whose state each engine feeds back for itself, from zeros
# on; tol: the largest relative L2 error of a float output.
def images(x, mean, std): return ((x.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
def zoo(name, file, key=None):
    z = np.load(f'{ZOO}/{name}/eval/{file}')
    return z[key] if key else z
def photographs():
    from PIL import Image
    return (np.stack([np.asarray(Image.open(p)) for p in sorted(glob.glob(f'{ZOO}/efficientnet_lite0/eval/*.jpg'))]).astype(np.float32) - 127) / 128
def sentences():
    ids, off = zoo('minilm', 'stsb_test.npz', 'ids'), zoo('minilm', 'stsb_test.npz', 'off')
    order = sorted(range(len(off) - 1), key=lambda i: off[i + 1] - off[i])
    for k in range(0, len(order), 16):
        x = np.zeros((len(order[k:k + 16]), max(off[i + 1] - off[i] for i in order[k:k + 16])), np.int64); m = x.copy()
        for r, i in enumerate(order[k:k + 16]):
            x[r, :off[i + 1] - off[i]] = ids[off[i]:off[i + 1]]; m[r, :off[i + 1] - off[i]] = 1
        yield dict(input_ids=x, attention_mask=m, token_type_ids=np.zeros_like(x))
def speech(key):
    x = zoo('silero_vad', 'eval.npz', key)
    x = np.concatenate([np.zeros(64, np.float32), x[:len(x) // 512 * 512]])
    return dict(input=np.stack([x[i:i + 576] for i in range(0, len(x) - 64, 512)])[:, None])
def windows():
    x = zoo('dtln_1', 'eval.npz', 'noisy')
    x = np.concatenate([np.zeros(384, np.float32), x[:len(x) // 128 * 128]])
    return np.stack([x[i:i + 512] for i in range(0, len(x) - 384, 128)])[:, None, None]
def spectra(): return np.abs(np.fft.rfft(windows())).astype(np.float32)
def estimates():
    """what stage 1 in the runtime makes of the windows"""
    s = session(f'{ZOO}/dtln_1/model.onnx'); state = np.zeros((1, 2, 128, 2), np.float32)
    for w in windows():
        f = np.fft.rfft(w); mask, state = s.run(None, {'input_2': np.abs(f).astype(np.float32), 'input_3': state})
        yield np.fft.irfft(f * mask).astype(np.float32)
DATA = {
    'efficientnet_lite0': dict(rows=lambda: (8, dict(input=photographs().transpose(0, 3, 1, 2)))),
    'cifar_resnet8': dict(rows=lambda: (64, dict(input=zoo('cifar_resnet8', 'eval.npz', 'images').astype(np.float32)))),
    'vww_mobilenet': dict(rows=lambda: (16, dict(input=zoo('vww_mobilenet', 'images.npy').astype(np.float32) / 255))),
    'mnist_cntk': dict(rows=lambda: (1, dict(Input3=zoo('mnist_cntk', 'images.npy')[:, None].astype(np.float32)))),
    'fastestdet': dict(rows=lambda: (1, dict(input=images(zoo('fastestdet', 'eval.npz', 'images'), 0, 1)))),
    'ppocr_det': dict(rows=lambda: (1, dict(x=images(zoo('ppocr_det', 'eval.npz', 'images'), .5, .5)))),
    'superres': dict(rows=lambda: (1, {'_ppp5_expanded': zoo('superres', 'eval.npz', 'lr')[:, None].astype(np.float32) / 255})),
    'crepe_tiny': dict(rows=lambda: (20, dict(frames=zoo('crepe_tiny', 'eval.npz', 'X')))),
    'basic_pitch': dict(rows=lambda: (1, {'serving_default_input_2:0': zoo('basic_pitch', 'eval.npz', 'x')})),
    'magika': dict(rows=lambda: (16, dict(bytes=zoo('magika', 'eval.npz', 'bytes')))),
    'skl_forest': dict(rows=lambda: (199, dict(X=zoo('skl_forest', 'eval.npz', 'X')))),
    'minilm': dict(feeds=sentences, tol=1e-4),
    'gru_shakespeare': dict(rows=lambda: (10, dict(input_ids=zoo('gru_shakespeare', 'ids.npy'))), tol=1e-4),
    'stories260k': dict(rows=lambda: (8, dict(input_ids=zoo('stories260k', 'ids.npy'))), tol=1e-4),
    'silero_vad': dict(streams=lambda: [speech('clean'), speech('noisy')], state=('state', 'stateN'), constant=dict(sr=np.array(16000)), tol=1e-4),
    'dtln_1': dict(streams=lambda: [dict(input_2=spectra())], state=('input_3', 'tf_op_layer_stack_2'), tol=1e-4),
    'dtln_1/stage2': dict(streams=lambda: [dict(input_4=np.stack(list(estimates())))], state=('input_5', 'tf_op_layer_stack_5'), calib=False, tol=1e-4),
}
RUNS = [n for n in DATA if not only or n in only]
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

def saturates():
    """whether the runtime's products of uint8 and int8 saturate sums of two at 16 bits on this processor"""
    t = onnx.TensorProto
    g = onnx.helper.make_graph([onnx.helper.make_node('MatMulInteger', ['a', 'b'], ['y'])], 'g',
        [onnx.helper.make_tensor_value_info('a', t.UINT8, [1, 2])], [onnx.helper.make_tensor_value_info('y', t.INT32, [1, 1])],
        [numpy_helper.from_array(np.full((2, 1), 127, np.int8), 'b')])
    m = onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)
    return int(ort.InferenceSession(m.SerializeToString(), providers=['CPUExecutionProvider']).run(None, {'a': np.full((1, 2), 255, np.uint8)})[0][0, 0]) != 2 * 255 * 127

def samples(name):
    for p in sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz')):
        z = np.load(p)
        yield os.path.basename(p)[:-4], {k: z[k] for k in z.files}

def source(name): return f'{ZOO}/{name}.onnx' if '/' in name else f'{ZOO}/{name}/model.onnx'

def feeds(name):
    d = DATA[name]
    if d.get('calib', True): yield from samples(name)
    if 'feeds' in d:
        for i, f in enumerate(d['feeds']()): yield f'eval{i:04d}', f
    if 'rows' in d:
        n, arrays = d['rows']()
        for i in range(0, len(next(iter(arrays.values()))), n):
            yield f'eval{i:04d}', {k: np.ascontiguousarray(v[i:i + n]) for k, v in arrays.items()}

class Agreement:
    """of two engines: the worst relative L2 error of an output over runs and over rows of them; other outputs are equal or not"""
    def __init__(self): self.rel = self.row = self.zero = 0.0; self.sums = {}; self.other = self.same = self.all = 0; self.at = ''
    def add(self, sample, name, r, g):
        if r.dtype != g.dtype or r.shape != g.shape: self.other += 1; return
        if r.dtype.kind != 'f': self.other += not np.array_equal(r, g); return
        self.same += (r == g).sum() + (np.isnan(r) & np.isnan(g)).sum(); self.all += r.size
        self.zero = max(self.zero, np.abs(g[r == 0]).max(initial=0))
        r = r.reshape(r.shape[0] if r.ndim > 1 else 1, -1).astype(np.float64); g = g.reshape(r.shape).astype(np.float64)
        a, b = np.nansum(r * r, 1), ((r - g) ** 2).sum(1)
        t = self.sums.setdefault(name, [0.0, 0.0]); t[0] += a.sum(); t[1] += b.sum()
        e = np.sqrt(np.where(b > 0, b / np.maximum(a, 1e-30), 0)); i = e.argmax() if not np.isnan(e).any() else np.isnan(e).argmax()
        if not e[i] <= self.row: self.row, self.at = e[i], f'{name} of {sample} row {i}'
        whole = np.sqrt(b.sum() / max(a.sum(), 1e-30)) if b.any() else 0.0
        if not whole <= self.rel: self.rel = whole
    def pooled(self):
        """dB of the worst output over all samples"""
        return min((10 * np.log10(a / b) if b else np.inf) for a, b in self.sums.values()) if self.sums else np.inf
    def __str__(self):
        db = self.pooled()
        worst = -20 * np.log10(self.row) if self.row else np.inf
        return f'relative L2 {self.rel:.1e}, of a row {self.row:.1e} = {worst:.1f} dB ({self.at or "-"}), pooled {db:.1f} dB, {self.zero:.1e} where 0, {self.same / max(self.all, 1):.4f} bit-equal, {self.other} other outputs differ'

def agreement(model, name, work):
    """of `onnxq run` and the runtime, which work at the same time, each with one thread"""
    same = ['--saturate'] if saturates() else []
    d = DATA[name]; shutil.rmtree(work, ignore_errors=True); os.makedirs(work + '/in')
    s = session(model); want = [i.name for i in s.get_inputs()]; outs = [o.name for o in s.get_outputs()]; res = Agreement()
    def start(folder, *flags):
        return subprocess.Popen([A.onnxq, 'run', model, '--data', folder, '-o', work + '/out', '--format', 'npz', '-q', '--threads', '1', *same, *flags], stderr=subprocess.PIPE, text=True)
    def finish(p):
        err = p.communicate()[1]
        if p.returncode: raise RuntimeError(f'onnxq run: exit {p.returncode}: {err.strip()[:400]}')
    inputs = list(feeds(name))
    if inputs:
        for sample, f in inputs: np.savez(f'{work}/in/{sample}.npz', **{k: f[k] for k in want})
        p = start(work + '/in'); refs = [s.run(None, {k: f[k] for k in want}) for _, f in inputs]; finish(p)
        for (sample, _), ref in zip(inputs, refs):
            got = np.load(f'{work}/out/{sample}.npz')
            for o, r in zip(outs, ref): res.add(sample, o, np.asarray(r), got[o])
    for i, stream in enumerate(d['streams']() if 'streams' in d else []):
        into, out = d['state']; const = d.get('constant', {}); steps = len(next(iter(stream.values())))
        stream = {k: v for k, v in stream.items() if k in want}; const = {k: v for k, v in const.items() if k in want}
        np.savez(f'{work}/stream{i}.npz', **stream, **{k: np.repeat(v[None], steps, 0) for k, v in const.items()})
        p = start(f'{work}/stream{i}.npz', '--batched', '--state', f'{into}={out}')
        state = np.zeros([x if isinstance(x, int) else 1 for x in next(x.shape for x in s.get_inputs() if x.name == into)], np.float32); refs = []
        for t in range(steps):
            refs.append(s.run(None, {**{k: v[t] for k, v in stream.items()}, **const, into: state})); state = refs[-1][outs.index(out)]
        finish(p)
        for t, ref in enumerate(refs):
            got = np.load(f'{work}/out/stream{i}_{t:06d}.npz')
            for o, r in zip(outs, ref): res.add(f'stream {i} step {t}', o, r, got[o])
    shutil.rmtree(work)
    return res

def gate_exec(name):
    r = agreement(source(name), name, f'{WORK}/{name.replace("/", ".")}.run')
    check(r.rel <= DATA[name].get('tol', 1e-5) and r.zero <= 1e-6 and not r.other, name, f'executor against runtime: {r}')

def gate_match(name):
    if '/' in name: return
    out = f'{WORK}/{name}.onnx'
    if not os.path.exists(out): quantize(name, out)
    r = agreement(out, name, f'{WORK}/{name}.qrun')
    check(r.pooled() >= 45 and not r.other, name, f'executor against runtime on the quantized model: {r}')

def floats(name):
    cache = f'{WORK}/float.json'
    known = json.load(open(cache)) if os.path.exists(cache) else {}
    if name not in known:
        known[name] = metric(ZOO, name)
        json.dump(known, open(cache, 'w'))
    return known[name]

def quantize(name, out, images=False, env=None):
    d = DEMANDS.get(name, {})
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
    f, q = floats(name), metric(ZOO, name, out)
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

def gate_lint(name):
    if '/' in name: return
    for label, flags in (('default', []), ('static', ['--mode', 'static', '--algorithm', 'none'])):
        out = f'{WORK}/{name}.{label}.onnx'
        onnxq('quantize', source(name), '-o', out, '--data', f'{ZOO}/{name}/calib', '-q', *flags)
        same, gone, bad = lint.compare(A.onnxq, out, WORK)
        check(not bad, name, f'lint, {label}: {same} groups as the runtime has them, {sum(gone.values())} taken by other fusions{"; " + bad[0] if bad else ""}')

def attempt(gate, name, f, *args):
    if gate not in GATES: return
    try:
        f(name, *args)
    except Exception as x:
        check(False, name, f'{gate}: {type(x).__name__}: {str(x)[:500]}')

for name in RUNS: attempt('exec', name, gate_exec)
for name in NAMES:
    attempt('quant', name, gate_quant, False)
    if 'data' in DEMANDS[name]: attempt('quant', name, gate_quant, True)
for name in RUNS: attempt('match', name, gate_match)
for name in NAMES: attempt('speed', name, gate_speed)
for name in RUNS: attempt('lint', name, gate_lint)
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
