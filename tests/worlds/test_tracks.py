import collections
import dataclasses
import functools
import json

import numpy as np
import pytest

from vr_jax import errors, recipe_config, records, run_length
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import exact_tracker, render, tracks, write

WORLD = config_lib.WorldConfig(
  height=64,
  width=96,
  rows=2,
  columns=3,
  seconds=10.0,
  shown=10.0,
  fps=4,
  dwell=1.0,
  objects_min=2,
  objects_max=4,
  behaviours=config_lib.TRACK_BEHAVIOURS,
  families=config_lib.TRACK_FAMILIES,
)


@functools.cache
def videos():
  return [write.sample_video(WORLD, seed=3, index=index, questions=3) for index in range(40)]


@functools.cache
def renderings():
  return [render.render(scene) for scene, _ in videos()[:16]]


def family_of(example):
  text = example.question
  for family in ("recoloured", "returned", "covered", "stayed"):
    if text in tracks._QUERIES[family]:
      return family
  return "described" if example.extra["instances"] else "absent"


def test_the_same_seed_gives_the_same_bytes_with_masks_that_say_where_objects_are(tmp_path):
  for name in ("a", "b"):
    write.write_dataset(tmp_path / name, WORLD, videos=2, seed=3, questions_per_video=3)
  files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
  assert [str(file) for file in files] == [
    "annotations.jsonl", "masks/000000.json", "masks/000001.json", "videos/000000.mp4",
    "videos/000001.mp4",
  ]  # fmt: skip
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
  stored = json.loads((tmp_path / "a" / "masks" / "000001.json").read_text())
  assert list(stored["instances"]) == [thing.shape for thing in videos()[1][0].objects]
  for masks, true in zip(stored["instances"].values(), renderings()[1].masks, strict=True):
    found = [run_length.decode(mask, 64, 96) for mask in masks]
    np.testing.assert_array_equal(found, true)
  assert stored["times"] == (np.arange(40) / 4).tolist()


def test_every_family_of_queries_occurs_and_no_object_is_more_often_right_than_others():
  counts, ranks = collections.Counter(), collections.Counter()
  for scene, examples in videos():
    counts.update(map(family_of, examples))
    shapes = sorted(thing.shape for thing in scene.objects)
    for example in examples:
      if len(example.extra["instances"]) == 1:
        ranks[shapes.index(example.extra["instances"][0]) / (len(shapes) - 1)] += 1
  assert set(counts) == set(config_lib.TRACK_FAMILIES)
  assert min(counts.values()) > 0.4 * max(counts.values())
  assert 0.7 < ranks[0.0] / ranks[1.0] < 1.4


def test_each_object_is_large_and_in_its_own_colour_in_a_few_frames_alone():
  for (scene, _), rendering in zip(videos(), renderings(), strict=False):
    for index, thing in enumerate(scene.objects):
      areas = rendering.masks[index].sum(axis=(1, 2))
      start, end = tracks._window(scene, thing.shape)
      cells = np.arange(scene.frames) // scene.fps
      within = (cells >= start) & (cells < end)
      assert end - start == WORLD.large_cells
      assert areas[within].max() > 8 * np.median(areas[~within])
      colours = scene.script(thing.shape, "colour")[: scene.cells]
      shared = {
        colour
        for other in scene.objects
        for cell, colour in enumerate(scene.script(other.shape, "colour")[: scene.cells])
        if not tracks._window(scene, other.shape)[0] <= cell < tracks._window(scene, other.shape)[1]
      }
      assert len(shared) == 1 and not {*colours[start:end]} & shared


@pytest.mark.parametrize("family", ["returned", "covered", "recoloured", "stayed", "absent"])
def test_a_query_means_the_objects_that_do_what_it_says_and_no_other(family):
  found = 0
  for (scene, examples), rendering in zip(videos(), renderings(), strict=False):
    seen = rendering.masks.any(axis=(2, 3))
    shapes = [thing.shape for thing in scene.objects]
    for example in examples:
      if family_of(example) != family:
        continue
      found += 1
      meant = example.extra["instances"]
      gone = {s for s, visible in zip(shapes, seen, strict=True) if not visible.all()}
      away = {s for s in shapes if tracks._is_away(scene, s)}
      if family == "returned":
        cells = tracks._is_away(scene, meant[0])
        resting = [scene.fps * cell for cell in cells]
        assert {*meant} == away and not seen[shapes.index(meant[0]), resting].any()
        assert cells[0] > 0 and cells[-1] < scene.cells - 1
      elif family == "covered":
        # Out of sight while in the picture: that is behind another object.
        assert {*meant} == gone - away or {*meant} == away & gone
        hidden = np.flatnonzero(~seen[shapes.index(meant[0])])
        assert {f // scene.fps for f in hidden.tolist()} - {*tracks._is_away(scene, meant[0])}
      elif family == "stayed":
        assert {*meant} == {*shapes} - away
      elif family == "absent":
        assert example.extra["instances"] == [] and example.relevant == ()
        colour, shape = example.question.split()[1], example.question.split()[-1]
        if example.question.startswith("the ") and "turns" not in example.question:
          assert shape not in shapes or colour not in scene.script(shape, "colour")
      else:
        colours = {s: scene.script(s, "colour")[: scene.cells] for s in shapes}
        last = {
          s: max(cell for cell in range(1, scene.cells) if each[cell] != each[cell - 1])
          for s, each in colours.items()
        }
        assert [s for s in shapes if last[s] == max(last.values())] == meant
  assert found


def test_rewards_of_key_frames_differ_where_objects_are_hidden():
  world = recipe_config.load("configs/revseg.py:tiny_hidden").data.simulate.world
  world = config_lib.WorldConfig(**world)
  values = {"visible": [], "soft": []}
  confused = []
  for index in range(60):
    scene, examples = write.sample_video(world, seed=3, index=index, questions=2)
    masks = render.render(scene).masks[:, :: world.fps]
    for example in examples:
      (shape,) = example.extra["instances"]
      own = [thing.shape for thing in scene.objects].index(shape)
      areas, others = (masks[index].sum(axis=(1, 2)) for index in (own, 1 - own))
      values["visible"].append(areas > 0)
      values["soft"].append((areas - areas.min()) / np.ptp(areas))
      confused.append(areas[np.argmax(others)] > 0)
  visible, soft = (np.mean(each, axis=0) for each in values.values())
  assert 0.55 < visible.mean() < 0.75  # of all frames
  # Neither a constant frame nor confusion with the other object is safe.
  assert 0.7 < visible.max() < 0.9 and np.mean(confused) < 0.35
  assert soft.max() < 0.5 and np.all(np.max(values["soft"], axis=1) == 1)


def test_tracks_are_the_boxes_of_the_united_masks():
  (scene, _), rendering = videos()[0], renderings()[0]
  shapes = tuple(thing.shape for thing in scene.objects)
  both = tracks.object_track(scene, rendering, shapes[:2])
  mask = rendering.masks[:2].any(axis=0)
  for frame in range(scene.frames):
    expected = run_length.box(run_length.encode(mask[frame]))
    np.testing.assert_array_equal(both.boxes[frame], expected)
  none = tracks.object_track(scene, rendering, ())
  assert not none.visible.any() and none.boxes.shape == (40, 4)


def test_the_exact_tracker_follows_the_object_of_the_best_box():
  (scene, _), rendering = videos()[0], renderings()[0]
  for index, thing in enumerate(scene.objects):
    frame = tracks._window(scene, thing.shape)[0] * scene.fps
    box = rendering.boxes[index, frame]
    found = exact_tracker.track(rendering.masks, frame, box + np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(found, rendering.masks[index])
    assert not exact_tracker.track(rendering.masks, frame, box, least_iou=1.01).any()
  for box in ([0, 0, 0, 0], [50, 50, 40, 40], [1e6, 0, 2e6, 9]):
    assert not exact_tracker.track(rendering.masks, 0, np.array(box, np.float32)).any()
  assert not exact_tracker.track(rendering.masks[:0], 0, rendering.boxes[0, 0]).any()


@pytest.mark.parametrize(
  ("fields", "field"),
  [
    ({"behaviours": ("approach", "move")}, "behaviours"),
    ({"shown": 8.0}, "shown"),
    ({"large_cells": 10}, "large_cells"),
    ({"objects_max": 5}, "objects_max"),
    ({"objects_min": 1}, "objects_min"),
    ({"colours": config_lib.COLOURS[:5]}, "colours"),
    ({"seconds": 5.0, "shown": 5.0}, "seconds"),
    ({"families": ("described", "choice")}, "families"),
  ],
)
def test_a_world_that_cannot_be_is_named(fields, field):
  with pytest.raises(errors.InputError, match=f"worlds.{field}: "):
    dataclasses.replace(WORLD, **fields)


def test_a_scene_that_allows_too_few_queries_is_an_error():
  few = dataclasses.replace(WORLD, families=("returned",))
  with pytest.raises(errors.InputError, match="no scene allows 2 different queries"):
    write.sample_video(few, seed=0, index=0, questions=2)


TRACK = records.ObjectTrack(
  times=np.array([0.0, 1.0]),
  boxes=np.array([[0, 0, 2, 2], [np.nan] * 4], np.float32),
  height=10,
  width=10,
)


def test_tracks_are_equal_where_their_numbers_are():
  empty = dataclasses.replace(TRACK, times=np.zeros(0), boxes=np.zeros((0, 4), np.float32))
  assert empty != TRACK and dataclasses.replace(TRACK) == TRACK
  assert len({TRACK, dataclasses.replace(TRACK), empty}) == 2


def test_graded_ground_tells_places_apart_and_changes_nothing_else():
  plain, graded = (dataclasses.replace(WORLD, graded=value) for value in (False, True))
  scenes = [tracks.sample(np.random.default_rng(3), world, 1) for world in (plain, graded)]
  assert scenes[0][1] == scenes[1][1]
  flat, shaded = (render.render(scene) for scene, _ in scenes)
  np.testing.assert_array_equal(flat.masks, shaded.masks)
  ground = ~flat.masks.any(axis=0)
  red, blue = (shaded.frames[..., channel].astype(int) for channel in (0, 2))
  left, right = (np.s_[:, :, :20], np.s_[:, :, -20:])
  top, bottom = (np.s_[:, :20], np.s_[:, -20:])
  assert red[right][ground[right]].mean() - red[left][ground[left]].mean() > 18
  assert blue[bottom][ground[bottom]].mean() - blue[top][ground[top]].mean() > 18
