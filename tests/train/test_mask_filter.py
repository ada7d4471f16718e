import ml_collections
import numpy as np
import pytest

from vr_jax import base_config
from vr_jax.data import frame_store, ingest, mask_store
from vr_jax.errors import InputError
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters
from vr_jax.train import mask_filter
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import write

WORLD = config_lib.WorldConfig(
  height=64,
  width=96,
  rows=2,
  columns=2,
  seconds=8.0,
  shown=8.0,
  fps=4,
  dwell=1.0,
  objects_min=2,
  objects_max=2,
  behaviours=config_lib.TRACK_BEHAVIOURS,
  families=("described", "recoloured", "stayed"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("filter")
  write.write_dataset(root / "raw", WORLD, videos=4, seed=1, questions_per_video=2)
  notes = root / "raw" / "annotations.jsonl"
  config = ingest.IngestConfig(fps=2.0, max_side=48, validation_fraction=0.0, test_fraction=0.25)
  ingest.ingest(root / "raw" / "videos", notes, root / "shards", config)
  return root


def whole_boxes(frames, boxes):
  """Fills the boxes: of shapes other than squares too much."""
  found = []
  for each in boxes:
    masks = np.zeros((len(each), *frames.shape[1:3]), bool)
    for mask, (left, top, right, bottom) in zip(masks, each, strict=True):
      mask[int(top) : int(bottom), int(left) : int(right)] = True
    found.append(masks)
  return found


def nothing(frames, boxes):
  return [np.zeros((len(each), *frames.shape[1:3]), bool) for each in boxes]


def true_ious(data, video):
  """The IoU of filled boxes with masks, from the stored masks alone; for videos as they are."""
  masks = mask_store.MaskStore(data / "shards" / "masks")
  times = frame_store.FrameStore(data / "shards" / "frames").timestamps(video)
  found = []
  for name in masks.instances(video):
    annotated = masks.times(video, [name])
    chosen = [int(np.flatnonzero(np.isclose(annotated, time))[0]) for time in times]
    for mask in masks.read(video, [name], chosen):
      scaled = mask_filter._scale(mask, (32, 48))
      rows, columns = np.nonzero(scaled)
      if len(rows):
        found.append(len(rows) / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
  return found


def test_the_mean_is_over_all_instances_that_queries_ask_for_and_frames_that_show_them(
  data, tmp_path
):
  ious = mask_filter.decide(tmp_path / "out", data / "shards", "box", whole_boxes)
  assert list(ious) == sorted(frame_store.FrameStore(data / "shards" / "frames").videos)
  wanted = mask_filter._wanted_instances(data / "shards")
  store = mask_store.MaskStore(data / "shards" / "masks")
  every = [video for video in ious if len(wanted[video]) == len(store.instances(video))]
  assert every
  for video in every:
    assert ious[video] == pytest.approx(np.mean(true_ious(data, video)))
  assert len({round(iou, 4) for iou in ious.values()}) == 4
  nothing_found = mask_filter.decide(tmp_path / "none", data / "shards", "none", nothing)
  assert {*nothing_found.values()} == {0.0}


def test_a_killed_filter_goes_on_and_ends_with_the_same_bytes(data, tmp_path):
  whole = tmp_path / "whole"
  mask_filter.decide(whole, data / "shards", "box", whole_boxes)
  killed, calls = tmp_path / "killed", []

  def dies(frames, boxes):
    calls.append(len(frames))
    if len(calls) == 5:
      raise KeyboardInterrupt
    return whole_boxes(frames, boxes)

  with pytest.raises(KeyboardInterrupt):
    mask_filter.decide(killed, data / "shards", "box", dies)
  done = (killed / "ious.jsonl").read_text()
  assert 0 < len(done.splitlines()) < 4 and not (killed / "summary.json").exists()
  with (killed / "ious.jsonl").open("a") as file:
    file.write('{"video": "0000')  # what a machine that lost its power leaves
  again = []
  mask_filter.decide(
    killed,
    data / "shards",
    "box",
    lambda frames, boxes: again.append(len(frames)) or whole_boxes(frames, boxes),
  )
  assert max(again) == mask_filter.BATCH
  for name in ("about.json", "ious.jsonl", "summary.json"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  # Complete results are left as they are.
  mask_filter.decide(killed, data / "shards", "box", dies)
  with pytest.raises(InputError, match="results of other data or weights of SAM2"):
    mask_filter.decide(killed, data / "shards", "other", whole_boxes)


def test_what_is_left_out_depends_on_the_threshold(data, tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "shards").symlink_to(data / "shards")
  config = ml_collections.ConfigDict({"data": {"directory": ""}})
  assert mask_filter.dropped_videos(config, tmp_path / "data" / "shards") == frozenset()
  base_config.mask_filter(config)
  assert mask_filter.dropped_videos(config, tmp_path / "data" / "shards") == frozenset()
  config.mask_filter.sam2 = "weights"
  assert mask_filter.dropped_videos(config, tmp_path / "data" / "shards") is None
  output = mask_filter.directory(config, tmp_path)
  ious = mask_filter.decide(output, tmp_path / "data" / "shards", "box", whole_boxes)
  low, second, *_ = sorted(ious, key=ious.__getitem__)
  for threshold, expected in ((0.0, set()), (ious[second], {low}), (1.01, {*ious})):
    config.mask_filter.threshold = threshold
    assert mask_filter.dropped_videos(config, tmp_path / "data" / "shards") == expected


@pytest.mark.parametrize(
  ("sam2", "problem"),
  [
    ("", "--config.mask_filter.sam2: --mode=filter needs the weights"),
    ("nowhere", "run --mode=data first"),
  ],
)
def test_what_is_missing_is_named(tmp_path, sam2, problem):
  config = ml_collections.ConfigDict({"data": {"directory": ""}, "recipe": "grpo"})
  with pytest.raises(InputError, match="grpo: trains on no masks"):
    mask_filter.write(config, tmp_path)
  base_config.mask_filter(config)
  config.mask_filter.sam2 = sam2
  with pytest.raises(InputError, match=problem):
    mask_filter.write(config, tmp_path)


def test_damaged_results_are_named(data, tmp_path):
  output = tmp_path / "out"
  mask_filter.decide(output, data / "shards", "box", whole_boxes)
  (output / "summary.json").unlink()
  (output / "ious.jsonl").write_text("{}\n")
  with pytest.raises(InputError, match=r"ious.jsonl: is damaged; remove it"):
    mask_filter.decide(output, data / "shards", "box", whole_boxes)
  (output / "about.json").write_text("{")
  with pytest.raises(InputError, match=r"about.json: is damaged"):
    mask_filter.decide(output, data / "shards", "box", whole_boxes)


def test_each_frame_is_segmented_by_sam2_whatever_stands_beside_it(data):
  config = sam2.smallest(64)
  segmenter = sam2.Segmenter(config, parameters.initialise(config, 0))
  store = frame_store.FrameStore(data / "shards" / "frames")
  frames = store.read(store.videos[0], [0, 5, 9])
  boxes = [[(3.0, 4.0, 20.0, 18.0), (30.0, 8.0, 44.0, 30.0)], [(0.0, 0.0, 48.0, 32.0)],
           [(10.0, 10.0, 40.0, 22.0), (1.0, 1.0, 9.0, 9.0)]]  # fmt: skip
  together = mask_filter._segment(segmenter, frames, boxes)
  assert [masks.shape for masks in together] == [(2, 32, 48), (1, 32, 48), (2, 32, 48)]
  # Frame 2 on its own is padded with itself; frame 1 gets a second box to be of the same shape.
  alone = mask_filter._segment(segmenter, frames[2:], boxes[2:])
  np.testing.assert_array_equal(alone[0], together[2])
  swapped = mask_filter._segment(segmenter, frames[::-1], boxes[::-1])
  for one, other in zip(together, swapped[::-1], strict=True):
    np.testing.assert_array_equal(one, other)
