"""Runs a recipe in several processes on this host's CPU, as a pod of several hosts would.

    python -m launch.local --processes=2 -- --config=configs/moss_chatv.py:tiny \\
      --workdir=runs/two --mode=rl

The flags of `vr_jax.main` follow `--`. Each process has one CPU device, or `--devices` of them;
they connect over localhost. The first process that fails ends the others, and its exit code
becomes that of the launch.
"""

import argparse
from collections.abc import Sequence
import os
import socket
import subprocess
import sys
import time

POLL = 0.1  # seconds


def main(argv: Sequence[str] | None = None) -> int:
  """Starts the processes, waits, and returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m launch.local")
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
  parser.add_argument("flags", nargs="+", help="-- and the flags of vr_jax.main")
  arguments = parser.parse_args(argv)
  address = f"localhost:{free_port()}"
  flags = os.environ.get("XLA_FLAGS", "")  # of a flag that is there twice, XLA takes the last
  platform = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={arguments.devices}",
  }
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "vr_jax.main", *arguments.flags),
        *(f"--coordinator_address={address}", f"--num_processes={arguments.processes}"),
        f"--process_id={index}",
      ],
      env={**os.environ, **platform},
    )
    for index in range(arguments.processes)
  ]
  try:
    return _wait(started)
  finally:
    for process in started:
      process.kill()
      process.wait()


def _wait(started: Sequence[subprocess.Popen]) -> int:
  """Waits for all; returns 0, or the exit code of the first process that failed."""
  while True:
    codes = [process.poll() for process in started]
    failed = [code for code in codes if code]
    if failed or None not in codes:
      return failed[0] if failed else 0
    time.sleep(POLL)


def free_port() -> int:
  """A free TCP port of this host."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


if __name__ == "__main__":
  sys.exit(main())
