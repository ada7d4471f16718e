"""bfloat16 weights of a stack of layers on a CPU: not all of them as float32 at once."""

import os
import subprocess
import sys

import pytest

CALL = "cpu_memory.keep_narrow_weights()"
COMPILE = """
def layer(h, index):
  return jnp.tanh(weights[index].astype(jnp.float32) @ h), None

def network(weights_, h):
  global weights
  weights = weights_
  return jax.lax.scan(layer, h, jnp.arange(16))[0]

arguments = jax.ShapeDtypeStruct((16, 64, 64), jnp.bfloat16), jax.ShapeDtypeStruct((64,), "float32")
print(jax.jit(network).lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
"""
LAYER = 64 * 64 * 4  # bytes in float32
OTHER = "--xla_disable_hlo_passes=convert-mover"


@pytest.mark.parametrize(
  ("flags", "lines", "layers"),
  [
    ("", (CALL, COMPILE), 1),
    ("--xla_force_host_platform_device_count=2", (CALL, COMPILE), 1),
    ("", (COMPILE,), 16),
    (OTHER, (CALL, COMPILE), 16),
    ("", ("jax.devices()", CALL, "assert not os.environ['XLA_FLAGS']", COMPILE), 16),
    ("", ("jax.config.update('jax_platforms', 'cpu,cuda')", CALL, COMPILE), 16),
  ],
  ids=["kept", "beside others", "as XLA does", "flags say", "JAX has started", "an accelerator"],
)
def test_one_layer_is_widened_at_a_time_where_the_cpu_is_all_there_is(flags, lines, layers):
  head = ("import os, jax, jax.numpy as jnp", "from vr_jax.parallel import cpu_memory")
  done = subprocess.run(
    [sys.executable, "-c", "\n".join((*head, *lines))],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert layers * LAYER <= int(done.stdout) < (layers + 1.5) * LAYER
