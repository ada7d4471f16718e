"""Pretrained parameters are loaded from their files with the shardings of the mesh."""

import dataclasses

import jax
import numpy as np

from tests.train import nano
from vr_jax.models import qwen2_5_vl
from vr_jax.train import initialization


def test_each_device_gets_its_own_part_of_the_pretrained_parameters(data, tmp_path):
  context = nano.build(data, mesh=(2, 2, 1, 2))
  expected = initialization.fresh_params(context)
  qwen2_5_vl.save_pretrained(expected, tmp_path / "model", config=context.model)
  config = context.config.copy_and_resolve_references()
  config.model.pretrained = str(tmp_path / "model")
  actual = initialization.fresh_params(dataclasses.replace(context, config=config))
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.sharding == e.sharding
    np.testing.assert_array_equal(a, e)
