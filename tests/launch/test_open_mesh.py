"""The meshes of released sizes on slices with more devices than a step has prompts."""

import jax
import pytest

from launch import topology
from tests.train import nano
from vr_jax.train import model_setup


@pytest.mark.parametrize(
  ("recipe", "size", "name", "mesh"),
  [
    ("moss_chatv", "3b", "v6e-8", (1, 8, 1, 1)),
    ("moss_chatv", "7b", "v6e-32", (1, 16, 2, 1)),
    ("videop2r", "3b", "v5e-16", (1, 8, 2, 1)),
    ("videop2r", "72b", "v5p-256", (1, 8, 2, 8)),
    ("video_mtr", "72b", "v5p-256", (1, 16, 1, 8)),
  ],
)
def test_a_released_size_puts_devices_beyond_its_prompts_on_sequence(recipe, size, name, mesh):
  config = nano.recipe(size, f"configs/{recipe}.py")
  assert model_setup.mesh_shape(config, topology.find(name).devices) == mesh


def test_every_host_finds_the_same_mesh_where_prompts_are_split(monkeypatch):
  """Of three hosts with four chips, six chips for a prompt would split the second alone."""
  config = nano.config(rl__batch_size=2, sft__steps=0, eval__batch_size=12, mesh=(1, -1, -1, 1))
  config.model.prefix_buckets = (96,)
  where = topology.find("v5p:2x2x3")
  for process in range(3):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    assert model_setup.mesh_shape(config, where.devices) == (1, 1, 12, 1)
