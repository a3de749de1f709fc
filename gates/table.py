#!/usr/bin/env python3
"""What each way to quantize does to real models: python table.py --onnxq BIN --shared DIR [--only NAME,...] [--schemes KEY,...] [--cache FILE] [-o PAGE.md]

Quantizes each model in every way of SCHEMES, and writes a page with a table for each model: the task metric, the output's
agreement with the float model where the evaluation gives one, the bytes relative to float, and how many times as fast as
the float model ONNX Runtime runs it (one thread, median of interleaved pairs). Measurements are kept in a JSON file, so that
a run can be stopped and taken up, and models added one by one. Needs onnxruntime, numpy, pillow.
"""
import argparse, glob, json, os, subprocess, tempfile
import numpy as np
from runtime import metric, speed

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--schemes', default='')
ap.add_argument('--cache', default='bin/table.json')
ap.add_argument('-o', default='docs/schemes.md')
ap.add_argument('--pairs', type=int, default=9)
ap.add_argument('--lock', default='', help='a file to lock while times are measured')
ap.add_argument('--no-times', action='store_true', help='measure no times')
ap.add_argument('--retime', action='store_true', help='measure the times of what is known once more')
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
    ('', 'Schemes, each with `--mode static --algorithm none --method minmax`', None),
    ('plain', 'asymmetric u8 activations, i8 weights per channel', plain()),
    ('tensor', '`--granularity tensor`', plain('--granularity', 'tensor')),
    ('symmetric', '`--symmetric-activations`', plain('--symmetric-activations')),
    ('signed', '`--activations i8`', plain('--activations', 'i8')),
    ('u8-weights', '`--weights u8` (asymmetric)', plain('--weights', 'u8')),
    ('reduced', '`--reduce-range`', plain('--reduce-range')),
    ('power', '`--power-of-two`', plain('--power-of-two')),
    ('u16', '`--activations u16`', plain('--activations', 'u16')),
    ('', 'Calibration methods, each with `--mode static --algorithm none`', None),
    *[(m, f'`--method {m}`', method(m)) for m in ('moving-average', 'histogram', 'entropy', 'percentile', 'mse', 'l1', 'lp', 'weighted', 'auto')],
    ('', 'Algorithms, each with `--mode static --method minmax`', None),
    *[(a, f'`--algorithm {a}`', passes(a)) for a in ('equalize', 'smooth', 'bias-correction', 'round')],
    ('all', 'all of them, where they help', ['--mode', 'static', '--method', 'minmax']),
    ('', 'Algorithms of weights alone, each with `--weights i4 --granularity block:32`', None),
    *[('w-' + a, f'`--algorithm {a}`', ['--mode', 'weights', '--weights', 'i4', '--granularity', 'block:32', '--algorithm', a])
      for a in ('none', 'clip', 'awq', 'awq,clip', 'gptq', 'awq,gptq', 'clip,gptq', 'awq,clip,gptq')],
]

known = json.load(open(A.cache)) if os.path.exists(A.cache) else {}


def measure(name, flags, work, old=None):
    src, out = f'{ZOO}/{name}/model.onnx', f'{work}/q.onnx'
    r = subprocess.run([A.onnxq, 'quantize', src, '-o', out, '--data', f'{ZOO}/{name}/calib', '-q', '--json', f'{work}/q.json', *flags], capture_output=True, text=True)
    if r.returncode:
        return {'error': r.stderr.strip().splitlines()[0][:160]}
    j = json.load(open(f'{work}/q.json'))
    try:
        e = None if old else metric(ZOO, name, out)
        files = sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz'))[:4]
        feeds = [dict(np.load(f)) for f in files]
        lock = open(A.lock, 'w') if A.lock and not A.no_times else None
        if lock:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        s = None if A.no_times else speed(src, out, feeds, A.pairs)
        if lock: lock.close()
        if old: return {**old, 'speed': s}
    except Exception as x:
        return {'error': f'{type(x).__name__}: {str(x)[:160]}'}
    return {'metric': e['metric'], 'value': e['value'], 'agree': e.get('agree_float'), 'sqnr': j['sqnr_db'], 'bytes': os.path.getsize(out) / os.path.getsize(src),
            'macs': j['int8_macs_share'], 'speed': s}


def save():
    os.makedirs(os.path.dirname(A.cache) or '.', exist_ok=True)
    json.dump(known, open(A.cache + '.tmp', 'w'), indent=1)
    os.replace(A.cache + '.tmp', A.cache)


def processor():
    flags = open('/proc/cpuinfo').read() if os.path.exists('/proc/cpuinfo') else ''
    return 'a processor with ' + ('AVX-512 and VNNI' if 'avx512_vnni' in flags else 'AVX2 and without VNNI' if 'avx2' in flags else 'neither AVX2 nor VNNI')


def page():
    out = ['# What each way to quantize does', '',
           'Made by [gates/table.py](../gates/table.py), on models and evaluation sets that are not part of this repository. Each row is one run of `onnxq quantize MODEL -o OUT --data SAMPLES` with the flags given.', '',
           f'- **metric**: of the task, by ONNX Runtime 1.32.0 on {processor()}. Agreement is the share of inputs with the same arg-max as the float model: it moves less by chance than the metric does.',
           '- **SQNR** of the worst output in dB, on held-out samples.',
           '- **bytes**: the file, relative to the float model’s. **on integers**: the share of multiply-adds with int8 weights and activations.',
           '- **speed**: how many times as fast as the float model ONNX Runtime is, one thread, median of interleaved pairs of processor time; –: not measured.', '']
    for name in known:
        rows = known[name]
        f = rows.get('float')
        if not f: continue
        agree = any(r.get('agree') is not None for k, r in rows.items() if k != 'float')
        out += [f'## {name}', '', f'{f["metric"]} of the float model: {f["value"]:.4f}', '',
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
    open(A.o, 'w').write('\n'.join(out))


only, schemes = [n for n in A.only.split(',') if n], [n for n in A.schemes.split(',') if n]
with tempfile.TemporaryDirectory() as work:
    for name in only:
        rows = known.setdefault(name, {})
        if 'float' not in rows:
            e = metric(ZOO, name)
            rows['float'] = {'metric': e['metric'], 'value': e['value']}
        for key, label, flags in SCHEMES:
            old = rows.get(key)
            if flags is None or schemes and key not in schemes or bool(old) != A.retime or old and 'error' in old: continue
            rows[key] = measure(name, flags, work, old)
            save()
            print(name, key, rows[key], flush=True)
page()
