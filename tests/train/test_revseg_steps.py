"""ReVSeg through an RL step: a clip and a key frame of another size, and what episodes earn."""

import dataclasses
import functools
import itertools
import json
import shutil

import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, main, records, run_length
from vr_jax.data import batches, examples, frame_store, mask_store
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import grounding, registry, revseg
from vr_jax.eval import evaluated_episode, evaluated_replies, segmentation
from vr_jax.models import sam2
from vr_jax.models.common import processor
from vr_jax.models.sam2 import parameters
from vr_jax.rollout import dialogue
from vr_jax.train import check_examples, data_stage, metrics, paths, rl_loop, run_context

RECIPE = "configs/revseg.py"


def config(tmp_path, **changes):
  overrides = {**nano.SHORT_GROUNDING, **changes, "data__directory": str(tmp_path / "data")}
  return nano.config(RECIPE, **overrides)


def frame(index):
  answer = [{"frame_idx": index, "object description": "the star"}]
  return f"<think></think>\n<answer>{json.dumps(answer)}</answer>"


def box(width, height):
  """The left half of a frame whose edges have these numbers."""
  answer = [{"bbox_2d": [0, 0, width // 2, height]}]
  return f"<think></think>\n<answer>{json.dumps(answer)}</answer>"


def say(monkeypatch, first, last):
  """Makes first replies say `first()`, and those that are first read at the end `last()`.

  Returns the texts by their tokens.
  """
  texts, ended = {}, []

  def decoded(_, ids):
    return texts.setdefault(tuple(map(int, ids)), (last if ended else first)())

  def spans(task, reply, turn):
    ended.append(turn)
    return ((len(reply), turn),)

  monkeypatch.setattr(processor.VideoProcessor, "decode", decoded)
  monkeypatch.setattr(revseg.ReVSeg, "segment_spans", spans)
  return texts


@pytest.mark.parametrize(
  ("size", "told", "left_half"),
  [("tiny", False, box(112, 112)), ("tiny_qwen3vl", True, box(1000, 1000))],
  ids=["tiny", "tiny_qwen3vl"],
)
def test_a_step_plays_learns_and_scores_episodes_that_show_frames_of_two_sizes(
  tmp_path, monkeypatch, size, told, left_half
):
  nano.use_devices(monkeypatch, 1)
  said = functools.partial(next, itertools.cycle([*map(frame, range(8)), "none"]))
  texts, turns, earned = say(monkeypatch, said, lambda: left_half), {}, []
  play, finish = processor.VideoProcessor.continue_conversation, revseg.ReVSeg.finish_batch

  def continued(self, messages, **options):
    encoded = play(self, messages, **options)
    text = self.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False)
    turns[tuple(map(int, options["after"]))] = encoded, text
    return encoded

  def finished(task, asked, replies, scores, **options):
    earned.append((asked, replies, scores))
    return finish(task, asked, replies, scores, **options)

  monkeypatch.setattr(processor.VideoProcessor, "continue_conversation", continued)
  monkeypatch.setattr(revseg.ReVSeg, "finish_batch", finished)
  run = config(tmp_path, size=size)
  data_stage.prepare(run, tmp_path)
  turns.clear()  # of the checks of the data
  rl_loop.train(run, tmp_path)
  (values,) = [each["values"] for each in metrics.read(tmp_path / "metrics.jsonl")]
  # Sampler and update see the same frames at the same places, so the ratio is 1.
  assert values["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
  assert np.isfinite(values["loss"])
  assert {shown.patches for shown, _ in turns.values()} == {64}  # 112 x 112 pixels, or 128 x 128
  ((asked, replies, scores),) = earned
  times = replies.episodes[0][0].times  # of every video
  for after, (_, text) in turns.items():
    time = times[json.loads(texts[after].split("<answer>")[1][:-9])[0]["frame_idx"]]
    assert (f"<{time:.1f} seconds><|vision_start|>" in text) == told
  totals = []
  for example, group, total in zip(asked, replies.episodes, scores.total, strict=True):
    for episode, given in zip(group, total, strict=True):
      expected = expected_rewards(example, episode)
      np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
      totals.append(sum(expected))
  assert len(set(totals)) > 2
  assert 1 < values["turns"] < 2
  assert 0 < values["key_frame_visible"] <= 1


def expected_rewards(example, episode):
  """What an episode of the replies above earns in each turn, from the boxes at its frames."""
  if episode.replies[0] == "none":
    return 0, 0
  track = example.object_track
  boxes = [
    track.boxes[int(np.argmin(np.abs(track.times - time)))].astype(float) for time in episode.times
  ]
  areas = [0 if np.isnan(b[0]) else (b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
  chosen = json.loads(episode.replies[0].split("<answer>")[1][:-9])[0]["frame_idx"]
  value = (areas[chosen] - min(areas)) / (max(areas) - min(areas)) if areas[chosen] else 0
  left, top, right, bottom = boxes[chosen]
  shared = max(0, min(right, track.width / 2) - left) * (bottom - top)
  union = areas[chosen] + track.width / 2 * track.height - shared
  return 0.5 + value, 0.5 + (areas[chosen] > 0 and shared / union > 0.5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A run whose data is there: its config, its context and the first example to train on."""
  folder = tmp_path_factory.mktemp("revseg")
  run = config(folder, sft__steps=1)
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    data_stage.prepare(run, folder)
    context = run_context.make_run_context(run, folder)
  shards = paths.shards_directory(run, folder)
  return run, context, shards, examples.ExampleSource(shards, "train")[0]


def test_supervised_conversations_teach_a_reply_an_epoch_with_frames_of_both_sizes(prepared):
  run, context, shards, example = prepared
  store = frame_store.FrameStore(shards / "frames")
  iterator = context.builder.read("train", 4, view="supervised")
  items = next(iterator).items
  learnt = {}
  for epoch in range(3):
    for clip in (item.clip for item in items):
      item = context.builder.item(clip, epoch, view="supervised")
      patches = [frame.patches for frame in item.encoded.frames]
      assert patches in ([16] * 4, [16, 16, 16, 16, 64])
      assert ("bbox_2d" in context.processor.decode(item.reply)) == (len(patches) == 5)
      learnt.setdefault(clip.example.id, []).append(len(patches))
  for turns in learnt.values():  # each epoch another reply
    assert turns in ([4, 5, 4], [5, 4, 5])
  clip = next(item.clip for item in items)
  replies = context.environment.reference_replies(clip.example, clip.timestamps)
  scene = dialogue.EpisodeScene(example=clip.example, pool=clip)
  host = dialogue.Dialogue(
    environment=context.environment,
    processor=context.processor,
    scenes=(scene,),
    question_first=run.model.question_first,
  )
  whole = host.prompt(0, replies[:1])
  assert [frame.patches for frame in whole.frames] == [16, 16, 16, 16, 64]
  kinds = [grid.kind for grid in whole.grids]
  assert kinds == [records.Kind.VIDEO, records.Kind.IMAGE]
  assert store.size(example.video) == (64, 64)


@pytest.fixture
def evaluated(prepared):
  """evaluated(*replies) -> an evaluated episode of the example, and its frames' times."""
  run, context, shards, example = prepared
  store = frame_store.FrameStore(shards / "frames")
  clip = batches.select_clip(example, store, paths.sampling_rule(run.data))
  times = tuple(clip.timestamps.tolist())

  def make(*replies):
    return evaluated_episode.EvaluatedEpisode(
      example=example,
      clip=clip,
      reply=replies[-1],
      tokens=1,
      truncated=False,
      answer=None,
      accuracy=0.0,
      steps=[],
      observation=None,
      rewards={},
      segment_rewards={f"turn {turn + 1}": {} for turn in range(len(replies))},
      episode=environment_lib.Episode(
        pool=len(clip), relevant=(), replies=tuple(replies), times=times
      ),
      grounding=context.environment.grounding(replies, len(clip), (64, 64)),
    )

  return make


def test_an_evaluated_reply_says_what_was_found_and_what_is_true(prepared, evaluated):
  _, context, _, example = prepared
  clip = evaluated("none").clip
  replies = context.environment.reference_replies(example, clip.timestamps)

  def record(*replies):
    return evaluated_replies.to_json(context.environment, evaluated(*replies), {})["grounding"]

  found = record(*replies)
  track = example.object_track
  largest = int(
    np.nanargmax([np.prod(b[2:] - b[:2]) for b in grounding.boxes_at(example, clip.timestamps)])
  )
  true_box = track.boxes[np.argmin(np.abs(track.times - clip.timestamps[largest]))]
  assert (found["frame"], found["time"]) == (largest, clip.timestamps[largest])
  assert (found["height"], found["width"], found["problem"]) == (64, 64, "")
  assert found["true_box"] == true_box.tolist()
  # A reply counts whole pixels of 112, and the video has 64.
  np.testing.assert_allclose(found["box"], true_box, atol=0.5 * 64 / 112 + 1e-6)
  assert found["description"] == example.extra["description"][:16]
  for frame_alone in (record(replies[0]), record(replies[0], "no box")):
    assert (frame_alone["frame"], frame_alone["box"]) == (largest, None)
    assert frame_alone["true_box"] == found["true_box"]
  nothing = record("none")
  assert nothing == {
    **dict.fromkeys(("frame", "time", "box", "true_box")),
    "description": "",
    "problem": "json",
    "height": 64,
    "width": 64,
  }


def test_what_can_be_known_before_training_is_an_error_before_training(prepared):
  run, context, shards, example = prepared
  store = frame_store.FrameStore(shards / "frames")
  checks = functools.partial(check_examples.Checks, shards=shards, processor=context.processor)

  def problem(changes, of=example):
    changed = run.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    environment = registry.make_environment(changed, box_scale=context.processor.box_scale)
    made = checks(config=changed, environment=environment)
    found = made.problems([of], store, "train", check_examples.GoodExamples())
    return next((problem for _, _, problem in found), "")

  assert problem({}) == ""
  assert "64 patches a frame shown in a later turn" in problem({"turns.patch_buckets": (16,)})
  assert "tokens shown in a turn" in problem({"env.description_bytes": 400})
  assert "temporal patches" in problem({"model.frame_buckets": (3,)})
  track = example.object_track
  late = records.ObjectTrack(
    times=track.times + 0.1, boxes=track.boxes, height=track.height, width=track.width
  )
  absent = records.ObjectTrack(
    times=track.times, boxes=np.full_like(track.boxes, np.nan), height=64, width=64
  )
  replace = functools.partial(examples.dataclasses.replace, example)
  assert "field 'masks': has none of the frame at 0 s" in problem({}, replace(object_track=late))
  assert "for a query, an object that is visible" in problem({}, replace(object_track=absent))
  assert problem({"sft.steps": 0}, replace(object_track=absent)) == ""
  assert "field 'masks': is missing" in problem({}, replace(object_track=None))


def test_queries_about_videos_that_the_filter_found_are_not_trained_on(prepared):
  run, context, shards, example = prepared
  changed = run.copy_and_resolve_references()
  changed.mask_filter.sam2 = "weights"
  before = context.builder.checks.find_unusable()
  checks = dataclasses.replace(context.builder.checks, config=changed)
  with pytest.raises(errors.InputError, match="run --mode=filter first"):
    checks.find_unusable()
  source = examples.ExampleSource(shards, "train")
  videos = [source[index].video for index in range(len(source))]
  ious = {video: 0.59 if video == example.video else 0.6 for video in videos}
  folder = shards.parent / "mask_filter"
  folder.mkdir()
  (folder / "summary.json").write_text(json.dumps({"ious": ious}))
  try:
    about = {index for index, video in enumerate(videos) if video == example.video}
    found = checks.find_unusable()
    assert found == {**before, "train": before["train"] | about}
    assert 0 < len(about) < len(source)
    # The first example of a warm start is then one of another video, whose reply is checked.
    changed.sft.examples = 1
    others = changed.copy_and_resolve_references()
    others.mask_filter.threshold = 0.5
    unfiltered = dataclasses.replace(checks, config=others)
    assert checks.result_file != unfiltered.result_file
    other = source[min(set(range(len(source))) - about)]
    track = other.object_track
    absent = dataclasses.replace(track, boxes=np.full_like(track.boxes, np.nan))
    pair = [example, dataclasses.replace(other, object_track=absent)]
    store = frame_store.FrameStore(shards / "frames")
    found = [
      [text for _, _, text in each.problems(pair, store, "train", check_examples.GoodExamples())]
      for each in (checks, unfiltered)
    ]
    assert "for a query, an object that is visible" in "".join(found[0]) and not found[1]
    changed.mask_filter.threshold = 0.7
    with pytest.raises(errors.InputError, match="leaves no query; lower"):
      checks.find_unusable()
  finally:
    shutil.rmtree(folder)


def write_sam2(directory):
  """Writes a SAM2 of random weights, and returns it."""
  smallest = sam2.smallest(64)
  segmenter = sam2.Segmenter(smallest, parameters.initialise(smallest, 0))
  sam2.save(segmenter, directory)
  return segmenter


def iou_of_frames(segmenter, shards, video):
  """The mean IoU of what SAM2 makes of the true boxes in each frame alone."""
  frames = frame_store.FrameStore(shards / "frames").read(video, range(8))
  masks = mask_store.MaskStore(shards / "masks")
  names, ious = masks.instances(video), []
  # Annotated are 32 frames, of which every fourth is stored.
  truth = np.array([masks.read(video, [name], range(0, 32, 4)) for name in names])
  prompts = []
  for frame in range(8):
    places = [np.argwhere(mask)[:, ::-1] for mask in truth[:, frame]]
    corners = [map(float, (*each.min(axis=0), *each.max(axis=0) + 1)) for each in places]
    prompts.append([sam2.BoxPrompt(object=n, frame=0, box=(*c,)) for n, c in enumerate(corners)])
  for frame, found in enumerate(sam2.track_videos(segmenter, [*frames[:, None]], prompts)):
    mine, right = found.masks[:, 0], truth[:, frame]
    ious.append((mine & right).sum(axis=(1, 2)) / (mine | right).sum(axis=(1, 2)))
  return np.mean(ious)


def test_training_reads_no_video_that_mode_filter_finds_with_sam2(
  prepared, tmp_path, monkeypatch, capsys
):
  run, context, shards, _ = prepared
  nano.use_devices(monkeypatch, 1)
  segmenter = write_sam2(tmp_path / "sam2")
  changed = run.copy_and_resolve_references()
  changed.mask_filter.sam2 = str(tmp_path / "sam2")
  source = examples.ExampleSource(shards, "train")
  videos = {source[index].video for index in range(len(source))}
  expected = {video: iou_of_frames(segmenter, shards, video) for video in sorted(videos)}
  folder = shards.parent / "mask_filter"
  try:
    main.run(changed, tmp_path / "run", "filter")
    ious = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["ious"]
    assert "4 of 4 videos have a mean IoU below 0.6" in capsys.readouterr().out
    assert len(ious) == 4 and {video: ious[video] for video in videos} == pytest.approx(expected)
    lowest = min(videos, key=expected.__getitem__)
    changed.mask_filter.threshold = sorted(expected.values())[1]
    builder = dataclasses.replace(context, config=changed).builder
    for read, kept in ((context.builder, videos), (builder, videos - {lowest})):
      batches_read = read.read("train", 2, repeat=False)
      assert {item.example.video for batch in batches_read for item in batch.items} == kept
  finally:
    shutil.rmtree(folder)


def test_an_evaluation_has_the_masks_of_a_tracker_and_their_scores(prepared, tmp_path, monkeypatch):
  run, context, shards, _ = prepared
  nano.use_devices(monkeypatch, 1)
  first, second = examples.ExampleSource(shards, "test")  # the two objects of a video
  store = frame_store.FrameStore(shards / "frames")
  # Both queries get the replies that are right for the first.
  answers = context.environment.reference_replies(first, store.timestamps(first.video))
  say(monkeypatch, lambda: answers[0], lambda: answers[1])
  segmenter, found = write_sam2(tmp_path / "sam2"), {}
  for tracker in ("exact", str(tmp_path / "sam2")):
    changed = run.copy_and_resolve_references()
    changed.sft.steps, changed.eval.tracker = 0, tracker
    main.run(changed, tmp_path / "run", "eval")
    written = tmp_path / "run" / "eval" / "before_rl.json"
    replies = written.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    found[tracker] = json.loads(written.read_bytes()), [*map(json.loads, replies)]
  true_masks = [
    mask_store.MaskStore(shards / "masks").read(
      first.video, each.object_track.instances, range(0, 32, 4)
    )
    for each in (first, second)
  ]
  key = found["exact"][1][0]["grounding"]
  prompt = sam2.BoxPrompt(object=0, frame=key["frame"], box=(*key["box"],))
  videos = [store.read(first.video, range(8))] * 4  # as many as are compiled for
  by_sam2 = sam2.track_videos(segmenter, videos, [[prompt]] * 4)[0].masks[0]
  assert by_sam2.any()
  for (evaluation, replies), expected in zip(found.values(), (true_masks[0], by_sam2), strict=True):
    scores = [segmentation.j_and_f(expected, each) for each in true_masks]
    for reply, score in zip(replies, scores, strict=True):
      masks = reply["grounding"]["masks"].values()
      np.testing.assert_array_equal([run_length.decode(x, 64, 64) for x in masks], expected)
      assert reply["metrics"]["j_and_f"] == pytest.approx(score.j_and_f)
    for field, name in (("j", "region_similarity"), ("f", "boundary_f"), ("j_and_f", "j_and_f")):
      mean = np.mean([getattr(each, field) for each in scores])
      assert evaluation["metrics"][name] == pytest.approx(mean)
      assert name in evaluation["shown_as"]
  assert found["exact"][1][0]["metrics"]["j_and_f"] == 1


def test_too_small_buckets_and_stored_frames_are_named(tmp_path):
  for field, value in (
    ("turns__episode_buckets", (64,)),
    ("data__max_side", 56),
    ("env__key_frame_size", (56, 280)),
    ("env__frame_size", (28, 56)),
  ):
    with pytest.raises(errors.InputError, match=field.replace("__", r"\.")):
      revseg.ReVSeg.check_config(config(tmp_path, **{field: value}))
