"""Calibration in a Beam pipeline on prism beside the plain command: the same
table, and how much longer it takes. Runs alternate, and medians are compared.

    python3 gates/beam.py --onnxq bin/onnxq --beam bin/onnxq-beam --model m.onnx --data samples
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time


def run(command):
    """Runs a command and returns its wall and processor time in seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stderr}")
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--onnxq", default="bin/onnxq")
    p.add_argument("--beam", default="bin/onnxq-beam")
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--samples", type=int, default=1000, help="the samples of --data are repeated to as many")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--most", type=float, default=1.3, help="the ratio of times that is allowed")
    a = p.parse_args()
    entries = sorted(e for e in pathlib.Path(a.data).resolve().iterdir() if not e.name.startswith("."))
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder, "data")
        data.mkdir()
        for i in range(a.samples):
            e = entries[i % len(entries)]
            os.symlink(e, data / f"{i:06d}{e.suffix}")
        tables = [pathlib.Path(folder, name) for name in ("plain.json", "beam.json")]
        commands = [
            [a.onnxq, "calibrate", a.model, "-o", tables[0], "--data", data, "--quiet"],
            [a.beam, "calibrate", "--model", a.model, "-o", tables[1], "--data", data],
        ]
        times = [[], []]
        for _ in range(a.runs):
            for k, command in enumerate(commands):
                times[k].append(run(command))
        if tables[0].read_bytes() != tables[1].read_bytes():
            raise SystemExit("the tables differ")
    wall, cpu = ([statistics.median(t[kind] for t in times[k]) for k in range(2)] for kind in range(2))
    print(f"{pathlib.Path(a.model).parent.name}: {a.samples} samples, plain {wall[0]:.2f} s, prism {wall[1]:.2f} s: {wall[1] / wall[0]:.2f} times; "
          f"processor time {cpu[0]:.2f} s and {cpu[1]:.2f} s: {cpu[1] / cpu[0]:.2f} times")
    if cpu[1] > a.most * cpu[0]:
        raise SystemExit(f"prism takes more than {a.most} times the plain command")


if __name__ == "__main__":
    main()
