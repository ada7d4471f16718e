"""Processes that are about to run different programs say so, instead of waiting for each other."""

import os
import subprocess
import sys

import pytest

from launch import local

SCRIPT = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from vr_jax import errors
from vr_jax.parallel import processes, same_programs

port, index, case = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
jax.devices()  # starts the backend, in which all processes take part
same_programs._WAIT = 2
exchanges = []
gather, processes.gather_texts = processes.gather_texts, lambda kind, text, **options: (
  exchanges.append(text) or gather(kind, text, **options)
)
sharding = jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P())
ones = lambda size: jax.make_array_from_process_local_data(sharding, np.ones(size, np.float32))
factor = 2 + index if case == "another constant" else 2

@same_programs.compared
@jax.jit
def double(x):
  return factor * x

@same_programs.compared
@jax.jit
def add(x):
  return x + 1

try:
  if case == "another function" and index:
    add(ones(3))
  if index:  # as a judge runs on one host
    assert float(double(jnp.ones(7))[0]) == factor
  if case == "another exchange" and index:
    processes.gather_texts("checksums", "")
  if not (case == "one stays away" and index):
    for size in (3, 3, 5, 3, 5):
      assert float(double(ones(size)).addressable_data(0)[0]) == 2
    jax.jit(lambda x: double(x) + double(2 * x))(ones(3))
    assert double.lower(ones(3)).as_text()
  print("exchanges", len(exchanges))
except (errors.InputError, jax.errors.JaxRuntimeError) as error:
  print(error)
processes.distributed.global_state.client.wait_at_barrier("end", 50_000)
"""
SAYS = {
  "the same": ("exchanges 2", "exchanges 2"),
  "another constant": ("(process 1): has made another program of double than",) * 2,
  "another function": ("(process 1): is about to run add, but",) * 2,
  "one stays away": ("timed out", "exchanges 0"),
  "another exchange": (
    "process 1 is at its exchange about checksums, but process 0 at one about programs",
    "process 0 is at its exchange about programs, but process 1 at one about checksums",
  ),
}


@pytest.mark.parametrize("case", SAYS)
def test_programs_are_compared_once_before_they_run(case):
  port = str(local.free_port())
  started = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, port, str(index), case],
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},  # one device a process
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=60)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0]
  for line, expected in zip(said, SAYS[case], strict=True):
    assert expected in line
