import dataclasses

import numpy as np
import pytest

from vr_jax import errors
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib

WORLD = config_lib.WorldConfig(objects_max=4, behaviours_per_object=2)


def scenes(config, count):
  return [scene_lib.sample_scene(np.random.default_rng(seed), config) for seed in range(count)]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
  assert scenes(WORLD, 20) == scenes(WORLD, 20)
  assert len(set(scenes(WORLD, 20))) == 20


def test_shapes_are_distinct_so_that_a_shape_names_an_object():
  for scene in scenes(WORLD, 100):
    shapes = [thing.shape for thing in scene.objects]
    assert len(set(shapes)) == len(shapes)
    assert scene.object(shapes[-1]) is scene.objects[-1]


def test_no_two_objects_rest_at_the_same_spot():
  for scene in scenes(WORLD, 200):
    for cell in range(scene.cells):
      poses = [scene_lib.pose(scene, thing, cell * scene.dwell) for thing in scene.objects]
      assert len({(pose.x, pose.y) for pose in poses}) == len(poses)


def test_at_the_start_of_a_cell_the_pose_is_that_cells_state():
  for scene in scenes(WORLD, 100):
    for thing in scene.objects:
      for cell in range(scene.cells):
        pose = scene_lib.pose(scene, thing, cell * scene.dwell)
        centre = scene_lib.zone_centre(scene, scene.value(thing, "place", cell))
        assert pose.colour == scene.value(thing, "colour", cell)
        assert pose.covered == (scene.value(thing, "visibility", cell) == "hidden")
        assert np.abs(centre - (pose.x, pose.y)).max() < scene_lib.zone_side(scene) / 4


def test_all_but_bouncing_objects_rest_for_three_quarters_of_a_cell():
  config = dataclasses.replace(
    WORLD, behaviours=("move", "grow", "box", "hide"), families=("choice",)
  )
  for scene in scenes(config, 50):
    for thing in scene.objects:
      assert scene_lib.pose(scene, thing, 4.0) == scene_lib.pose(scene, thing, 5.4)


def test_a_bouncing_object_travels_at_constant_speed():
  config = config_lib.WorldConfig(behaviours=("bounce",), families=("choice",))
  for scene in scenes(config, 10):
    thing = scene.objects[0]
    x = [scene_lib.pose(scene, thing, time).x for time in np.arange(0, 2, 0.125)]
    y = [scene_lib.pose(scene, thing, time).y for time in np.arange(0, 2, 0.125)]
    np.testing.assert_allclose(np.diff(x, 2), 0, atol=1e-6)
    np.testing.assert_allclose(np.diff(y, 2), 0, atol=1e-6)
    assert np.hypot(x[-1] - x[0], y[-1] - y[0]) > 30


@pytest.mark.parametrize("behaviour", config_lib.BEHAVIOURS)
def test_each_life_can_be_switched_off_and_be_the_only_one(behaviour):
  others = tuple(other for other in config_lib.BEHAVIOURS if other != behaviour)
  without = dataclasses.replace(WORLD, behaviours=others, families=("choice",))
  kinds = {
    own.kind
    for scene in scenes(without, 100)
    for thing in scene.objects
    for own in thing.behaviours
  }
  assert kinds == set(others) - {"still"}
  if behaviour != "still":
    alone = dataclasses.replace(WORLD, behaviours=(behaviour,), objects_max=2, families=("choice",))
    found = {
      own.kind for scene in scenes(alone, 20) for thing in scene.objects for own in thing.behaviours
    }
    assert found == {behaviour}


def test_the_number_of_objects_keeps_to_the_config():
  config = dataclasses.replace(WORLD, objects_min=2, objects_max=3)
  assert {len(scene.objects) for scene in scenes(config, 60)} == {2, 3}


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"behaviours": ("fly",)}, "worlds.behaviours: 'fly' is unknown"),
    ({"behaviours": ()}, "worlds.behaviours"),
    ({"colours": ("red", "red", "blue", "green")}, "worlds.colours"),
    ({"colours": ("red", "blue", "green")}, "worlds.colours"),
    ({"height": 113}, "worlds.height"),
    ({"rows": 4}, "worlds.rows"),
    ({"objects_min": 0}, "worlds.objects_min"),
    ({"objects_max": 3, "shapes": ("circle", "star")}, "worlds.objects_max"),
    ({"objects_max": 5}, "worlds.objects_max"),
    ({"seconds": 9.0}, "worlds.seconds"),
    ({"shown": 10.0}, "worlds.shown"),
    ({"shown": 4.0}, "worlds.shown"),
    ({"periods": (2, 4)}, "worlds.shown"),
    ({"periods": (1, 2)}, "worlds.periods"),
    ({"dwell": 0.3}, "worlds.dwell"),
    ({"wordings": 9}, "worlds.wordings"),
    ({"behaviours_per_object": 3}, "worlds.behaviours_per_object"),
    ({"behaviours": ("cycle",)}, "worlds.families: 'changes' needs one of the behaviours"),
    ({"periods": (2,)}, "worlds.families: 'changes' has only one answer"),
    ({"objects_max": 1}, "worlds.families: 'occupancy'"),
  ],
)
def test_an_impossible_world_is_refused_with_the_field_named(fields, named):
  with pytest.raises(errors.InputError) as caught:
    config_lib.WorldConfig(**fields)
  assert str(caught.value).startswith(named)
  assert "\n" not in str(caught.value)


def test_more_objects_than_places_is_refused():
  config = config_lib.WorldConfig(
    rows=2, columns=2, objects_min=3, behaviours=("move",), families=("choice",)
  )
  with pytest.raises(errors.InputError, match="don't fit on 2 x 2 places"):
    scene_lib.sample_scene(np.random.default_rng(0), config)
