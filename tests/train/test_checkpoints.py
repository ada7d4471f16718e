"""Checkpoints: saved state is restored, and errors name the checkpoint that can't be read."""

import errno
import json
import os
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax import atomic, errors, main
from vr_jax.parallel import processes
from vr_jax.train import checkpoints as checkpoints_lib

ARCHITECTURE = {"text.hidden_size": 32, "text.mrope_section": (2, 1, 1)}


def _tree(seed=0.0):
  return {
    "params": {"a": jnp.arange(6.0).reshape(2, 3) + seed, "b": jnp.full(5, float(seed))},
    "step": jnp.int32(7),
  }


def _open(directory, **architecture):
  return checkpoints_lib.Checkpoints(
    directory,
    architecture={**ARCHITECTURE, **{k.replace("__", "."): v for k, v in architecture.items()}},
  )


@pytest.fixture
def saved(tmp_path):
  store = _open(tmp_path / "sft")
  for step in (2, 4):
    store.save(step, _tree(step), {"iterator": {"next": step}})
  store.close()
  return tmp_path / "sft"


def _assert_equal(actual, expected):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, e)
    assert a.dtype == e.dtype


def test_the_last_checkpoint_is_read_as_it_was_saved(saved):
  store = _open(saved)
  restored = store.restore(_tree())
  assert restored.step == store.latest() == 4
  assert restored.loop["iterator"] == {"next": 4}
  _assert_equal(restored.tree, _tree(4))


def test_an_earlier_step_can_be_asked_for(saved):
  _assert_equal(_open(saved).restore(_tree(), step=2).tree, _tree(2))


def test_a_part_of_what_was_saved_can_be_read_alone(saved):
  like = {"params": {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
  tree = _open(saved).restore(like).tree
  np.testing.assert_array_equal(tree["params"]["a"], _tree(4)["params"]["a"])


def test_a_host_sums_bits_as_devices_do():
  values = jax.random.normal(jax.random.key(0), (3, 8, 6))
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  flat = {
    "float32": values,
    "bfloat16": values.astype(jnp.bfloat16),
    "number": jnp.int32(-5),
    "split": jax.device_put(values, jax.NamedSharding(mesh, jax.P(None, "a"))),
    "empty": jnp.zeros((0, 3)),
  }
  by_devices = {name: int(value) for name, value in checkpoints_lib._bit_sums(flat).items()}
  assert checkpoints_lib.sum_bits(flat) == by_devices
  assert checkpoints_lib.sum_bits(jax.device_get(flat)) == by_devices
  assert len(set(by_devices.values())) == 4  # that of `split` is that of `float32`


def test_a_store_that_was_read_can_be_written_again(saved):
  store = _open(saved)
  store.restore(_tree())
  store.save(6, _tree(6), {})
  store.close()
  _assert_equal(_open(saved).restore(_tree()).tree, _tree(6))


def test_what_is_donated_right_after_the_save_was_saved_as_it_was(tmp_path):
  @jax.jit
  def fresh():
    return {"a": jnp.arange(2_000_000.0), "b": jnp.ones((1000, 1000))}

  spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  expected = jax.tree.map(lambda x: np.array(x, copy=True), fresh())
  store = _open(tmp_path)
  tree = fresh()
  store.save(1, tree, {})
  for _ in range(5):
    tree = spoil(tree)
  jax.block_until_ready(tree)
  store.close()
  _assert_equal(_open(tmp_path).restore(fresh()).tree, expected)


def test_a_checkpoint_of_another_architecture_is_named_with_what_differs(saved):
  with pytest.raises(errors.InputError) as error:
    _open(saved, text__hidden_size=64).restore(_tree())
  assert str(saved / "4") in str(error.value)
  assert "text.hidden_size=32 there, 64 here" in str(error.value)


def test_where_there_is_no_checkpoint_the_directory_is_named(tmp_path):
  with pytest.raises(errors.InputError, match=f"{tmp_path}: holds no complete checkpoint"):
    _open(tmp_path).restore(_tree())


def _files(step: pathlib.Path) -> list[pathlib.Path]:
  """The files with arrays or the JSON part, without Orbax's marker files."""
  return sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip, pathlib.Path.unlink])
def test_damage_to_any_file_is_an_error_that_names_the_checkpoint_or_changes_nothing(
  saved, tmp_path, damage
):
  contents = {path: path.read_bytes() for path in _files(saved / "4")}
  refused = []
  for path, content in contents.items():
    damage(path)
    try:
      _assert_equal(_open(saved).restore(_tree(), step=4).tree, _tree(4))
    except errors.InputError as error:
      assert str(saved / "4") in str(error)
      assert "\n" not in str(error)
      refused.append(path.relative_to(saved).as_posix())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  assert any("/loop/" in name for name in refused)
  assert any("/state/" in name for name in refused)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_flipped_bit_in_the_numbers_of_an_array_is_noticed(tmp_path, place):
  tree = {"weights": jax.random.normal(jax.random.key(0), (200, 200)), "count": jnp.int32(1)}
  store = _open(tmp_path)
  store.save(1, tree, {})
  store.close()
  path = max(_files(tmp_path / "1"), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[int(len(content) * place)] ^= 1
  path.write_bytes(bytes(content))
  with pytest.raises(errors.InputError, match=f"{tmp_path}/1: "):
    _open(tmp_path).restore(tree)


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_one_before_stays(saved, caplog):
  store = _open(saved)
  big = {"params": {"a": jnp.arange(50_000.0)}}
  store.save(6, big, {})
  store.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  for step, size in ((7, 0), (8, 150), (9, 20_000)):
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
      with pytest.raises(errors.InputError, match=r"can't be written \(File too large") as error:
        store.save(step, big, {"more": list(range(300))})
        store.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).startswith(f"{saved}: ")
    assert "the last complete one is 6" in str(error.value)
    assert "\n" not in str(error.value)
  store.save(10, big, {})
  store.close()
  assert _open(saved).latest() == 10
  assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
  ("number", "code"),
  [(errno.ENOSPC, 2), (errno.EDQUOT, 2), (errno.EROFS, 2), (errno.EIO, 1), (errno.ESTALE, 1)],
)
def test_only_what_lasts_is_not_started_again_and_storage_that_is_gone_is_still_one_line(
  saved, monkeypatch, capsys, number, code
):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  def unreadable(_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  def fail(*_):
    with monkeypatch.context() as patch:  # as one of two processes
      patch.setattr(processes, "count_joined", lambda: 2)
      patch.setattr(processes, "tell_failure", lambda *words: told.append(words))
      store.finish_moves()

  store = _open(saved)
  (saved / "6.moving").write_text("6.partial")
  told = []
  monkeypatch.setattr(atomic, "finish_move", refuse)
  monkeypatch.setattr(atomic, "is_whole", unreadable)
  monkeypatch.setattr(main, "run", fail)
  assert main.cli(["vr-jax", "--config=grpo:tiny", f"--workdir={saved}"]) == code
  line = f"{saved}: a checkpoint can't be written ({os.strerror(number)}); the last complete one is"
  line += " unknown, from which the same command goes on"
  assert capsys.readouterr().err.splitlines() == [f"vr-jax: {line}"]
  assert told == [(line, code)]


@pytest.mark.parametrize("damage", [_truncate, _flip, pathlib.Path.unlink])
def test_a_loop_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(saved, capsys, damage):
  path = max(_files(saved / "4" / "state"), key=lambda path: path.stat().st_size)
  damage(path)
  store = _open(saved)
  store.set_damaged_aside()
  assert store.latest() == 2
  _assert_equal(store.restore(_tree()).tree, _tree(2))
  line = capsys.readouterr().err.strip()
  assert line.startswith(f"{saved / '4'}: {path.relative_to(saved / '4')} ")
  assert line.endswith("renamed to 4.damaged, to go on from the one before")
  store.save(4, _tree(4), {})
  store.close()
  again = _open(saved)
  again.set_damaged_aside()
  _assert_equal(again.restore(_tree()).tree, _tree(4))
  assert sorted(path.name for path in saved.iterdir()) == ["2", "4", "4.damaged"]


def test_a_reader_uses_the_checkpoint_before_a_damaged_one_says_so_once_and_renames_nothing(
  saved, capsys
):
  path = max(_files(saved / "4" / "state"), key=lambda path: path.stat().st_size)
  _flip(path)
  known = {}
  for _ in range(2):
    store = _open(saved)
    store.pass_over_damaged(known)
    assert store.latest() == 2
    _assert_equal(store.restore(_tree()).tree, _tree(2))
    store.close()
  assert known.keys() == {2, 4}
  lines = capsys.readouterr().err.strip().splitlines()
  name = path.relative_to(saved / "4")
  assert lines == [f"{saved}/4: {name} is damaged: its checksum differs; the one before is used"]
  assert sorted(path.name for path in saved.iterdir()) == ["2", "4"]


def test_a_reader_takes_the_checkpoint_that_a_loop_made_in_place_of_a_damaged_one(saved):
  _flip(max(_files(saved / "4" / "state"), key=lambda path: path.stat().st_size))
  known = {}
  for expected in (2, 4):
    reader = _open(saved)
    reader.pass_over_damaged(known)
    assert reader.latest() == expected
    _assert_equal(reader.restore(_tree()).tree, _tree(expected))
    reader.close()
    loop = _open(saved)
    loop.set_damaged_aside()
    loop.save(4 if expected == 2 else 6, _tree(4), {})
    loop.close()


def test_a_reader_says_once_that_a_kill_left_a_checkpoint_on_the_way_to_its_name(saved, capsys):
  mark = saved / f"4{atomic.MOVING}"
  mark.write_text("4.orbax-checkpoint-tmp")
  known = {}
  for _ in range(2):
    store = _open(saved)
    store.pass_over_damaged(known)
    assert store.restore(_tree()).step == 2
    store.close()
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith(f"{saved}/4: is not whole: ") and line.endswith("the one before is used")
  mark.unlink()
  store = _open(saved)
  store.pass_over_damaged(known)
  assert store.restore(_tree()).step == 4
  store.close()
  assert not capsys.readouterr().err


def test_where_no_checkpoint_is_whole_nothing_is_renamed(saved):
  for step in (2, 4):
    _flip(max(_files(saved / str(step) / "state"), key=lambda path: path.stat().st_size))
  for use in (_open(saved).set_damaged_aside, lambda: _open(saved).pass_over_damaged({})):
    with pytest.raises(errors.InputError, match="no other checkpoint is whole") as error:
      use()
    assert str(error.value).startswith(f"{saved / '4'}: ")
  assert sorted(path.name for path in saved.iterdir()) == ["2", "4"]


def test_a_checkpoint_without_checksums_is_no_damaged_one(saved):
  (sums,) = (saved / "4").glob("checksums-*.json")
  sums.unlink()
  store = _open(saved)
  store.set_damaged_aside()
  assert store.restore(_tree()).step == 4


def test_many_saves_in_a_row_leave_checksums_of_those_that_are_kept(tmp_path):
  store = _open(tmp_path)
  for step in range(1, 8):
    store.save(step, _tree(step), {})
  store.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "7"]
  for step in ("6", "7"):
    (sums,) = (tmp_path / step).glob("checksums-0-of-1.json")
    listed = json.loads(sums.read_text())
    files = [path for path in (tmp_path / step).rglob("*") if path.is_file() and path != sums]
    assert listed.keys() == {path.relative_to(tmp_path / step).as_posix() for path in files}
