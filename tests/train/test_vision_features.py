"""A frozen tower's features are computed once for each clip; the cache does not change them."""

import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.data import frame_store
from vr_jax.envs import environment
from vr_jax.models.common import weight_mapping
from vr_jax.rollout import encoder
from vr_jax.train import (
  batching,
  check_examples,
  initialization,
  metrics,
  rl_loop,
  sft_loop,
  vision_features,
)

ON = {"model__freeze_vision": True, "model__feature_cache_gib": 1.0, "data__threads": 0}
CLIPS = 9  # of the training split, each with two questions


@pytest.fixture
def own_data(data, tmp_path):
  """A copy of the shared data: features are written next to it."""
  return shutil.copytree(data, tmp_path / "data")


@pytest.fixture(scope="module")
def size(request):
  return getattr(request, "param", "tiny")


@pytest.fixture
def context(own_data, size):
  return nano.build(own_data, mesh=(1, 2, 1, 1), size=size, **nano.ROOM[size], **ON)


@pytest.fixture(scope="module")
def params(data, size):
  context = nano.build(data, mesh=(1, 2, 1, 1), size=size, **nano.ROOM[size], **ON)
  return initialization.fresh_params(context)


@pytest.fixture
def encoded_rows(monkeypatch):
  """The number of rows of each run of the tower."""
  rows, run = [], encoder.features

  def noted(graphdef, params, vision):
    rows.append(len(vision.patches))
    return run(graphdef, params, vision)

  monkeypatch.setattr(encoder, "features", noted)
  return rows


def epoch(context, params, workdir):
  """Reads an epoch in order; its features are on disk afterwards.

  Returns (prompts on the mesh, metrics) of each batch.
  """
  with vision_features.open_cache(context, params, workdir) as cache:
    read = context.builder.read("train", 4, repeat=False, cache=cache)
    featurized = [
      vision_features.prompt_with_features(context, params, batch, cache) for batch in read
    ]
  return [(one.prompt, one.metrics) for one in featurized]


def plain(context, params):
  """The prompts of the same epoch without a cache."""
  read = context.builder.read("train", 4, repeat=False)
  return [encoder.encode(context.graphdef, params, context.builder.prompt(batch)) for batch in read]


def assert_same(found, expected):
  """Checks that prompts are equal; of their features, only those that a token uses."""
  for (one, _), other in zip(found, expected, strict=True):
    assert one.vision is None
    for name in ("tokens", "kind", "positions", "next_position", "media_index"):
      np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for mine, wanted in zip(jax.tree.leaves(one.media), jax.tree.leaves(other.media), strict=True):
      assert mine.shape == wanted.shape
      assert mine.sharding.is_equivalent_to(wanted.sharding, mine.ndim)
      for row, index in enumerate(np.asarray(one.media_index)):
        there = index[index >= 0]
        assert len(there)
        np.testing.assert_allclose(mine[row][there], wanted[row][there], atol=1e-6)


def entries(data):
  return sorted((data / "features").glob("*/*.safetensors"))


@pytest.mark.parametrize("size", nano.ROOM, indirect=True)
def test_the_second_epoch_runs_no_tower_and_reads_no_frame(
  context, params, own_data, encoded_rows, monkeypatch
):
  expected = plain(context, params)
  encoded_rows.clear()
  first = epoch(context, params, own_data)
  assert_same(first, expected)
  assert len(entries(own_data)) == CLIPS
  assert encoded_rows[0] == 4
  assert first[0][1] == {"vision/cache_hits": 0, "vision/cache_rebuilt": 0}
  encoded_rows.clear()
  monkeypatch.setattr(frame_store.FrameStore, "read", None)
  second = epoch(context, params, own_data)
  assert_same(second, expected)
  assert not encoded_rows
  assert sum(values["vision/cache_hits"] for _, values in second) == 2 * CLIPS


def test_the_tower_runs_for_what_is_missing_alone_and_a_damaged_entry_is_counted(
  context, params, own_data, encoded_rows
):
  expected = plain(context, params)
  epoch(context, params, own_data)
  read = list(context.builder.read("train", 4, repeat=False))
  with vision_features.open_cache(context, params, own_data) as cache:
    (row,) = [context.builder.item(item.clip, cache=cache) for item in read[1].items[1:2]]
  (path,) = [path for path in entries(own_data) if path.stem == row.cache_key]
  path.write_bytes(path.read_bytes()[:-100])
  encoded_rows.clear()
  found = epoch(context, params, own_data)
  assert_same(found, expected)
  assert set(encoded_rows) == {2}  # one row, padded to one on each of two devices
  rebuilt = [values["vision/cache_rebuilt"] for _, values in found]
  assert sum(rebuilt) == 1
  assert_same(epoch(context, params, own_data), expected)
  assert len(entries(own_data)) == CLIPS


def test_an_entry_copied_from_the_cache_of_another_tower_is_made_again_and_counted(
  context, params, own_data
):
  expected = plain(context, params)
  epoch(context, jax.tree.map(lambda x: 2 * x, params), own_data)
  others = entries(own_data)
  epoch(context, params, own_data)
  (own,) = {path.parent for path in entries(own_data)} - {others[0].parent}
  shutil.copy(others[0], own)
  found = epoch(context, params, own_data)
  assert_same(found, expected)
  assert sum(values["vision/cache_rebuilt"] for _, values in found) == 1
  assert_same(epoch(context, params, own_data), expected)


def test_what_is_deleted_between_two_batches_is_made_again(context, params, own_data):
  expected, found = plain(context, params), []
  with vision_features.open_cache(context, params, own_data) as cache:
    for batch in context.builder.read("train", 4, repeat=False, cache=cache):
      featurized = vision_features.prompt_with_features(context, params, batch, cache)
      found.append((featurized.prompt, featurized.metrics))
      shutil.rmtree(own_data / "features", ignore_errors=True)
  assert_same(found, expected)


def test_what_another_process_with_the_same_rows_misses_is_made_here_too(
  context, params, own_data, encoded_rows, monkeypatch
):
  """The test stands in for the other process, which lacks the first two prompts of each batch."""
  expected = plain(context, params)
  epoch(context, params, own_data)
  lost = np.array([0, 1, 4, True, True, False, False])

  def with_other(kind, own):
    of_other = np.concatenate([lost, own[len(lost) :]])  # in the same buckets
    return np.stack([own, of_other])

  monkeypatch.setattr(vision_features.processes, "gather_numbers", with_other)
  monkeypatch.setattr(
    batching.BatchBuilder, "read", functools.partialmethod(_whole_batches, read=READ)
  )
  encoded_rows.clear()
  found = epoch(context, params, own_data)
  assert_same(found, expected[:-1])
  assert set(encoded_rows) == {2}
  assert {values["vision/cache_hits"] for _, values in found} == {2}


def test_a_batch_takes_the_buckets_of_the_process_whose_prompts_are_longest(
  context, params, monkeypatch
):
  own = next(context.builder.read("train", 4, repeat=False))
  expected = vision_features.prompt_with_features(context, params, own, None).prompt
  larger = np.array([96, own.sizes.frames, own.sizes.patches])
  both = lambda kind, own: np.stack([own, larger])  # noqa: E731
  monkeypatch.setattr(vision_features.processes, "gather_numbers", both)
  featurized = vision_features.prompt_with_features(context, params, own, None)
  found = featurized.prompt
  assert featurized.batch.sizes.prefix == featurized.batch.prompt.tokens.shape[1] == 96
  assert own.sizes.prefix == expected.tokens.shape[1] == 64
  assert found.tokens.shape == (4, 96)
  np.testing.assert_array_equal(found.tokens[:, :64], expected.tokens)
  assert not np.asarray(found.kind)[:, 64:].any()


def test_devices_along_sequence_share_the_frames_of_a_prompt_evenly(data):
  def prompt(ways):
    changes = nano.ROOM["tiny"] | {"model__prefix_buckets": (96,), "model__frame_buckets": (5,)}
    context = nano.build(data, mesh=(1, 1, ways, 1), **changes)
    batch = next(context.builder.read("train", 2, repeat=False))
    params = initialization.fresh_params(context)
    found = encoder.encode(context.graphdef, params, context.builder.prompt(batch))
    return batch.sizes.frames, jax.device_get(found)

  (alone, expected), (shared, found), (fewer, _) = prompt(1), prompt(4), prompt(8)
  assert (alone, shared, fewer) == (5, 8, 5)
  np.testing.assert_array_equal(found.media_index, expected.media_index)
  for row, index in enumerate(expected.media_index):
    shown = index[index >= 0]
    np.testing.assert_allclose(found.media[row][shown], expected.media[row][shown], atol=1e-5)


READ = batching.BatchBuilder.read


def _whole_batches(context, *arguments, read, **options):
  """Reads an epoch without its last, smaller batch."""
  return [batch for batch in read(context, *arguments, **options) if len(batch.items) == 4]


def test_blind_and_shuffled_views_ask_for_no_features(context, params, own_data):
  epoch(context, params, own_data)
  with vision_features.open_cache(context, params, own_data) as cache:
    item = next(context.builder.read("train", 4, repeat=False, cache=cache)).items[0]
    assert item.encoded.features is not None
    for view in ("blind", "shuffled"):
      other = next(context.builder.read("train", 4, repeat=False, view=view, cache=cache)).items[0]
      assert other.encoded.features is None
      assert other.cache_key is None
      assert len(other.encoded.frames) == (0 if view == "blind" else 4)
  assert len(entries(own_data)) == CLIPS


@pytest.mark.parametrize("view", ["blind", "shuffled"])
def test_blind_and_shuffled_views_are_refused_where_the_first_turn_does_not_show_the_clip(
  context, monkeypatch, view
):
  builder = context.builder
  clip = next(builder.read("train", 4, repeat=False)).items[0].clip
  frame = environment.Observation(
    parts=("frame_idx:0, ", environment.ShownFrame(0), "\nWhat is it?")
  )
  monkeypatch.setattr(check_examples, "first_observation", lambda *_: frame)
  with pytest.raises(errors.InputError, match=f"^{view} evaluation needs a first observation"):
    builder.item(clip, view=view)


def test_a_run_from_the_cache_writes_the_metrics_of_one_that_fills_it(
  own_data, monkeypatch, capsys
):
  nano.use_devices(monkeypatch, 1)
  lines = []
  for name in ("first", "second"):
    config = nano.config(
      data__directory=str(own_data), sft__steps=2, rl__steps=2, rl__kl_weight=0.0, **ON
    )
    sft_loop.train(config, own_data / name)
    rl_loop.train(config, own_data / name)
    lines.append([line["values"] for line in metrics.read(own_data / name / "metrics.jsonl")])
  hits = [[values["vision/cache_hits"] for values in run] for run in lines]
  assert hits[0][0] == 0
  assert hits[0][2:] == [4, 4]  # RL sees first what the warm start has seen
  assert hits[1] == [4, 4, 4, 4]
  for first, second in zip(*lines, strict=True):
    same = [n for n in first if not n.startswith(("perf/", "vision/"))]
    assert {n: second[n] for n in same} == pytest.approx({n: first[n] for n in same}, abs=1e-5)
  # Replies of an untrained network earn nothing, and the runs say so.
  assert [values["frac_reward_zero_std"] for values in lines[0][2:]] == [1, 1]
  assert capsys.readouterr().out.count("nothing was learned from the rewards: in 2 of 2 steps") == 2


def test_a_cache_is_kept_of_frozen_towers_only_and_where_it_has_room(data, params, tmp_path):
  for fields in ({"model__freeze_vision": False}, {"model__feature_cache_gib": 0.0}):
    context = nano.build(data, mesh=(1, 2, 1, 1), **{**ON, **fields})
    with vision_features.open_cache(context, params, tmp_path) as cache:
      assert cache is None


def test_the_cache_of_another_tower_under_this_ones_name_is_refused(context, params, own_data):
  epoch(context, params, own_data)
  (about,) = (own_data / "features").glob("*/about.json")
  about.write_text(about.read_text().replace('"float32"', '"bfloat16"'))
  with (
    pytest.raises(errors.InputError, match=r"about\.json: is of another tower: dtype"),
    vision_features.open_cache(context, params, own_data),
  ):
    pass


def test_what_features_depend_on_names_another_cache(data, params, tmp_path):
  found = []
  variants: tuple[dict[str, Any], ...] = (
    {},
    {"model__dtype": "bfloat16"},
    {"model__max_pixels": 784},
    {"model__resize_backend": "torchvision"},
    {"model__architecture__vision_config__window_size": 28},
  )
  for fields in variants:
    changed = nano.build(data, mesh=(1, 2, 1, 1), **ON, **fields)
    found.append(vision_features.cache_identity(changed, params))
  same = nano.build(
    data, mesh=(1, 2, 1, 1), **ON, rl__num_generations=2, model__prefix_buckets=(128,)
  )
  assert vision_features.cache_identity(same, params) == found[0]
  assert all(about not in found[:number] for number, about in enumerate(found))


def test_the_fingerprint_is_that_of_the_weights_and_not_of_the_devices_that_hold_them(data):
  by_mesh = []
  for mesh in ((1, 1, 1, 1), (1, 2, 1, 2), (2, 1, 2, 1)):
    context = nano.build(data, mesh=mesh)
    by_mesh.append(
      vision_features.fingerprint(initialization.fresh_params(context)["vision"], context.mesh)
    )
  assert len(set(by_mesh)) == 1
  context = nano.build(data)
  tower = initialization.fresh_params(context)["vision"]
  for change in (_last_bit_of_one, _two_swapped):
    assert vision_features.fingerprint(_changed(tower, change), context.mesh) != by_mesh[0]
  assert vision_features.fingerprint(_changed(tower, lambda x: x), context.mesh) == by_mesh[0]


def _changed(tower, change):
  flat = dict(weight_mapping.flat(tower))
  patch = flat["patch"]
  return weight_mapping.unflat(
    {**flat, "patch": patch.replace(jnp.asarray(change(np.array(patch[...]))))}
  )


def _last_bit_of_one(x):
  x[5, 3] = np.nextafter(x[5, 3], np.inf)
  return x


def _two_swapped(x):
  x[[2, 7]] = x[[7, 2]]
  return x
