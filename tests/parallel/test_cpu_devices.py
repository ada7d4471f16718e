"""The number of devices that JAX makes of a CPU."""

import os
import subprocess
import sys

import pytest

SPLIT = "cpu_devices.set_number(3)"
COUNT = "print(len(jax.devices()))"
FLAG = "--xla_force_host_platform_device_count=2"


@pytest.mark.parametrize(
  ("flags", "lines", "devices"),
  [
    ("", (SPLIT, COUNT), "3"),
    (FLAG, (SPLIT, COUNT), "2"),
    ("", ("jax.config.update('jax_num_cpu_devices', 4)", SPLIT, COUNT), "4"),
    ("", ("jax.devices()", SPLIT, COUNT), "1"),
    ("", ("cpu_devices.set_number(0)", COUNT), "1"),
    (
      "",
      ("from vr_jax.parallel import preemption", f"with preemption.noticed(): {SPLIT}; {COUNT}"),
      "3",
    ),
  ],
  ids=[
    *("it is split", "XLA_FLAGS say", "JAX's config says", "JAX has started", "as JAX says"),
    "as the command line does it",
  ],
)
def test_a_cpu_counts_as_as_many_devices_as_a_config_says_unless_that_is_settled(
  flags, lines, devices
):
  code = "\n".join(("import jax", "from vr_jax.parallel import cpu_devices", *lines))
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == [devices]
