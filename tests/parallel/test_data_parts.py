"""Sums over a batch that are exchanged once."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.parallel import data_parts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rl import update


def _gradients(params, rows):
  def loss(params, row):
    hidden = jnp.tanh(row["x"] @ params["first"]) @ params["second"]
    return (row["weight"] * hidden.sum(axis=-1)).sum(), {"rows": jnp.int32(row["x"].shape[0])}

  return update.accumulated_gradients(loss, params, rows)


def _inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  rows = {"x": draw(3, 8, 16), "weight": draw(3, 8)}
  return {"first": draw(16, 600), "second": draw(600, 600)}, rows


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 1, 2), (4, 1, 2, 1)])
def test_sums_of_parts_are_those_of_the_whole_batch_in_one_exchange_of_each_large_array(shape):
  mesh = mesh_lib.make_mesh(shape)
  layout = data_parts.layout_of_part(mesh_lib.MeshLayout(mesh))
  params, rows = _inputs()
  expected = _gradients(params, rows)
  by_rows = jax.sharding.NamedSharding(mesh, jax.P(None, ("data", "fsdp")))
  rows = jax.tree.map(lambda x: jax.device_put(x, by_rows), rows)
  params = jax.device_put(params, mesh_lib.replicated(mesh))
  summed = jax.jit(lambda params, rows: data_parts.sum_of_parts(_gradients, params, rows, layout))
  (value, counts, gradients) = summed(params, rows)
  assert int(counts["rows"]) == 24
  np.testing.assert_allclose(value, expected[0], rtol=2e-5, atol=1e-4)
  for name, gradient in gradients.items():
    np.testing.assert_allclose(gradient, expected[2][name], rtol=2e-5, atol=1e-4, err_msg=name)
  text = summed.lower(params, rows).compile().as_text()
  if shape == (8, 1, 1, 1):
    # The large array, and the small ones as one; XLA knows the sum of the number of rows.
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 2


def test_parts_pay_where_data_crosses_slices_processes_or_cpu_devices():
  def pay(shape, places, platform):
    devices = np.empty(len(places), object)
    for index, place in enumerate(places):
      devices[index] = types.SimpleNamespace(
        platform=platform, slice_index=place, process_index=index if platform == "tpu" else place
      )
    return data_parts.pay(devices.reshape(shape))

  assert pay((2, 2, 1, 1), (0, 0, 1, 1), "tpu")
  assert not pay((2, 2, 1, 1), (0, 0, 0, 0), "tpu")
  assert pay((4, 1, 1, 1), (0, 1, 2, 3), "cpu")
  assert not pay((1, 4, 1, 1), (0, 1, 2, 3), "cpu")
  assert pay((2, 1, 1, 1), (0, 1), "gpu")
  assert data_parts.pay(mesh_lib.make_mesh((8, 1, 1, 1)).devices)
  assert not data_parts.pay(mesh_lib.make_mesh((1, 8, 1, 1)).devices)
