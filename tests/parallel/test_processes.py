"""What processes tell each other through the coordinator, without their devices."""

import os
import subprocess
import sys

from jax._src.lib import _jax

from launch import local
from vr_jax.parallel import processes

SCRIPT = """
import os
import sys
import jax
import jax.numpy as jnp
import numpy as np
from vr_jax import errors
from vr_jax.parallel import processes

port, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"localhost:{port}", 2, index)
jax.devices()

@jax.jit
def long(x):
  return jax.lax.fori_loop(0, 100_000, lambda _, x: jnp.tanh(x @ x), x)

running = long(jnp.ones((300, 300)))
for number in range(3):
  found = processes.gather_numbers("numbers", np.array([10 * index + number, -1]))
  assert found.tolist() == [[number, -1], [10 + number, -1]], found
assert not running.is_ready()
print("busy", flush=True)

def make(number):
  if index != number % 2:
    raise AssertionError("only the giver makes it")
  return f"text {number}"

for number in range(40):
  assert processes.hand_over(lambda: make(number), (number % 2, 1 - number % 2)) == f"text {number}"

def fail():
  raise errors.InputError("judge: there is none")

try:
  processes.hand_over(fail, (1, 0))
except errors.InputError as error:
  print(error)
assert processes.hand_over(lambda: make(41), (1, 0)) == "text 41"
kept = processes.distributed.global_state.client.key_value_dir_get("vr_jax")
processes.gather_texts("end", "")
print("kept", len(kept))
processes.meet_to_end(20)
sys.stdout.flush()
os._exit(0)  # the loop of the device would go on
"""


def test_processes_tell_each_other_numbers_and_texts_while_their_devices_work():
  port = str(local.free_port())
  started = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, port, str(index)],
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=100) for process in started]
  assert [process.returncode for process in started] == [0, 0], said
  for out, _ in said:
    busy, problem, kept = out.splitlines()
    assert (busy, problem) == ("busy", "judge: there is none")
    assert int(kept.split()[1]) < 24  # of 45 exchanges


def test_where_the_coordinator_is_gone_a_failure_is_told_to_nobody_and_stays_the_first(monkeypatch):
  address = f"localhost:{local.free_port()}"  # where nobody listens
  client = _jax.get_distributed_runtime_client(address, 1, shutdown_on_destruction=False)
  state = processes.distributed.global_state
  monkeypatch.setattr(state, "client", client)
  monkeypatch.setattr(state, "num_processes", 2)
  processes.tell_failure("a checkpoint can't be written", 2)
  assert processes.told_failure() is None
