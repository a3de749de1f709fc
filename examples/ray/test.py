"""Ray's table is that of one process, also when a worker dies in a task. Needs
the binary as ONNXQ."""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(__file__))

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process leaves no token behind

import ray

import calibrate

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ONNXQ", str(ROOT / "bin" / "onnxq"))
SHARDS = 10


def main():
    model, data = str(ROOT / "models/digits/model.onnx"), str(ROOT / "models/digits/calib")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}})
    with tempfile.TemporaryDirectory() as folder:
        want = pathlib.Path(folder, "want.json")
        subprocess.run([BINARY, "calibrate", model, "-o", want, "--data", data, "--quiet"], check=True)
        # The first run of one shard takes its worker with it.
        once = pathlib.Path(folder, "once")
        died = pathlib.Path(folder, "died")
        once.write_text(
            f"#!/bin/sh\nif [ \"$7\" = --shard ] && [ \"$8\" = 4/{SHARDS} ] && mkdir {shlex.quote(str(died))} 2>/dev/null; then kill -9 $PPID; fi\n"
            f"exec {shlex.quote(BINARY)} \"$@\"\n"
        )
        once.chmod(0o755)
        got = calibrate.table(str(once), model, [data], SHARDS, ["--quiet"], fan_in=3)
        if got != want.read_bytes():
            raise SystemExit("Ray's table differs from that of one process")
        if not died.exists():
            raise SystemExit("no worker died")
        missing = str(pathlib.Path(folder, "none"))
        try:
            calibrate.table(BINARY, model, [missing], 2)
            raise SystemExit("missing samples are no error")
        except ray.exceptions.RayTaskError as e:
            if missing not in str(e):
                raise
    ray.shutdown()
    print(f"ok: {SHARDS} shards, one of them run again, the table is that of one process")


if __name__ == "__main__":
    main()
