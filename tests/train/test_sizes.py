"""Every size of the recipe can start on the devices that people have."""

import jax
import pytest

from tests.train import nano
from vr_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize("size", ["tiny", "3b", "7b"])
@pytest.mark.parametrize("devices", [1, 4, 8, 16])
def test_batches_of_every_size_divide_over_one_to_sixteen_devices(size, devices):
  config = nano.recipe(size)
  sizes = [devices if axis == -1 else axis for axis in config.mesh]
  mesh = jax.sharding.AbstractMesh(tuple(sizes), mesh_lib.AXES)
  for section, prompts in (("sft", "batch"), ("rl", "prompts"), ("eval", "batch")):
    part = config[section]
    parts = part.get("microbatches", 1)
    mesh_lib.check_batch(part[prompts], mesh, f"config.{section}.{prompts}", parts=parts)
