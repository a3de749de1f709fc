"""Two executors, one of which is killed while it runs tasks: the table is that
of one process. Needs the binary as ONNXQ, and Java 17 or later."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))

import pyspark
from pyspark.sql import SparkSession

import calibrate

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ONNXQ", str(ROOT / "bin" / "onnxq"))
SHARDS = 12


def executors(app):
    """Returns the processes of an application's executors."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "CoarseGrainedExecutorBackend" in command and app in command:
                found.append(int(entry.name))
    return sorted(found)


def main():
    os.environ["SPARK_HOME"] = os.path.dirname(pyspark.__file__)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    model, data = str(ROOT / "models/digits/model.onnx"), str(ROOT / "models/digits/calib")
    with tempfile.TemporaryDirectory() as folder:
        want = pathlib.Path(folder, "want.json")
        subprocess.run([BINARY, "calibrate", model, "-o", want, "--data", data, "--quiet"], check=True)
        slow = pathlib.Path(folder, "slow")
        log = pathlib.Path(folder, "log")
        slow.write_text(f"#!/bin/sh\n[ $2 = merge ] || {{ echo $8 >>{shlex.quote(str(log))}; sleep 1; }}\nexec {shlex.quote(BINARY)} \"$@\"\n")
        slow.chmod(0o755)
        spark = (
            SparkSession.builder.master("local-cluster[2,1,1024]")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.executorEnv.PYTHONPATH", os.environ["PYTHONPATH"])
            .getOrCreate()
        )
        killed = []

        def kill():
            """Kills an executor once a third of the shards have begun."""
            app = spark.sparkContext.applicationId
            while not log.exists() or len(log.read_text().split()) < SHARDS // 3:
                time.sleep(0.1)
            killed.append(executors(app)[0])
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        try:
            killer.start()
            got = calibrate.table(spark, str(slow), model, [data], SHARDS, ["--quiet"])
            killer.join(10)
            broken = str(pathlib.Path(folder, "none"))
            try:
                calibrate.table(spark, BINARY, model, [broken], 2)
                raise SystemExit("missing samples are no error")
            except Exception as e:  # what Spark makes of the task's error
                if broken not in str(e):
                    raise
        finally:
            spark.stop()
        runs = log.read_text().split()
        if got != want.read_bytes():
            raise SystemExit("Spark's table differs from that of one process")
        if not killed or len(runs) <= SHARDS:
            raise SystemExit(f"no task ran again: {len(runs)} runs of {SHARDS} shards, killed {killed}")
        print(f"ok: {SHARDS} shards in {len(runs)} runs, executor {killed[0]} killed, the table is that of one process")


if __name__ == "__main__":
    main()
