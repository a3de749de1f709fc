#!/usr/bin/env python3
"""What each way to quantize does to real models: python table.py --onnxq BIN --shared DIR [--only NAME,...] [--schemes KEY,...] [-o PAGE.md]

Quantizes each model in every way of SCHEMES, and writes a page with a table for each model: the task metric, the output's
agreement with the float model where the evaluation gives one, the bytes relative to float, and how many times as fast as
the float model ONNX Runtime runs it (one thread, median of interleaved pairs). What the page holds already is read from it and
stays, so that a run can be stopped and taken up, and models added one by one; times are only added to those of the same kind of
processor. Needs onnxruntime, numpy, pillow.
"""
import argparse, glob, json, os, re, subprocess, tempfile
import numpy as np
from runtime import metric, speed

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--schemes', default='')
ap.add_argument('-o', default='docs/schemes.md')
ap.add_argument('--pairs', type=int, default=9)
ap.add_argument('--lock', default='', help='a file to lock while times are measured')
ap.add_argument('--no-times', action='store_true', help='measure no times')
A = ap.parse_args()
ZOO = os.path.join(A.shared, 'zoo')

PLAIN = ['--mode', 'static', '--algorithm', 'none', '--method', 'minmax']
def plain(*flags): return [*PLAIN, *flags]
def method(m): return ['--mode', 'static', '--algorithm', 'none', '--method', m]
def passes(a, *flags): return ['--mode', 'static', '--method', 'minmax', '--algorithm', a, *flags]
SCHEMES = [
    ('', 'Modes', None),
    ('default', 'default', []),
    ('size', '`--prefer size`', ['--prefer', 'size']),
    ('speed', '`--prefer speed`', ['--prefer', 'speed']),
    ('static', '`--mode static`', ['--mode', 'static']),
    ('dynamic', '`--mode dynamic`', ['--mode', 'dynamic']),
    ('weights', '`--mode weights`', ['--mode', 'weights']),
    ('weights-f16', '`--mode weights --weights f16`', ['--mode', 'weights', '--weights', 'f16']),
    ('weights-i4', '`--mode weights --weights i4`', ['--mode', 'weights', '--weights', 'i4']),
    ('float16', '`--mode float16`', ['--mode', 'float16']),
    ('per-token', '`--mode dynamic --per-token`', ['--mode', 'dynamic', '--per-token']),
    ('', 'Schemes, each with `--mode static --algorithm none --method minmax`', None),
    ('plain', 'asymmetric u8 activations, i8 weights per channel', plain()),
    ('tensor', '`--granularity tensor`', plain('--granularity', 'tensor')),
    ('symmetric', '`--symmetric-activations`', plain('--symmetric-activations')),
    ('signed', '`--activations i8`', plain('--activations', 'i8')),
    ('u8-weights', '`--weights u8` (asymmetric)', plain('--weights', 'u8')),
    ('reduced', '`--reduce-range`', plain('--reduce-range')),
    ('power', '`--power-of-two`', plain('--power-of-two')),
    ('u16', '`--activations u16`', plain('--activations', 'u16')),
    ('w4a8', '`--target qnn --weights i4`', plain('--target', 'qnn', '--weights', 'i4')),
    ('w4a16', '`--target qnn --weights i4 --activations u16`', plain('--target', 'qnn', '--weights', 'i4', '--activations', 'u16')),
    ('f8', '`--target tensorrt --activations f8e4m3`', plain('--target', 'tensorrt', '--activations', 'f8e4m3')),
    ('', 'Calibration methods, each with `--mode static --algorithm none`', None),
    *[(m, f'`--method {m}`', method(m)) for m in ('moving-average', 'histogram', 'entropy', 'percentile', 'mse', 'l1', 'lp', 'weighted', 'auto')],
    ('', 'Algorithms, each with `--mode static --method minmax`', None),
    *[(a, f'`--algorithm {a}`', passes(a)) for a in ('equalize', 'smooth', 'bias-correction', 'round')],
    ('all', 'all of them, where they help', ['--mode', 'static', '--method', 'minmax']),
    ('', 'Algorithms of weights alone, each with `--weights i4 --granularity block:32`', None),
    *[('w-' + a, f'`--algorithm {a}`', ['--mode', 'weights', '--weights', 'i4', '--granularity', 'block:32', '--algorithm', a])
      for a in ('none', 'clip', 'awq', 'awq,clip', 'gptq', 'awq,gptq', 'clip,gptq', 'awq,clip,gptq')],
]

KEYS = {label: key for key, label, flags in SCHEMES if flags is not None}


def processor():
    flags = open('/proc/cpuinfo').read() if os.path.exists('/proc/cpuinfo') else ''
    return 'a processor with ' + ('AVX-512 and VNNI' if 'avx512_vnni' in flags else 'AVX2 and without VNNI' if 'avx2' in flags else 'neither AVX2 nor VNNI')


def number(x):
    return None if x in ('–', 'exact') else float(x.rstrip(' %'))


def read():
    """The rows of the page by model and scheme, as measure returns them."""
    known = {}
    if not os.path.exists(A.o): return known
    agree = True
    for line in open(A.o):
        cells = [c.strip() for c in line.strip().strip('|').split(' |')]
        cells = [c.lstrip('| ').strip() for c in cells]
        if line.startswith('## '):
            rows = known.setdefault(line[3:].strip(), {})
        elif m := re.match(r'(.+) of the float model: ([-0-9.]+), on (.*)', line):
            rows['float'] = {'metric': m[1], 'value': float(m[2]), 'processor': m[3].strip()}
        elif line.startswith('| |'):
            agree = 'agreement' in line
        elif line.startswith('| ') and cells[0] in KEYS:
            v = [number(c) if re.fullmatch(r'–|exact|-?[0-9.]+( %)?', c) else c for c in cells[1:] if c]
            if len(v) == 1:
                rows[KEYS[cells[0]]] = {'error': v[0]}
                continue
            value, *v = v
            rows[KEYS[cells[0]]] = {'value': value, 'agree': v.pop(0) if agree else None, **dict(zip(('sqnr', 'bytes', 'macs', 'speed'), v))}
            rows[KEYS[cells[0]]]['macs'] /= 100
    return known


def measure(name, flags, work, timed):
    src, out = f'{ZOO}/{name}/model.onnx', f'{work}/q.onnx'
    r = subprocess.run([A.onnxq, 'quantize', src, '-o', out, '--data', f'{ZOO}/{name}/calib', '-q', '--json', f'{work}/q.json', *flags], capture_output=True, text=True)
    if r.returncode:
        return {'error': r.stderr.strip().splitlines()[0][:160]}
    j = json.load(open(f'{work}/q.json'))
    try:
        e = metric(ZOO, name, out)
        files = sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz'))[:4]
        feeds = [dict(np.load(f)) for f in files]
        lock = open(A.lock, 'w') if A.lock and timed else None
        if lock:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        s = speed(src, out, feeds, A.pairs) if timed else None
        if lock: lock.close()
    except Exception as x:
        return {'error': f'{type(x).__name__}: {str(x)[:160]}'}
    return {'value': e['value'], 'agree': e.get('agree_float'), 'sqnr': j['sqnr_db'], 'bytes': os.path.getsize(out) / os.path.getsize(src),
            'macs': j['int8_macs_share'], 'speed': s}


def page():
    out = ['# What each way to quantize does', '',
           'Made by [gates/table.py](../gates/table.py), on models and evaluation sets that are not part of this repository. Each row is one run of `onnxq quantize MODEL -o OUT --data SAMPLES` with the flags given.', '',
           '- **metric**: of the task, by ONNX Runtime 1.32.0. Agreement is the share of inputs with the same arg-max as the float model: it moves less by chance than the metric does.',
           '- **SQNR** of the worst output in dB, on held-out samples.',
           '- **bytes**: the file, relative to the float model’s. **on integers**: the share of multiply-adds with int8 weights and activations.',
           '- **speed**: how many times as fast as the float model ONNX Runtime is, one thread, median of interleaved pairs of processor time; –: not measured.', '']
    for name in known:
        rows = known[name]
        f = rows.get('float')
        if not f: continue
        agree = any(r.get('agree') is not None for k, r in rows.items() if k != 'float')
        out += [f'## {name}', '', f'{f["metric"]} of the float model: {f["value"]:.4f}, on {f["processor"]}', '',
                '| | metric |' + (' agreement |' if agree else '') + ' SQNR | bytes | on integers | speed |', '|---|---:|' + ('---:|' if agree else '') + '---:|---:|---:|---:|']
        for i, (key, label, flags) in enumerate(SCHEMES):
            if flags is None:
                rest = SCHEMES[i + 1:]
                end = next((k for k, s in enumerate(rest) if s[2] is None), len(rest))
                if any(s[0] in rows for s in rest[:end]): out.append(f'| **{label}** |' + ' |' * (6 if agree else 5))
            elif key in rows:
                r = rows[key]
                if 'error' in r:
                    out.append(f'| {label} | {r["error"].replace("|", "/")} |' + ' |' * (5 if agree else 4))
                    continue
                db = 'exact' if r['sqnr'] is None else f'{r["sqnr"]:.1f}'
                a = '' if not agree else f' {r["agree"]:.3f} |' if r.get('agree') is not None else ' – |'
                out.append(f'| {label} | {r["value"]:.4f} |{a} {db} | {r["bytes"]:.3f} | {100 * r["macs"]:.0f} % | {"–" if r["speed"] is None else format(r["speed"], ".2f")} |')
        out.append('')
    with open(A.o + '.tmp', 'w') as f: f.write('\n'.join(out))
    os.replace(A.o + '.tmp', A.o)


known = read()
only, schemes = [n for n in A.only.split(',') if n], [n for n in A.schemes.split(',') if n]
with tempfile.TemporaryDirectory() as work:
    for name in only:
        rows = known.setdefault(name, {})
        if 'float' not in rows:
            e = metric(ZOO, name)
            rows['float'] = {'metric': e['metric'], 'value': e['value'], 'processor': processor()}
        timed = not A.no_times and rows['float']['processor'] == processor()
        for key, label, flags in SCHEMES:
            if flags is None or schemes and key not in schemes or key in rows: continue
            rows[key] = measure(name, flags, work, timed)
            page()
            print(name, key, rows[key], flush=True)
page()
