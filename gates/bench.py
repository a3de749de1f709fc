#!/usr/bin/env python3
"""Speed of the embedded executor beside ONNX Runtime: python bench.py --onnxq BIN --shared DIR [--only NAME,...]
[--threads 1,2] [--int8 DIR] [--rounds N] [--seconds S] [--profile]

Runs every model of DIR/zoo on its calibration samples, in both engines in turn, round by round, and prints the median
over the rounds of (runtime's median time / executor's median time): above 1 the executor is ahead. --int8 names a folder
of quantized models NAME.onnx; those that it lacks are made there with default flags. --profile adds each executor's most
expensive operators. The megabytes are the peak resident sets of two runs of BIN bench, one on each engine, with the same
samples. Needs onnxruntime, numpy.
"""
import argparse, glob, json, os, subprocess, sys, time
import numpy as np, onnxruntime as ort

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--only', default='')
ap.add_argument('--threads', default='1,2')
ap.add_argument('--int8', default='')
ap.add_argument('--rounds', type=int, default=5)
ap.add_argument('--seconds', type=float, default=.2, help='length of a round of one engine')
ap.add_argument('--profile', action='store_true')
A = ap.parse_args()
ZOO = os.path.join(A.shared, 'zoo')
only = [n for n in A.only.split(',') if n]
NAMES = [n for n in sorted(os.listdir(ZOO)) if os.path.exists(f'{ZOO}/{n}/model.onnx') and (not only or n in only)]
SAMPLES = 16  # of each model

def runtime(path, name, threads):
    so = ort.SessionOptions()
    so.intra_op_num_threads, so.log_severity_level = threads, 4
    s = ort.InferenceSession(path, so, providers=['CPUExecutionProvider'])
    names = [i.name for i in s.get_inputs()]
    feeds = []
    for p in sorted(glob.glob(f'{ZOO}/{name}/calib/*.npz'))[:SAMPLES]:
        z = np.load(p)
        feeds.append({k: z[k] for k in names})
    return s, feeds

def time_runtime(s, feeds, runs):
    t = []
    for i in range(runs):
        f = feeds[i % len(feeds)]
        a = time.perf_counter()
        s.run(None, f)
        t.append(time.perf_counter() - a)
    return float(np.median(t)) * 1e3

LIBRARY = next(iter(glob.glob(os.path.join(os.path.dirname(ort.__file__), 'capi', '*onnxruntime.*' + ort.__version__ + '*'))))

def bench(path, name, threads, runs, *more):
    r = subprocess.run([A.onnxq, 'bench', path, '--data', f'{ZOO}/{name}/calib', '--threads', str(threads), '--runs', str(runs),
                        '--json', '-', '-q', *more], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(r.stderr.strip()[:300])
    return json.loads(r.stdout)

def measure(path, name, threads):
    s, feeds = runtime(path, name, threads)
    once = min(time_runtime(s, feeds, len(feeds)) for _ in range(2)) / 1e3
    runs = max(3, min(2000, int(A.seconds / once)))
    # Both run on the same samples equally often.
    runs = max(1, round(runs / len(feeds))) * len(feeds) if runs >= len(feeds) else runs
    ratios, ours, theirs = [], [], []
    for _ in range(A.rounds):
        x = time_runtime(s, feeds, runs)
        b = bench(path, name, threads, runs)
        ratios.append(x / b['median_ms']); theirs.append(x); ours.append(b['median_ms'])
    top = ', '.join(f"{o['op']} {o['share']:.0%}" for o in b['ops'][:6]) if A.profile else ''
    other = bench(path, name, threads, runs, '--engine', 'ort', '--ort-lib', LIBRARY)
    return float(np.median(ratios)), float(np.median(ours)), float(np.median(theirs)), b['peak_rss_bytes'] / 1e6, other['peak_rss_bytes'] / 1e6, top

kinds = [('float', lambda n: f'{ZOO}/{n}/model.onnx')]
if A.int8:
    os.makedirs(A.int8, exist_ok=True)
    kinds.append(('int8', lambda n: f'{A.int8}/{n}.onnx'))
failed = 0
for kind, path in kinds:
    for threads in [int(t) for t in A.threads.split(',')]:
        all_ratios, larger = [], []
        for n in NAMES:
            try:
                if kind == 'int8' and not os.path.exists(path(n)):
                    subprocess.run([A.onnxq, 'quantize', f'{ZOO}/{n}/model.onnx', '-o', path(n), '--data', f'{ZOO}/{n}/calib', '-q'], check=True, capture_output=True)
                r, ours, theirs, mb, theirmb, top = measure(path(n), n, threads)
                all_ratios.append(r)
                if mb > theirmb:
                    larger.append(n)
                print(f'{kind:5} {threads} threads  {n:20} {r:6.2f}  executor {ours:9.3f} ms  runtime {theirs:9.3f} ms  {mb:5.0f} / {theirmb:5.0f} MB  {top}', flush=True)
            except Exception as x:
                failed += 1
                print(f'{kind:5} {threads} threads  {n:20} FAIL {type(x).__name__}: {str(x)[:300]}', flush=True)
        if all_ratios:
            print(f'{kind:5} {threads} threads  geometric mean {np.exp(np.mean(np.log(all_ratios))):.3f}, lowest {min(all_ratios):.2f}, {len(all_ratios)} models; takes more memory on: {", ".join(larger) or "none"}', flush=True)
sys.exit(failed > 0)
