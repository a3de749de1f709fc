#!/usr/bin/env python3
"""Gates of the default command: python default.py --onnxq BIN --shared DIR [--only NAME,...] [--gates quant,speed,cost] [--work DIR] [--table FILE.json] [--flags "..."]

quant  quantizes each model with one command line and checks the task metric and the bytes of its weights
speed  times float and quantized model in ONNX Runtime, one thread, pairs interleaved (median of the ratios), and compares
       the geometric mean with that of the peers' files that load and stay within 1 %
cost   what `quantize` takes, in passes of `calibrate`

Prints a line a check and ends with `N passed, N failed`. Needs onnxruntime, numpy, pillow.
"""
import argparse, fcntl, glob, json, os, shlex, subprocess, sys, tempfile, time
import numpy as np
from runtime import metric, session

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--gates', default='quant,speed,cost')
ap.add_argument('--work', default='')
ap.add_argument('--pairs', type=int, default=9)
ap.add_argument('--flags', default='', help='more flags of quantize')
ap.add_argument('--table', default='', help='write what was measured, as JSON')
ap.add_argument('--lock', default='', help='a file to hold locked while timing')
A = ap.parse_args()
ZOO = os.path.join(A.shared, 'zoo')
WORK = A.work or tempfile.mkdtemp(prefix='onnxq-default')
os.makedirs(WORK, exist_ok=True)

# loss: relative loss of the metric that is allowed, or one evaluation item; floor, ceiling: of the metric itself; peer: the best
# speed-up of a peer's file that loads and stays within 1 %; cell: only the weights of a recurrent cell can shrink.
DEMANDS = {
    'efficientnet_lite0': dict(loss=.005, speed=1.9, peer=2.0), 'minilm': dict(loss=.002, speed=1.9, peer=1.93),
    'magika': dict(loss=.005, peer=2.36), 'ppocr_det': dict(loss=.005, peer=1.49), 'fastestdet': dict(loss=.02, sqnr=20, peer=.98),
    'silero_vad': dict(floor=.995, cell=True), 'dtln_1': dict(floor=15.1, peer=.96), 'stories260k': dict(ceiling=2.98),
    'gru_shakespeare': dict(ceiling=6.20, cell=True), 'basic_pitch': dict(loss=.005), 'superres': dict(superres=True),
    'crepe_tiny': dict(loss=.005), 'vww_mobilenet': dict(loss=.005), 'cifar_resnet8': dict(loss=.005),
    'mnist_cntk': dict(loss=.005), 'skl_forest': dict(loss=0),
}
SHRINK = ('Conv', 'MatMul', 'Gemm', 'LSTM', 'Gather')
only = [n for n in A.only.split(',') if n]
NAMES = [n for n in DEMANDS if not only or n in only]
GATES = A.gates.split(',')
passed = failed = 0
rows = {n: {} for n in NAMES}

def check(ok, name, text):
    global passed, failed
    passed += bool(ok); failed += not ok
    print(('ok   ' if ok else 'FAIL ') + f'{name}: {text}', flush=True)

def run(*args):
    r = subprocess.run(args, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'{" ".join(args)}: exit {r.returncode}: {r.stderr.strip()[:400]}')
    return r.stdout

def src(name): return f'{ZOO}/{name}/model.onnx'
def out(name): return f'{WORK}/{name}.onnx'

def floats(name):
    cache = f'{WORK}/float.json'
    known = json.load(open(cache)) if os.path.exists(cache) else {}
    if name not in known:
        known[name] = metric(ZOO, name)
        json.dump(known, open(cache, 'w'))
    return known[name]

def quantize(name, *more):
    run(A.onnxq, 'quantize', src(name), '-o', out(name), '--data', f'{ZOO}/{name}/calib', '--json', out(name) + '.json', '-q', *shlex.split(A.flags), *more)
    return json.load(open(out(name) + '.json'))

def gate_quant(name):
    d, row = DEMANDS[name], rows[name]
    res = quantize(name)
    f, q = floats(name), metric(ZOO, name, out(name))
    row.update(float=f['value'], value=q['value'], seconds=res['seconds'], sqnr_db=res['sqnr_db'], notes=res.get('notes'))
    text = f'{q["metric"]} {q["value"]:.4f} of {f["value"]:.4f}, output SQNR {res["sqnr_db"] if res["sqnr_db"] is None else round(res["sqnr_db"], 1)} dB'
    big = [w for w in res['weights'] if w['op'] in SHRINK]
    a, b = sum(w['bytes_in'] for w in big), sum(w['bytes_out'] for w in big)
    share = res['weight_bytes_out'] / max(res['weight_bytes_in'], 1)
    row.update(weights=share, file=res['bytes_out'] / res['bytes_in'])
    if 'loss' in d:
        low = min(f['value'] * (1 - d['loss']), f['value'] - (1 / f['n'] if d['loss'] == .005 else 0))
        check(q['value'] >= low, name, f'{text} (at least {low:.4f})')
    elif 'ceiling' in d: check(q['value'] <= d['ceiling'], name, f'{text} (at most {d["ceiling"]})')
    elif 'floor' in d: check(q['value'] >= d['floor'], name, f'{text} (at least {d["floor"]})')
    else: check(q['value'] >= 25.0 and share <= .35 or q['value'] >= 24.8 and share <= .30, name, f'{text}, weights {share:.3f}')
    if 'sqnr' in d: check(res['sqnr_db'] >= d['sqnr'], name, f'output SQNR at least {d["sqnr"]} dB')
    if a > 100_000 and name != 'superres': check(b <= .30 * a, name, f'weights of {", ".join(SHRINK)} {b / a:.3f} of {a} bytes (at most .30); all {share:.3f}')

def locked(f):
    if not A.lock: return f()
    with open(A.lock, 'a') as l:
        fcntl.flock(l, fcntl.LOCK_EX)
        return f()

def gate_speed(name):
    d = DEMANDS[name]
    same = open(src(name), 'rb').read() == open(out(name), 'rb').read()
    a, b = session(src(name)), session(out(name))
    feeds = [np.load(p) for p in sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz'))[:4]]
    feeds = [{i.name: z[i.name] for i in a.get_inputs()} for z in feeds]
    def once(s):
        t = time.perf_counter()
        for f in feeds: s.run(None, f)
        return (time.perf_counter() - t) / len(feeds)
    def pairs():
        for s in (a, b): once(s)
        reps = max(1, int(.08 / len(feeds) / once(a)))
        return [(sum(once(a) for _ in range(reps)) / reps, sum(once(b) for _ in range(reps)) / reps) for _ in range(A.pairs)]
    t = locked(pairs)
    r = float(np.median([x / y for x, y in t])); ms = 1e3 * float(np.median([x for x, _ in t]))
    rows[name].update(speed=r, float_ms=ms)
    most = 1.1 if d.get('cell') else 1.03
    least = d.get('speed', 1 / most)
    check(same or ms < .2 or r >= least, name, f'{r:.3f} times float\'s speed, float {ms:.3f} ms (at least {least:.3f}){", the same file" if same else ""}')

def gate_cost(name):
    if name == 'skl_forest': return
    def calibrate():
        t = time.perf_counter()
        run(A.onnxq, 'calibrate', src(name), '-o', out(name) + '.table.json', '--data', f'{ZOO}/{name}/calib', '-q')
        return time.perf_counter() - t
    def whole():
        t = time.perf_counter(); quantize(name)
        return time.perf_counter() - t
    x, y = locked(lambda: (min(calibrate(), calibrate()), whole()))
    rows[name].update(calibrate=x, quantize=y)
    check(y <= 20 * x, name, f'quantize {y:.2f} s, {y / x:.1f} passes of {x:.2f} s (at most 20)')

for name in NAMES:
    for g, f in (('quant', gate_quant), ('speed', gate_speed), ('cost', gate_cost)):
        if g not in GATES: continue
        try: f(name)
        except Exception as x: check(False, name, f'{g}: {type(x).__name__}: {str(x)[:500]}')
if 'speed' in GATES and not only:
    ours = [rows[n]['speed'] for n in NAMES if 'peer' in DEMANDS[n] and 'speed' in rows[n]]
    peers = [DEMANDS[n]['peer'] for n in NAMES if 'peer' in DEMANDS[n] and 'speed' in rows[n]]
    a, b = np.exp(np.mean(np.log(ours))), np.exp(np.mean(np.log(peers)))
    check(a >= b, 'all', f'geometric mean of the speed-ups {a:.3f}, the peers\' {b:.3f}')
if 'cost' in GATES and not only:
    m = float(np.median([r['quantize'] / r['calibrate'] for r in rows.values() if 'calibrate' in r]))
    check(m <= 8, 'all', f'median cost {m:.1f} passes (at most 8)')
if A.table: json.dump(rows, open(A.table, 'w'), indent=1)
print(f'{passed} passed, {failed} failed')
sys.exit(failed > 0)
