"""Pretrained parameters go from the host to where the mesh wants each."""

import dataclasses

import jax
import numpy as np

from tests.train import nano
from vr_jax.train import parts as parts_lib


def test_each_device_gets_its_own_part_of_the_pretrained_parameters(data, monkeypatch):
  parts = nano.build(data, mesh=(2, 2, 2))
  expected = parts.fresh_params()
  config = parts.config.copy_and_resolve_references()
  config.model.pretrained = "somewhere"
  host = jax.tree.map(np.array, expected)
  monkeypatch.setattr(parts_lib.pretrained, "load_pretrained", lambda directory: (None, host))
  actual = dataclasses.replace(parts, config=config).fresh_params()
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.sharding == e.sharding
    np.testing.assert_array_equal(a, e)
