"""SIGTERM ends every process that has it within the grace, whatever its main thread waits for."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from tests.train import nano
from vr_jax import errors
from vr_jax.parallel import preemption

GRACE = 4.0
# main.run takes the place of the stages; all else is the command.
CHILD = f"""
import sys, time
import jax
import jax.numpy as jnp
from vr_jax import errors, main
from vr_jax.parallel import preemption, processes
preemption.GRACE, preemption.WAITING = {GRACE}, 1.0
case = sys.argv.pop(1)

def work(config, workdir, mode):
  first = processes.is_first()
  print("at work", flush=True)
  if case == "outside":
    processes.first_alone("data", lambda: time.sleep(100))
  with preemption.stops_between_steps():
    if case == "endless program":
      jax.lax.while_loop(lambda x: x < 2, lambda x: jnp.sin(x), jnp.ones(())).block_until_ready()
    for step in range(1, 1000):
      time.sleep(100 if case == "long step" and not first else 0.05)
      processes.all_max(step)
      if preemption.stops_after():
        raise errors.Preempted(f"saved at step {{step}}")

main.run = work
sys.exit(main.cli())
"""


def run(tmp_path, case: str, count: int, signalled) -> tuple[list[int], list[str], float]:
  """Sends SIGTERM to some processes; returns exit codes, what they said, and seconds after it."""
  address = f"localhost:{local.free_port()}"
  together = [f"--coordinator_address={address}", f"--num_processes={count}"] * (count > 1)
  words = ["vr-jax", "--config=moss_chatv:tiny", f"--workdir={tmp_path}", *together]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", CHILD, case, *words[1:], *[f"--process_id={index}"] * (count > 1)],
      cwd=nano.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  for each in started:
    assert each.stdout is not None
    assert each.stdout.readline() == "at work\n"
  time.sleep(1.5)
  began = time.monotonic()
  for index in signalled:
    started[index].send_signal(signal.SIGTERM)
  said = [each.communicate(timeout=60)[1] for each in started]
  return [each.returncode for each in started], said, time.monotonic() - began


@pytest.mark.parametrize(
  ("case", "count"), [("endless program", 1), ("long step", 2), ("outside", 2)]
)
def test_a_step_longer_than_the_grace_ends_with_the_code_of_a_preemption(tmp_path, case, count):
  codes, said, seconds = run(tmp_path, case, count, range(count))
  assert codes == [75] * count, said
  line = "all that was complete is kept" if case == "outside" else "no step ended within 4 s"
  for each in said:
    (own,) = [one for one in each.splitlines() if one.startswith("vr-jax: ")]
    assert own.startswith(f"vr-jax: SIGTERM: {line}; the same command goes on")
    assert "Traceback" not in each
  assert seconds < GRACE + 5


@pytest.mark.parametrize("index", [0, 1])
def test_all_stop_at_the_same_step_if_one_has_the_signal(tmp_path, index):
  codes, said, seconds = run(tmp_path, "steps", 2, [index])
  assert codes == [75, 75], said
  lines = [one for each in said for one in each.splitlines() if one.startswith("vr-jax: ")]
  assert len(lines) == 2 and len({*lines}) == 1
  assert "vr-jax: SIGTERM: saved at step " in lines[0]
  assert seconds < GRACE + 5


def test_machines_that_give_more_time_can_say_so(monkeypatch):
  monkeypatch.delenv(preemption.VARIABLE, raising=False)
  assert preemption.read_grace() == preemption.GRACE
  monkeypatch.setenv(preemption.VARIABLE, "55")
  assert preemption.read_grace() == 55
  for bad in ("soon", "0", "-1", "nan", "inf"):
    monkeypatch.setenv(preemption.VARIABLE, bad)
    with pytest.raises(errors.InputError, match=r"^VR_JAX_GRACE="):
      preemption.read_grace()
