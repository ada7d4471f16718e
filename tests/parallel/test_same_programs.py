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
from vr_jax import errors
from vr_jax.parallel import processes, same_programs

port, index, case = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
jax.devices()  # starts the backend, in which all processes take part
processes.WAIT = 2
exchanges = []
gather, processes.gather_texts = processes.gather_texts, lambda text: (
  exchanges.append(text) or gather(text)
)
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
    add(jnp.ones(3))
  if not (case == "one stays away" and index):
    for size in (3, 3, 5, 3, 5):
      assert float(double(jnp.ones(size))[0]) == 2
    jax.jit(lambda x: double(x) + double(2 * x))(jnp.ones(3))
    assert double.lower(jnp.ones(3)).as_text()
  print("exchanges", len(exchanges))
except errors.InputError as error:
  print(error)
processes.distributed.global_state.client.wait_at_barrier("end", 50_000)
"""
SAYS = {
  "the same": ("exchanges 2", "exchanges 2"),
  "another constant": ("(process 1): has made another program of double than",) * 2,
  "another function": ("(process 1): is about to run add, but",) * 2,
  "one stays away": ("is about to run double, but not all other processes came", "exchanges 0"),
}


@pytest.mark.parametrize("case", SAYS)
def test_programs_are_compared_once_before_they_run(case):
  port = str(local.free_port())
  started = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, port, str(index), case],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=60)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0]
  for line, expected in zip(said, SAYS[case], strict=True):
    assert expected in line
