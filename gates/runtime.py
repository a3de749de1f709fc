"""What the scripts of this folder have in common: sessions of ONNX Runtime, their speed, and the evaluation's metric."""
import json, subprocess, sys, time
import numpy as np, onnxruntime as ort


def session(path, opt=None, save=None, threads=1):
    so = ort.SessionOptions()
    so.intra_op_num_threads = threads
    so.log_severity_level = 4
    if save:
        so.optimized_model_filepath = save
    if opt is not None:
        so.graph_optimization_level = opt
    return ort.InferenceSession(path, so, providers=['CPUExecutionProvider'])


def speed(src, path, feeds, pairs):
    """how many times as fast as src the model in path runs on one thread: the median of interleaved pairs of processor time"""
    a, b = session(src), session(path)
    def once(s): # of the one thread, whatever else the machine does
        fs = [{i.name: f[i.name] for i in s.get_inputs()} for f in feeds]
        t = time.thread_time()
        for f in fs: s.run(None, f)
        return time.thread_time() - t
    reps = max(1, int(.04 / max(once(a), 1e-6)))
    once(b)
    return float(np.median([sum(once(a) for _ in range(reps)) / sum(once(b) for _ in range(reps)) for _ in range(pairs)]))


def metric(zoo, name, path=None):
    """the task's metric of the model in path, or of the model of that name"""
    r = subprocess.run([sys.executable, f'{zoo}/eval.py', name, *([path] if path else [])], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f'eval.py {name}: {(r.stderr.strip().splitlines() or ["no message"])[-1][:200]}')
    return json.loads(r.stdout.strip().splitlines()[-1])
