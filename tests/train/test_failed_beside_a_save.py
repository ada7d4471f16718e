"""An error of one process ends it in time, also while a checkpoint needs the other processes."""

import os
import signal
import subprocess
import sys

from launch import local
from tests.train import nano

CHILD = """
import os, pathlib, signal, sys
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vr_jax import errors, main
from vr_jax.parallel import processes
from vr_jax.train import checkpoints
checkpoints.PATIENCE = 2.0

def work(config, workdir, mode):
  sharding = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec("x"))
  params = jax.make_array_from_callback((2,), sharding, lambda index: jnp.zeros(2)[index])
  store = checkpoints.Checkpoints(pathlib.Path(sys.argv[1]), architecture={})
  if not processes.is_first():
    # Its save has begun: from here on its part is missing.
    checkpoints.checksums.ChecksumWriter.begin = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
  with store.closing():
    store.save(1, {"params": params}, {})
    raise errors.InputError("metrics.jsonl: No space left on device")

main.run = work
sys.exit(main.cli(["vr-jax", *sys.argv[2:]]))
"""


def test_a_process_that_fails_does_not_wait_for_a_save_that_needs_another(tmp_path):
  address = f"localhost:{local.free_port()}"
  words = [
    *(str(tmp_path / "checkpoints"), "--config=grpo:tiny", f"--workdir={tmp_path}"),
    *(f"--coordinator_address={address}", "--num_processes=2"),
  ]
  first, second = (
    subprocess.Popen(
      [sys.executable, "-c", CHILD, *words, f"--process_id={index}"],
      cwd=nano.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  )
  try:
    said = first.communicate(timeout=100)[1]
  finally:
    for each in (first, second):
      each.send_signal(signal.SIGKILL)
      each.wait()
  assert first.returncode == 2, said
  assert [line for line in said.splitlines() if line.startswith("vr-jax: ")] == [
    "vr-jax: metrics.jsonl: No space left on device"
  ]
