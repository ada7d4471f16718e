"""Copies on the hosts' own disks: a run goes on from them bit for bit, where they belong to it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax.train import checkpoints, local_copies, metrics, rl_loop, run_context, sft_loop


@pytest.fixture(autouse=True)
def own_disk(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk"))
  return tmp_path / "disk"


def state(value, devices=4):
  """A tree of arrays in the layouts that training has: split, replicated, narrow, scalars."""
  mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
  split = jax.NamedSharding(mesh, jax.P("data"))
  whole = jax.NamedSharding(mesh, jax.P())
  put = jax.device_put
  return {
    "split": put(value + jnp.arange(24.0).reshape(8, 3), split),
    "whole": put(value * jnp.ones((3, 2), jnp.bfloat16), whole),
    "step": put(jnp.int32(value), whole),
  }


@pytest.fixture
def store(tmp_path):
  found = checkpoints.Checkpoints(tmp_path / "checkpoints", architecture={})
  yield found
  found.close()


def open_copies(store, tmp_path, every=1):
  return local_copies.LocalCopies(store, tmp_path / "run", "rl", every=every)


def made(store, tmp_path):
  """A checkpoint of step 2, and copies of steps 3 and 4."""
  store.save(2, state(2), {"iterator": 2})
  store.wait()
  copies = open_copies(store, tmp_path)
  for step in (3, 4):
    assert copies.is_due(step)
    copies.save(step, state(step), {"iterator": step})
  copies.close()


def test_the_newest_copy_is_read_bit_for_bit(store, tmp_path):
  made(store, tmp_path)
  found = open_copies(store, tmp_path).newest(state(0))
  assert (found.step, found.loop) == (4, {"iterator": 4})
  for one, other in zip(jax.tree.leaves(found.tree), jax.tree.leaves(state(4)), strict=True):
    assert (one.dtype, one.sharding) == (other.dtype, other.sharding)
    np.testing.assert_array_equal(one, other)


def test_a_copy_is_of_no_use_without_its_checkpoint(store, tmp_path):
  made(store, tmp_path)
  store.save(5, state(5), {"iterator": 5})
  store.wait()
  assert open_copies(store, tmp_path).newest(state(0)) is None
  store.delete(5)
  assert open_copies(store, tmp_path).newest(state(0)) is not None
  store.delete(2)
  assert open_copies(store, tmp_path).newest(state(0)) is None
  store.save(2, state(7), {"iterator": 2})  # trained anew
  store.wait()
  assert open_copies(store, tmp_path).newest(state(0)) is None


def test_before_the_first_checkpoint_and_with_0_there_are_none(store, tmp_path, own_disk):
  assert not open_copies(store, tmp_path).is_due(1)
  made(store, tmp_path)
  off = open_copies(store, tmp_path, every=0)
  assert not off.is_due(5)
  assert off.newest(state(0)) is None


def test_only_the_last_two_are_kept(store, tmp_path, own_disk):
  made(store, tmp_path)
  copies = open_copies(store, tmp_path)
  copies.save(6, state(6), {})
  copies.close()
  assert sorted(path.stem for path in own_disk.rglob("*.safetensors")) == ["4", "6"]


def test_other_devices_take_the_checkpoint(store, tmp_path):
  made(store, tmp_path)
  assert open_copies(store, tmp_path).newest(state(0, devices=2)) is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_copy_is_not_used(store, tmp_path, own_disk, damage):
  made(store, tmp_path)
  (path,) = own_disk.rglob("4.safetensors")
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes({"flipped": content, "cut": content[:-5], "empty": b""}[damage])
  found = open_copies(store, tmp_path).newest(state(0))
  assert found is None or (damage != "flipped" and found.step == 3)


def test_a_disk_that_is_full_costs_the_copy_and_not_the_run(store, tmp_path, own_disk, capsys):
  own_disk.write_text("a file, no directory")
  made(store, tmp_path)
  assert "no copy of step 4" in capsys.readouterr().err
  assert open_copies(store, tmp_path).newest(state(0)) is None


@pytest.mark.parametrize(("stage", "loop"), [("sft", sft_loop), ("rl", rl_loop)])
def test_a_run_goes_on_from_a_copy_and_ends_as_if_it_had_not_stopped(
  data, tmp_path, monkeypatch, capsys, stage, loop
):
  every = {f"{stage}__checkpoint_every": 2, f"{stage}__copy_every": 1}
  context = nano.build(data, **{"sft__steps": 4, "rl__steps": 4, **every})
  monkeypatch.setattr(run_context, "make_run_context", lambda config, workdir, **_: context)
  if stage == "rl":
    sft_loop.train(context.config, tmp_path)
  loop.train(context.config, tmp_path)
  directory = tmp_path / "checkpoints" / stage
  whole = metrics.read(tmp_path / "metrics.jsonl")
  expected = [path.read_bytes() for path in sorted((directory / "4" / "loop").rglob("*"))]
  shutil.rmtree(directory / "4")  # as if it had been killed in step 4
  capsys.readouterr()
  loop.train(context.config, tmp_path)
  assert "going on from the copy of step 3" in capsys.readouterr().out
  assert [path.read_bytes() for path in sorted((directory / "4" / "loop").rglob("*"))] == expected
  again = metrics.read(tmp_path / "metrics.jsonl")
  assert [_without_times(line) for line in again] == [_without_times(line) for line in whole]


def _without_times(line):
  values = {k: v for k, v in line["values"].items() if not k.startswith(("perf/", "vision/"))}
  return json.dumps({**line, "values": values})
