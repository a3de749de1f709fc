#!/usr/bin/env python3
"""Calibration beside other tools: python calibration.py --onnxq BIN --shared DIR [--rounds N] [--onnxsim PYTHON]
[--only NAME,...]

Whole processes, in turn, round by round, on the photographs of efficientnet_lite0 given twice. Ours is calibrate, then
quantize from the table; theirs collects statistics and computes the ranges. Prints medians of times, of the ratios of
times in a round, and peak resident sets. Then peaks of calibrate on ppocr_det's pages, once and ten times over. --onnxsim
names a Python that has onnxsim 0.8.1. Exit code 1 if a bound of BOUNDS is missed. Needs onnxruntime, numpy, pillow.
"""
import argparse, glob, json, os, shutil, subprocess, sys, tempfile, time
import numpy as np
from PIL import Image

ap = argparse.ArgumentParser()
ap.add_argument('--onnxq', required=True)
ap.add_argument('--shared', required=True)
ap.add_argument('--rounds', type=int, default=3)
ap.add_argument('--onnxsim', default='', help='a Python that has onnxsim')
ap.add_argument('--only', default='', help='comparisons to make, such as "onnxruntime minmax"')
A = ap.parse_args()
only = [n for n in A.only.split(',') if n]
ZOO = os.path.join(A.shared, 'zoo')
MODEL = f'{ZOO}/efficientnet_lite0/model.onnx'
# Times of the other tool in ours, and our peak memory in theirs.
BOUNDS = {'onnxruntime entropy': (10, 1 / 15), 'onnxruntime minmax': (3, None), 'onnxsim entropy': (5, None)}

THEIRS = '''
import glob, sys, os, numpy as np
tool, method, model, folder, out = sys.argv[1:]
paths = sorted(glob.glob(folder + '/*.npz')) * 2
if tool == 'onnxsim':
    import onnx, onnxsim
    data = [dict(np.load(p)) for p in paths]
    onnx.save(onnxsim.quantize_static(model, calibration_data=data, method=method, full_graph=True), out)
else:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
    class Reader(CalibrationDataReader):
        def __init__(self): self.i = iter(paths)
        def get_next(self):
            p = next(self.i, None)
            return None if p is None else dict(np.load(p))
    how = {'minmax': CalibrationMethod.MinMax, 'entropy': CalibrationMethod.Entropy, 'percentile': CalibrationMethod.Percentile}[method]
    c = create_calibrator(model, None, augmented_model_path=out, calibrate_method=how)
    c.collect_data(Reader())
    c.compute_data()
'''

def process(*argv):
    """Seconds and peak megabytes of a process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=err)
        _, status, usage = os.wait4(p.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            err.seek(0)
            raise RuntimeError(f'{argv[:3]}: {err.read().decode()[-500:]}')
    return seconds, usage.ru_maxrss / 1024

def photographs(folder):
    for p in sorted(glob.glob(f'{ZOO}/efficientnet_lite0/calib_images/*')):
        im = Image.open(p).convert('RGB')
        s = 256 / min(im.size)
        im = im.resize((round(im.size[0] * s), round(im.size[1] * s)), Image.BILINEAR)
        x, y = (im.size[0] - 224) // 2, (im.size[1] - 224) // 2
        a = (np.asarray(im.crop((x, y, x + 224, y + 224)), np.float32) - 127) / 128
        np.savez(os.path.join(folder, os.path.basename(p) + '.npz'), **{INPUT: a.transpose(2, 0, 1)[None]})

failed = []
with tempfile.TemporaryDirectory() as tmp:
    shape = np.load(sorted(glob.glob(f'{ZOO}/efficientnet_lite0/calib/*.npz'))[0])
    INPUT = shape.files[0]
    data, table = os.path.join(tmp, 'data'), os.path.join(tmp, 'table.json')
    os.mkdir(data)
    photographs(data)
    script = os.path.join(tmp, 'theirs.py')
    with open(script, 'w') as f:
        f.write(THEIRS)

    def ours(method):
        a = process(A.onnxq, 'calibrate', MODEL, '--data', data, '--data', data, '--holdout', '0', '-o', table, '-q')
        t = json.load(open(table))
        t.pop('sources', None)  # nothing is to be measured
        json.dump(t, open(table, 'w'))
        b = process(A.onnxq, 'quantize', MODEL, '--table', table, '--method', method, '--mode', 'static', '--algorithm', 'none', '-o', os.path.join(tmp, 'q.onnx'), '-q')
        return a[0] + b[0], max(a[1], b[1])

    cases = [(f'onnxruntime {m}', sys.executable, 'onnxruntime', m) for m in ('entropy', 'percentile', 'minmax')]
    if A.onnxsim:
        cases.append(('onnxsim entropy', A.onnxsim, 'onnxsim', 'entropy'))
    for name, python, tool, method in cases:
        if only and name not in only:
            continue
        mine, other = [], []
        for _ in range(A.rounds):
            mine.append(ours(method))
            other.append(process(python, script, tool, method, MODEL, data, os.path.join(tmp, 'o.onnx')))
        ratio = float(np.median([o[0] / m[0] for m, o in zip(mine, other)]))
        memory = max(m[1] for m in mine) / min(o[1] for o in other)
        fast, small = BOUNDS.get(name, (None, None))
        bad = fast and ratio < fast or small and memory > small
        failed += [name] * bool(bad)
        print(f'{name:24} {np.median([o[0] for o in other]):7.2f} s {min(o[1] for o in other):6.0f} MB   onnxq {np.median([m[0] for m in mine]):6.2f} s {max(m[1] for m in mine):6.0f} MB'
              f'   {ratio:5.1f} times faster, {memory:.3f} of the memory{"   MISSED" if bad else ""}', flush=True)

    pages = f'{ZOO}/ppocr_det/calib'
    many = os.path.join(tmp, 'pages')
    os.mkdir(many)
    for p in sorted(glob.glob(pages + '/*.npz')):
        for k in range(10):
            shutil.copy(p, os.path.join(many, f'{k}_{os.path.basename(p)}'))
    peaks = {}
    for name, folder in (('once', pages), ('ten times', many)):
        peaks[name] = float(np.median([process(A.onnxq, 'calibrate', f'{ZOO}/ppocr_det/model.onnx', '--data', folder, '--holdout', '0', '-o', table, '-q')[1] for _ in range(A.rounds)]))
    grown = peaks['ten times'] / peaks['once'] - 1
    bad = max(peaks.values()) > 500 or grown > .05
    failed += ['ppocr_det'] * bad
    print(f'ppocr_det pages: peak {peaks["once"]:.0f} MB once, {peaks["ten times"]:.0f} MB ten times over ({grown:+.1%}){"   MISSED" if bad else ""}')
    for method in ('minmax', 'entropy', 'mse', 'auto'):
        seconds, mb = process(A.onnxq, 'quantize', f'{ZOO}/ppocr_det/model.onnx', '--data', pages, '--mode', 'static', '--algorithm', 'none', '--method', method, '-o', os.path.join(tmp, 'q.onnx'), '-q')
        failed += [f'ppocr_det {method}'] * (mb > 500)
        print(f'ppocr_det quantized by {method}: {seconds:.2f} s, peak {mb:.0f} MB{"   MISSED" if mb > 500 else ""}', flush=True)
print('missed: ' + ', '.join(failed) if failed else 'all bounds are kept')
sys.exit(bool(failed))
