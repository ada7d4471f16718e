import av
import numpy as np
import PIL.Image
import pytest

from vr_jax import errors
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import render as render_lib
from vr_jax.worlds import scene as scene_lib

SMALL = {"height": 112, "width": 112, "rows": 2, "columns": 2, "objects_max": 2}
WORLD = config_lib.WorldConfig(**SMALL)
WIDE = config_lib.WorldConfig(height=120, width=200, behaviours_per_object=2)


def rendered(config, seed):
  scene = scene_lib.sample_scene(np.random.default_rng(seed), config)
  return scene, render_lib.render(scene)


def nearest_colour(pixels):
  names = list(render_lib.RGB)
  distances = [np.abs(np.median(pixels, axis=0) - render_lib.RGB[name]).sum() for name in names]
  return names[int(np.argmin(distances))]


def decoded(path):
  with av.open(str(path)) as container:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make_object(**fields):
  return scene_lib.Object(**({"shape": "circle", "colour": "red", "size": "large"} | fields))


def make_scene(*objects, box=None):
  return scene_lib.Scene(
    height=112,
    width=112,
    rows=2,
    columns=2,
    seconds=10.0,
    fps=8,
    dwell=2.0,
    objects=objects,
    box=box,
  )


def test_shapes_and_types_are_those_of_the_scene():
  scene, video = rendered(WIDE, 3)
  count = len(scene.objects)
  assert video.frames.shape == (80, 120, 200, 3)
  assert video.masks.shape == (count, 80, 120, 200)
  assert video.boxes.shape == (count, 80, 4)


def test_pixels_of_a_mask_have_the_colour_of_the_state():
  for seed in range(12):
    scene, video = rendered(WIDE if seed % 2 else WORLD, seed)
    for index, thing in enumerate(scene.objects):
      for cell in range(scene.cells):
        frame = round(cell * scene.dwell * scene.fps)
        mask = video.masks[index, frame]
        if scene.value(thing, "visibility", cell) == "hidden":
          assert not mask.any()
        else:
          pixels = video.frames[frame][mask]
          assert nearest_colour(pixels) == scene.value(thing, "colour", cell)


def test_masks_lie_in_the_zone_of_the_state():
  for seed in range(12):
    scene, video = rendered(WIDE if seed % 2 else WORLD, seed)
    for index, thing in enumerate(scene.objects):
      for cell in range(scene.cells):
        box = video.boxes[index, round(cell * scene.dwell * scene.fps)]
        if not box.any():
          continue
        centre = (box[:2] + box[2:]) / 2
        zone = scene_lib.zone_centre(scene, scene.value(thing, "place", cell))
        half = np.array([scene.width / scene.columns, scene.height / scene.rows]) / 2
        assert (np.abs(centre - zone) < half).all()


def test_a_larger_size_covers_more_pixels():
  behaviour = scene_lib.Behaviour(kind="grow", values=("small", "medium", "large"))
  for shape in config_lib.SHAPES:
    video = render_lib.render(
      make_scene(make_object(shape=shape, place="top left", behaviours=(behaviour,)))
    )
    small, medium, large = (video.masks[0, 16 * cell].sum() for cell in range(3))
    assert 1.8 * small < medium < large / 1.5


def test_an_object_in_front_hides_what_is_behind_it():
  bounce = scene_lib.Behaviour(kind="bounce", values=("top left", "top right"))
  passing = make_object(shape="square", colour="blue", place="top left", behaviours=(bounce,))
  behind = make_object(place="top right")
  scene = make_scene(behind, passing)
  video = render_lib.render(scene)
  over = video.masks[1] & video.masks[0]
  assert not over.any()
  sizes = video.masks[0].sum(axis=(1, 2))
  assert sizes[16] < 0.2 * sizes[0]
  assert (video.boxes[1, 8] > 0).all()


def test_a_cover_rises_over_the_object_and_hides_all_of_it():
  behaviour = scene_lib.Behaviour(kind="hide", values=("visible", "hidden"))
  video = render_lib.render(make_scene(make_object(place="bottom right", behaviours=(behaviour,))))
  seen = video.masks[0].sum(axis=(1, 2))
  assert seen[12] == seen[0] > seen[13] > seen[14] > seen[15]
  assert (seen[16:28] == 0).all() and seen[32] == seen[0]
  assert (video.boxes[0, 16] == 0).all()


def test_objects_share_the_box_without_touching():
  behaviour = scene_lib.Behaviour(kind="box", values=("inside", "outside"))
  things = [
    make_object(shape=shape, size="small", place=place, behaviours=(behaviour,), slot=slot)
    for slot, (shape, place) in enumerate([("circle", "top left"), ("star", "top right")])
  ]
  video = render_lib.render(make_scene(*things, box="bottom left"))
  (_, _, right, _), (left, _, _, _) = video.boxes[:, 0]
  assert right <= left
  assert (video.boxes[:, 0] >= [0, 56, 0, 56]).all() and (video.boxes[:, 0, 2] <= 56).all()


def test_a_box_is_the_smallest_around_the_mask():
  masks = np.zeros((1, 2, 10, 12), bool)
  masks[0, 1, 2:5, 3:11] = True
  np.testing.assert_array_equal(render_lib.compute_boxes(masks), [[[0, 0, 0, 0], [3, 2, 11, 5]]])


def test_the_mp4_is_h264_and_decodes_to_the_drawn_colours(tmp_path):
  for seed in range(4):
    scene, video = rendered(WORLD, seed)
    path = tmp_path / f"{seed}.mp4"
    render_lib.write_video(path, video.frames, scene.fps)
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
      assert stream.average_rate == scene.fps
    frames = decoded(path)
    assert frames.shape == video.frames.shape
    # Chroma is stored at half resolution: edges differ, so we look at the bulk.
    assert np.abs(frames.astype(int) - video.frames).mean() < 4
    for index, thing in enumerate(scene.objects):
      for cell in range(scene.cells):
        frame = round(cell * scene.dwell * scene.fps)
        if video.masks[index, frame].any():
          pixels = frames[frame][video.masks[index, frame]]
          assert nearest_colour(pixels) == scene.value(thing, "colour", cell)


def test_at_56_pixels_colour_place_and_size_can_still_be_read_from_the_file(tmp_path):
  config = config_lib.WorldConfig(
    **SMALL, behaviours=("cycle", "grow", "move"), families=("choice",)
  )
  for seed in range(12):
    scene, video = rendered(config, seed)
    render_lib.write_video(tmp_path / "a.mp4", video.frames, scene.fps)
    frames = decoded(tmp_path / "a.mp4")
    for cell in range(scene.cells):
      image = PIL.Image.fromarray(frames[round(cell * scene.dwell * scene.fps)])
      read = read_zones(np.asarray(image.resize((56, 56), PIL.Image.Resampling.BICUBIC)))
      expected = [
        tuple(scene.value(thing, name, cell) for name in ("place", "colour", "size"))
        for thing in scene.objects
      ]
      assert sorted(read) == sorted(expected)


def read_zones(image):
  """(place, colour, size) of the coloured object in each quarter of a 56 x 56 image."""
  objects = []
  for index, place in enumerate(config_lib.place_names(2, 2)):
    row, column = divmod(index, 2)
    zone = image[28 * row : 28 * row + 28, 28 * column : 28 * column + 28].astype(int)
    saturation = np.ptp(zone, axis=2)
    bright = saturation > 50
    if not bright.any():
      continue
    core = saturation > 0.75 * saturation.max()  # without the rim, which mixes with the background
    height = np.ptp(np.nonzero(bright)[0]) + 1
    size = config_lib.SIZES[int(height > 12.5) + int(height > 18.5)]
    objects.append((place, nearest_colour(zone[core]), size))
  return objects


def test_the_same_frames_give_the_same_file(tmp_path):
  scene, video = rendered(WORLD, 5)
  for name in ("a", "b"):
    render_lib.write_video(tmp_path / name, video.frames, scene.fps)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (2, 63, 64, 3)])
def test_a_video_without_frames_or_of_odd_size_is_refused(tmp_path, shape):
  with pytest.raises(errors.InputError, match=r"out\.mp4"):
    render_lib.write_video(tmp_path / "out.mp4", np.zeros(shape, np.uint8), 8)
