"""What calibration on many workers costs: measures the figures on this machine,
works out the cost model of docs/distributed.md, and simulates the same run task
by task to check the model.

    python3 scale.py measure --onnxq ../../bin/onnxq --model m.onnx --data samples -o figures.json
    python3 scale.py simulate figures.json...

Needs nothing but Python. Times are processor seconds of one thread.
"""

import argparse
import heapq
import json
import math
import os
import pathlib
import random
import resource
import subprocess
import tempfile

# The bounds of a table's file; see calibration/table.go.
TABLE_BYTES = 1 << 30
TABLE_SAMPLES = 1 << 24
RANGES = 4096  # samples whose range each value keeps

# What a cluster gives, for lack of one to measure: seconds until a worker's
# container runs, bytes a second from storage to one worker and to all together.
CONTAINER, LINK, STORAGE = 20.0, 100e6, 10e9
FAN_IN = 32  # tables that one merge takes
TASKS = 8  # for each worker, so that the last ones to end do not matter much
SPREAD, SLOW, SLOWER = 0.15, 0.01, 3.0  # of the time of a task: sigma, and a share of tasks by a factor


def cpu(*command):
    """Runs a command and returns its processor time: the least of three."""
    best = math.inf
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def measure(a):
    """Returns the figures of a model with its samples."""
    data = pathlib.Path(a.data)
    sizes = [f.stat().st_size for f in data.rglob("*") if f.is_file()]
    few, many = 2, max(16, min(a.samples, len(sizes)))
    with tempfile.TemporaryDirectory() as folder:
        table = lambda name: os.path.join(folder, name)

        def calibrate(out, *flags):
            return cpu(a.onnxq, "calibrate", a.model, "-o", table(out), "--threads", 1, "--quiet", "--holdout", 0, *flags)

        def load(name):
            with open(table(name)) as f:
                return json.load(f)

        # The same samples under two numbers of them: what is not per sample is start-up.
        copies = max(1, math.ceil(many / len(sizes)))
        repeat = ["--data", a.data] * copies
        short, long = calibrate("few.json", "--samples", few, *repeat), calibrate("many.json", "--samples", many, *repeat)
        sample = (long - short) / (many - few)
        names = len(load("many.json")["values"])
        shards = 8
        for i in range(shards):
            calibrate(f"{i}.json", "--samples", many, "--shard", f"{i}/{shards}", *repeat)
        parts = [table(f"{i}.json") for i in range(shards)]
        whole = cpu(a.onnxq, "calibrate", "merge", *parts, "-o", table("m.json"), "--quiet")
        one = cpu(a.onnxq, "calibrate", "merge", parts[0], "-o", table("m.json"), "--quiet", "--partial")
        mean = sum(os.path.getsize(p) for p in parts) / shards
        # What tables of many samples hold besides: grow one without running the model.
        size, seconds = [], []
        for samples in 1, RANGES + 1, RANGES + 400_001:
            grown = table("grown.json")
            pathlib.Path(grown).write_text(grow(load("0.json"), samples))
            size.append(os.path.getsize(grown))
            seconds.append(cpu(a.onnxq, "calibrate", "merge", grown, "-o", table("m.json"), "--quiet"))
        return {
            "name": pathlib.Path(a.model).parent.name,
            "values": names,
            "model_bytes": os.path.getsize(a.model),
            "sample_bytes": sum(sizes) / len(sizes),
            "start_seconds": max(0.0, short - few * sample),
            "sample_seconds": sample,
            "table_bytes": os.path.getsize(table("many.json")),
            "table_bytes_per_range": (size[1] - size[0]) / RANGES,
            "table_bytes_per_sample": (size[2] - size[1]) / 400_000,
            "merge_seconds_per_table": max(0.0, (whole - one) / (shards - 1)),
            "merge_seconds_per_range": max(0.0, (seconds[1] - seconds[0]) / RANGES),
            "merge_seconds_per_sample": max(0.0, (seconds[2] - seconds[1]) / 400_000),
            "part_bytes": mean,
        }


def grow(table, samples):
    """Returns a table's file with made-up entries of so many samples in the place of its own."""
    import base64
    import struct

    total = samples
    table["samples"] = f"0-{samples - 1}" if samples > 1 else "0"
    table["digests"] = base64.b64encode(b"\1" * 8 * samples).rstrip(b"=").decode()
    table["total"], table["shards"], table["have"] = total, 1, "0"
    table.pop("unseen", None), table.pop("measured", None), table.pop("skipped", None)
    lines = []
    for name, v in table["values"].items():
        if "samples" in v:
            low = v["min"]
            v["samples"] = base64.b64encode(b"".join(b"\0" + struct.pack("<ff", low, low) for _ in range(min(samples, RANGES)))).rstrip(b"=").decode()
        lines.append(json.dumps(name) + ":" + json.dumps(v))
    head = {k: v for k, v in table.items() if k != "values"}
    return json.dumps(head)[:-1] + ',"values":{' + ",\n".join(lines) + "}}"


def table_bytes(f, samples):
    return f["table_bytes"] + samples * f["table_bytes_per_sample"] + min(samples, RANGES) * f["table_bytes_per_range"]


def merge_seconds(f, sizes):
    """Returns what one merge takes of tables that hold so many samples each."""
    return sum(f["merge_seconds_per_table"] + n * f["merge_seconds_per_sample"] + min(n, RANGES) * f["merge_seconds_per_range"] for n in sizes)


def breaks(f, samples):
    """Returns what does not work any more with so many samples, or ''."""
    if table_bytes(f, samples) > TABLE_BYTES:
        return f"the table: {table_bytes(f, samples) / 2**30:.1f} GiB of 1"
    if samples > TABLE_SAMPLES:
        return "the list of samples"
    return ""


def model(f, workers, samples):
    """Returns the parts of the time by the formulas of the page."""
    tasks = min(samples, workers * TASKS)
    each = samples / tasks
    link = min(LINK, STORAGE / workers)
    start = CONTAINER + f["start_seconds"] + f["model_bytes"] / link
    # On average, and for the last worker the rest of a task.
    task = (each * (f["sample_seconds"] + f["sample_bytes"] / link)) * (1 + SLOW * (SLOWER - 1)) * math.exp(SPREAD**2 / 2)
    # Slow tasks that begin late are what one waits for at the end.
    run = task * tasks / workers + task * (SLOWER - 1 if workers * SLOW >= 0.5 else 0.5)
    merge, left, per = 0.0, tasks, each
    while left > 1:
        n = min(FAN_IN, left)
        merge += n * (merge_seconds(f, [per]) + table_bytes(f, per) / link)
        per *= n
        left = math.ceil(left / n)
    return start, run, merge


def simulate(f, workers, samples, seed=1):
    """Runs the job task by task and returns the same parts."""
    r = random.Random(seed)
    tasks = min(samples, workers * TASKS)
    link = min(LINK, STORAGE / workers)
    ready = [CONTAINER * r.uniform(0.7, 1.3) + f["start_seconds"] + f["model_bytes"] / link for _ in range(workers)]
    start = sum(ready) / workers
    heapq.heapify(ready)
    done = []
    at = 0
    for i in range(tasks):
        until = samples * (i + 1) // tasks
        n, at = until - at, until
        factor = math.exp(r.gauss(0, SPREAD)) * (SLOWER if r.random() < SLOW else 1)
        end = heapq.heappop(ready) + n * (f["sample_seconds"] + f["sample_bytes"] / link) * factor
        heapq.heappush(ready, end)
        done.append((end, n))
    last = max(done)[0]
    free = ready  # merges run on the same workers, as soon as enough tables are there
    level = sorted(done)
    while len(level) > 1:
        above = []
        for i in range(0, len(level), FAN_IN):
            group = level[i : i + FAN_IN]
            n = sum(g[1] for g in group)
            begin = max(heapq.heappop(free), max(g[0] for g in group))
            end = begin + merge_seconds(f, [g[1] for g in group]) + sum(table_bytes(f, g[1]) for g in group) / link
            heapq.heappush(free, end)
            above.append((end, n))
        level = sorted(above)
    return start, last - start, level[0][0] - last


def show(path):
    with open(path) as file:
        f = json.load(file)
    print(f"\n{f['name']}: {f['values']} values, model {f['model_bytes'] / 1e6:.1f} MB, sample {f['sample_bytes'] / 1e3:.0f} kB, "
          f"start {f['start_seconds']:.2f} s, {1e3 * f['sample_seconds']:.1f} ms a sample, table {f['table_bytes'] / 1e6:.2f} MB and "
          f"{f['table_bytes_per_sample']:.1f} B a sample and {f['table_bytes_per_range']:.0f} B for each of the last {RANGES}; merge {1e3 * f['merge_seconds_per_table']:.0f} ms a table, "
          f"{1e6 * f['merge_seconds_per_sample']:.2f} µs a sample and {1e6 * f['merge_seconds_per_range']:.1f} µs for each of the last {RANGES}")
    most = min(TABLE_SAMPLES, int((TABLE_BYTES - table_bytes(f, RANGES)) / f["table_bytes_per_sample"]) + RANGES)
    print(f"the table is full at {most:,} samples")
    print("| samples | workers | start s | samples s | merge s | model s | simulated s | bytes to a worker | of the tables | breaks |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for samples in 10_000, 100_000, 1_000_000, 10_000_000:
        for workers in 1, 10, 100, 1000:
            a, b = model(f, workers, samples), simulate(f, workers, samples)
            worst = max(worst, abs(sum(a) / sum(b) - 1))
            tasks = min(samples, workers * TASKS)
            moved = f["model_bytes"] + samples / workers * f["sample_bytes"]
            tables = tasks * table_bytes(f, samples // tasks)
            print(f"| {samples:,} | {workers:,} | {a[0]:.0f} | {a[1]:,.0f} | {a[2]:,.1f} | {sum(a):,.0f} | {sum(b):,.0f} | {moved / 1e6:,.0f} MB | {tables / 1e6:,.0f} MB | {breaks(f, samples)} |")
    print(f"model and simulation differ by {100 * worst:.0f} % at most")
    return worst


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    m = sub.add_parser("measure", help="measure the figures of a model")
    m.add_argument("--onnxq", default="onnxq")
    m.add_argument("--model", required=True)
    m.add_argument("--data", required=True)
    m.add_argument("--samples", type=int, default=64, help="how many to run")
    m.add_argument("-o", dest="out", required=True)
    s = sub.add_parser("simulate", help="hold the model against the simulation")
    s.add_argument("figures", nargs="+")
    s.add_argument("--within", type=float, help="fail if they differ by more than this share")
    a = p.parse_args()
    if a.command == "measure":
        with open(a.out, "w") as f:
            json.dump(measure(a), f, indent=1)
            f.write("\n")
        return
    worst = max(show(path) for path in a.figures)
    if a.within is not None and worst > a.within:
        raise SystemExit(f"the cost model is off by {100 * worst:.0f} %, {100 * a.within:.0f} % are allowed")


if __name__ == "__main__":
    main()
