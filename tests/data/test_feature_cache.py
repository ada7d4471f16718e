"""The feature cache returns what was put, or nothing, and needs no maintenance."""

import dataclasses
import json
import os
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vr_jax.data import feature_cache, ingest, sampling
from vr_jax.data.batches import select_clip
from vr_jax.errors import InputError

ABOUT = {"tower": {"weights": "abc", "depth": 2}, "preprocessing": {"max_pixels": 784}}
SHAPE = (64, 32)
BYTES = 4 * 64 * 32  # of an entry, without its header


def opened(root, *, about=ABOUT, dtype="float32", entries=100.0):
  """Opens a cache with room for `entries` entries."""
  room = entries * (BYTES + 300) / feature_cache.GIB
  return feature_cache.FeatureCache(root, about, dtype=jnp.dtype(dtype), gibibytes=room)


def features(seed=0, dtype="float32"):
  return np.random.default_rng(seed).normal(size=SHAPE).astype(jnp.dtype(dtype))


def entry(cache, name="a"):
  return cache.directory / f"{name}.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_put_is_found_bit_for_bit_also_by_the_next_run(tmp_path, dtype):
  cache = opened(tmp_path, dtype=dtype)
  assert cache.get("a", SHAPE) == feature_cache.CacheLookup()
  cache.put("a", features(dtype=dtype))
  result = opened(tmp_path, dtype=dtype).get("a", SHAPE).features
  assert result.dtype == jnp.dtype(dtype)
  assert result.tobytes() == features(dtype=dtype).tobytes()
  assert {path.name for path in cache.directory.iterdir()} == {"about.json", "a.safetensors"}


def _cut(content):
  return content[: len(content) // 2]


def _flipped(content):
  return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def _empty(content):
  return content[:0]


def _other_names(content):
  return content.replace(b'"features"', b'"featurez"')


@pytest.mark.parametrize("spoil", [_cut, _flipped, _empty, _other_names])
def test_a_damaged_entry_is_removed_and_may_be_put_again(tmp_path, spoil):
  cache = opened(tmp_path)
  cache.put("a", features())
  entry(cache).write_bytes(spoil(entry(cache).read_bytes()))
  assert cache.get("a", SHAPE) == feature_cache.CacheLookup(damaged=True)
  assert not entry(cache).exists()
  cache.put("a", features())
  np.testing.assert_array_equal(cache.get("a", SHAPE).features, features())


def test_an_entry_of_another_shape_or_dtype_counts_as_damaged(tmp_path):
  cache = opened(tmp_path)
  cache.put("a", features())
  assert cache.get("a", (32, 64)).damaged
  cache.put("b", features(dtype="bfloat16"))
  assert cache.get("b", SHAPE).damaged


def test_an_entry_of_another_tower_counts_as_damaged_though_it_has_the_shape(tmp_path):
  cache = opened(tmp_path)
  other = opened(tmp_path, about={**ABOUT, "tower": {"weights": "abd", "depth": 2}})
  other.put("a", features(1))
  shutil.copy(entry(other), entry(cache))
  assert cache.get("a", SHAPE) == feature_cache.CacheLookup(damaged=True)
  cache.put("a", features())
  np.testing.assert_array_equal(cache.get("a", SHAPE).features, features())
  np.testing.assert_array_equal(other.get("a", SHAPE).features, features(1))


def test_an_entry_that_names_no_tower_counts_as_damaged(tmp_path):
  cache = opened(tmp_path)
  cache.put("a", features())
  fields = safetensors_numpy.load(entry(cache).read_bytes())
  entry(cache).write_bytes(safetensors_numpy.save(fields))
  assert cache.get("a", SHAPE) == feature_cache.CacheLookup(damaged=True)


def test_the_entries_used_longest_ago_leave_when_the_room_is_full(tmp_path):
  cache = opened(tmp_path, entries=8)
  for number in range(8):
    cache.put(str(number), features(number))
    os.utime(entry(cache, str(number)), (number, number))
  np.testing.assert_array_equal(cache.get("0", SHAPE).features, features(0))
  cache.put("8", features(8))
  kept = {path.stem for path in cache.directory.glob("*.safetensors")}
  assert kept >= {"0", "8", "7"}
  assert not kept & {"1"}
  assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 8 * (BYTES + 300)


def test_the_room_is_that_of_all_towers_together(tmp_path):
  old = opened(tmp_path, about={"tower": "old"})
  for number in range(8):
    old.put(str(number), features(number))
    os.utime(entry(old, str(number)), (number, number))
  new = opened(tmp_path, entries=4)
  assert len(list(old.directory.glob("*.safetensors"))) <= 4
  new.put("a", features())
  assert new.get("a", SHAPE).features is not None


def test_another_tower_has_another_directory_and_the_same_one_the_same(tmp_path):
  first = opened(tmp_path)
  first.put("a", features())
  other = opened(tmp_path, about={**ABOUT, "tower": {"weights": "abd", "depth": 2}})
  assert other.directory != first.directory
  assert other.get("a", SHAPE).features is None
  assert opened(tmp_path).directory == first.directory


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"tower": {"weights": "xyz", "depth": 2}}, "of another tower: weights is 'xyz' there, 'abc'"),
    ({"preprocessing": {"max_pixels": 3}}, "of another preprocessing: max_pixels is 3 there, 784"),
    ({"format": 0}, "of another format: 0 there, 2 here"),
    (None, "damaged"),
  ],
)
def test_a_directory_of_another_tower_or_preprocessing_is_an_error_that_names_it(
  tmp_path, change, says
):
  path = opened(tmp_path).directory / "about.json"
  content = {**json.loads(path.read_text()), **(change or {})}
  path.write_text(json.dumps(content) if change else path.read_text()[:20])
  with pytest.raises(InputError, match=rf"about\.json: is {says}") as caught:
    opened(tmp_path)
  assert str(path) in str(caught.value)


def test_all_of_it_may_be_deleted_while_a_run_has_it_open(tmp_path):
  cache = opened(tmp_path / "features")
  cache.put("a", features())
  shutil.rmtree(tmp_path / "features")
  assert cache.get("a", SHAPE) == feature_cache.CacheLookup()
  cache.put("a", features())
  np.testing.assert_array_equal(cache.get("a", SHAPE).features, features())
  assert json.loads((cache.directory / "about.json").read_text())["tower"] == ABOUT["tower"]


def test_runs_that_share_it_and_one_that_deletes_it_never_see_half_an_entry(tmp_path):
  root, wrong = tmp_path / "features", []

  def work(seed):
    cache, rng = opened(root, entries=3), np.random.default_rng(seed)
    for _ in range(60):
      number = int(rng.integers(6))
      cache.put(str(number), features(number))
      found = cache.get(str(number), SHAPE)
      if found.damaged or (
        found.features is not None and not np.array_equal(found.features, features(number))
      ):
        wrong.append((seed, number))
    cache.close()

  threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
  for thread in threads:
    thread.start()
  for _ in range(5):
    shutil.rmtree(root, ignore_errors=True)
  for thread in threads:
    thread.join()
  assert not wrong
  assert not list(root.glob("*/*.partial"))


def test_writing_holds_nobody_up_and_is_done_when_the_cache_closes(tmp_path):
  cache, ready = opened(tmp_path), threading.Event()

  def make():
    assert ready.wait(10)
    yield "a", features()

  cache.put_later(make)
  assert cache.get("a", SHAPE).features is None
  ready.set()
  cache.close()
  np.testing.assert_array_equal(cache.get("a", SHAPE).features, features())


def test_a_directory_that_takes_nothing_is_an_error_of_a_later_call_or_of_close(tmp_path):
  cache = opened(tmp_path / "features")
  shutil.rmtree(tmp_path / "features")
  (tmp_path / "features").write_text("in the way")
  cache.put_later(lambda: [("a", features())])
  with pytest.raises(InputError, match=r"cannot be written .*feature_cache_gib=0"):
    cache.close()
  with pytest.raises(InputError, match="cannot be written"):
    opened(tmp_path / "features")


def test_the_name_of_a_clip_says_which_frames_in_which_order_and_what_they_hold(ingested):
  source, store = ingest.open_split(ingested.output, "train")
  clips = [
    select_clip(source[i], store, sampling.UniformRule(frames=8)) for i in range(len(source))
  ]
  clip = next(c for c in clips if c.example.video != clips[0].example.video)
  same = [c for c in clips if c.example.video == clip.example.video]
  assert len(same) == 3  # questions about the same video
  assert len({feature_cache.entry_name(c) for c in same}) == 1
  fewer = dataclasses.replace(
    clip, frame_indices=clip.frame_indices[:4], timestamps=clip.timestamps[:4]
  )
  turned = dataclasses.replace(clip, frame_indices=clip.frame_indices[::-1])
  store = type(store)(ingested.output / "frames")
  index = store._index
  store._index = dataclasses.replace(index, checksums=index.checksums + np.uint32(1))
  redrawn = dataclasses.replace(clip, store=store)
  names = [feature_cache.entry_name(c) for c in (clips[0], clip, fewer, turned, redrawn)]
  assert len(set(names)) == 5
