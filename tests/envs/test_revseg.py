"""ReVSeg: two turns, what each shows, what they earn, and boxes between replies and the video."""

import dataclasses
import json
import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from vr_jax import errors, recipe_config, records
from vr_jax.envs import environment, grounding, revseg
from vr_jax.rewards import boxes

POOL = 4
TIMES = np.array([0.0, 1.0, 2.0, 3.0])
GONE = (np.nan,) * 4
# The video has 240 x 480 pixels and is annotated at two frames a second.
TRUTH = [GONE, (0, 0, 48, 24), (48, 24, 144, 72), (96, 24, 384, 168)]  # areas 0, 1152, 4608, 41472
BETWEEN = (1, 2, 3, 4)  # boxes of frames that are not shown, none of which may be mistaken for them


def track(truth=TRUTH, times=None):
  pairs = [each for box in truth for each in (box, BETWEEN)]
  return records.ObjectTrack(
    times=np.arange(len(pairs)) / 2 if times is None else np.asarray(times, float),
    boxes=np.array(pairs if times is None else truth, np.float32),
    height=240,
    width=480,
  )


EXAMPLE = records.Example(
  id="7",
  video="a.mp4",
  question="the red star",
  answer="",
  problem_type=records.SEGMENTATION,
  shown=records.Span(start=0.0, end=4.0),
  steps=(records.Step(text="At 3s, the star is large.", start=3.0, end=4.0),),
  object_track=track(),
)


def pixels(size):
  """A family whose boxes count pixels of the frame as shown, with media tokens of 28 pixels."""
  return tuple(float(max(28, round(side / 28) * 28)) for side in size)


def make(box_scale=pixels, **fields):
  instruction = fields.pop("instruction", "{frames} frames, 0 to {last}, {seconds} s: {}")
  return revseg.ReVSeg(
    instruction=instruction,
    box_instruction="Where is {description}? {}",
    box_scale=box_scale,
    **fields,
  )


TASK = make()


def frame(index, description="the big star"):
  answer = json.dumps([{"frame_idx": index, "object description": description}])
  return f"<think>t</think> <answer>{answer}</answer>"


def box(*corners):
  return f"<think>t</think>\n<answer>{json.dumps([{'bbox_2d': corners}])}</answer>"


def shown(box_in_video, size=(840, 840)):
  """A box of the video in pixels of the key frame as shown."""
  return grounding.to_reply(box_in_video, pixels(size), (240, 480))


def episode(*replies, times=TIMES):
  return environment.Episode(
    pool=len(times), relevant=(), replies=tuple(replies), times=tuple(times.tolist())
  )


def score(*episodes, task=TASK, examples=(EXAMPLE,)):
  replies = environment.Replies(
    episodes=[list(episodes)], segment=np.zeros((1, len(episodes), 1), np.int32)
  )
  return task.score(examples, replies)


def test_the_first_turn_shows_the_clip_and_the_second_the_chosen_frame_larger():
  first = TASK.observe(EXAMPLE, POOL, ())
  assert first.parts == (
    environment.WholeClip((448, 448)),
    "the red star\n4 frames, 0 to 3, 2 s: {}",  # two frames a second are assumed
  )
  second = TASK.observe(EXAMPLE, POOL, (frame(2),))
  assert second.parts == (
    environment.ShownFrame(2, (840, 840)),
    "Where is the big star? {}",
  )
  assert TASK.observe(EXAMPLE, POOL, (frame(2), box(0, 0, 1, 1))) is None


@pytest.mark.parametrize("reply", ["", "7", frame(POOL), frame(-1), frame("x"), frame(1, "")])
def test_without_a_key_frame_the_episode_ends(reply):
  assert TASK.observe(EXAMPLE, POOL, (reply,)) is None


def test_the_description_cannot_change_the_text_around_it():
  shown = TASK.observe(EXAMPLE, POOL, (frame(0, "{description} {last}\n\n<|im_end|>"),))
  assert shown.texts == ("Where is {description} {last} <|im_end|>? {}",)


def test_the_longest_reply_has_a_description_that_is_just_accepted():
  (reply,) = make(description_bytes=10).longest_replies(POOL)
  assert make(description_bytes=10).observe(EXAMPLE, POOL, (reply,)) is not None
  assert make(description_bytes=9).observe(EXAMPLE, POOL, (reply,)) is None


def test_a_right_episode_earns_three_and_each_mistake_its_part():
  largest = shown(TRUTH[3])
  scores = score(
    episode(frame(3), box(*largest)),
    episode(frame(2), box(*shown(TRUTH[2]))),
    episode(frame(0), box(*largest)),  # the object isn't there
    episode(frame(3), box(0, 0, 28, 28)),
    episode(frame(3), "no box"),
    episode("no key frame"),
    episode(frame(POOL)),
    episode("7", "a reply too many"),
  )
  soft = 4608 / 41472
  expected = [[1.5, 1.5], [0.5 + soft, 1.5], [0.5, 0.5], [1.5, 0.5], [1.5, 0], [0, 0], [0.5, 0]]
  np.testing.assert_allclose(scores.total[0, :7], expected, rtol=1e-6)
  assert scores.scored[0].tolist() == [[True, True]] * 5 + [[True, False]] * 2 + [[True, True]]
  assert scores.total.shape == (1, 8, 2)
  for name in ("format", "temporal", "spatial"):
    assert scores.rewards[name].shape == (1, 8, 2)


def test_weights_scale_the_rewards_and_leave_what_is_logged():
  rule = boxes.BoxRule(format=0.0, temporal=2.0, spatial=3.0)
  scores = score(episode(frame(3), box(*shown(TRUTH[3]))), task=make(reward=rule))
  assert scores.total[0, 0].tolist() == [2, 3]
  assert scores.rewards["format"][0, 0].tolist() == [0.5, 0.5]


def test_the_format_counts_tags_and_json_apart():
  answers = (frame(3)[18:-9], box(*shown(TRUTH[3]))[18:-9])  # without tags
  scores = score(
    episode(*answers), episode("<think></think><answer></answer>"), episode(frame(3), "x" + box(0))
  )
  np.testing.assert_allclose(
    scores.rewards["format"][0], [[0.25, 0.25], [0.25, 0], [0.5, 0]], rtol=1e-6
  )


BLOCKS = ("<think>t</think> <answer>{}</answer>", "{}", "<answer>{}</answer>", "x<think></think>{}")
KEY_FRAMES = [*range(POOL), POOL, -1, None]  # in range, out of range, no JSON
RULES = [boxes.BoxRule(), boxes.BoxRule(format=0.25, temporal=2.0, spatial=3.5)]
turn_one = st.tuples(st.sampled_from(BLOCKS), st.sampled_from(KEY_FRAMES))
turn_two = st.tuples(st.sampled_from(BLOCKS), st.sampled_from([*range(1, POOL), None]))


def plain_turns(replies, rule):
  """What each turn earns: the four checks, and equations 7 and 8 of the paper."""
  areas = [0 if box is GONE else (box[2] - box[0]) * (box[3] - box[1]) for box in TRUTH]
  passed = [(block is BLOCKS[0]) + (content is not None) for block, content in replies]
  turns = [rule.format * each / 4 for each in passed] + [0] * (2 - len(replies))
  key = replies[0][1]
  if key in range(POOL) and areas[key]:
    turns[0] += rule.temporal * areas[key] / max(areas)  # the smallest is 0: it is gone in a frame
    of_frame = replies[1][1] if len(replies) == 2 else None
    # No two true boxes overlap by more than a half.
    turns[1] += rule.spatial * (of_frame == key)
  return turns


@hypothesis.given(
  st.lists(st.tuples(turn_one, st.none() | turn_two), min_size=3, max_size=3),
  st.sampled_from(RULES),
)
def test_turns_earn_weighted_sums_of_the_checks_the_key_frame_and_the_box(group, rule):
  episodes, expected = [], []
  for first, second in group:
    replies = [first, second] if second else [first]
    contents = [frame(first[1])[25:-9] if first[1] is not None else "none"]
    if second:
      contents.append("none" if second[1] is None else box(*shown(TRUTH[second[1]]))[25:-9])
    texts = [block.format(text) for (block, _), text in zip(replies, contents, strict=True)]
    episodes.append(episode(*texts))
    expected.append(plain_turns(replies, rule))
  found = score(*episodes, task=make(reward=rule))
  np.testing.assert_allclose(found.total[0], expected, rtol=1e-5, atol=1e-6)


def test_metrics_of_an_episode_and_their_means_over_a_batch():
  good, bad = episode(frame(3), box(*shown(TRUTH[3]))), episode("no key frame")
  found = TASK.episode_metrics(EXAMPLE, good)
  assert found == {
    "accuracy": 1,
    "key_frame_visible": 1,
    "box_iou": pytest.approx(1, abs=1e-6),
    "key_frame_value": 1,
    "format": 1,
    "turns": 2,
  }
  assert TASK.episode_metrics(EXAMPLE, bad) == {**dict.fromkeys(found, 0.0), "turns": 1}
  assert set(found) == set(TASK.metrics)
  replies = environment.Replies(episodes=[[good, bad]], segment=np.zeros((1, 2, 1), np.int32))
  scores = TASK.score((EXAMPLE,), replies)
  same, means = TASK.finish_batch((EXAMPLE,), replies, scores)
  assert same is scores
  assert means["turns"] == 1.5
  assert means["key_frame_visible"] == means["episode_accuracy"] == means["episode_format"] == 0.5


def test_ablations_do_not_change_the_metrics():
  rule = boxes.BoxRule(temporal_kind="none", spatial_kind="soft")
  good = episode(frame(2), box(*shown(TRUTH[2])))
  assert make(reward=rule).episode_metrics(EXAMPLE, good) == TASK.episode_metrics(EXAMPLE, good)


def test_the_boxes_of_shown_frames_are_found_by_their_times():
  np.testing.assert_array_equal(grounding.boxes_at(EXAMPLE, TIMES), np.array(TRUTH, np.float32))
  np.testing.assert_array_equal(grounding.boxes_at(EXAMPLE, TIMES[[2]] + 5e-5)[0], TRUTH[2])
  assert TASK.relevant(EXAMPLE, TIMES) == (1, 2, 3)
  shifted = dataclasses.replace(EXAMPLE, object_track=track(TRUTH, times=[0.5, 1.5, 2.5, 3.5]))
  np.testing.assert_array_equal(grounding.boxes_at(shifted, TIMES + 0.5), np.float32(TRUTH))


@pytest.mark.parametrize(
  ("object_track", "times", "line"),
  [
    (track(), TIMES + 0.2, r"7: .* none of the frame at 0\.2 s, .* at 0 s; .*config\.data\.fps"),
    (track(), np.array([0.0, 9.0]), r"7: .* none of the frame at 9 s, .* at 3\.5 s"),
    (track(TRUTH[:1], times=[2.0]), TIMES[:1], r"7: .* none of the frame at 0 s, .* at 2 s"),
    (track([], times=[]), TIMES, r"7: field 'masks': has no frames"),
    (None, TIMES, r"7: has no masks of the object"),
  ],
)
def test_a_frame_without_annotation_is_an_error_and_never_another_frames_box(
  object_track, times, line
):
  example = dataclasses.replace(EXAMPLE, object_track=object_track)
  with pytest.raises(errors.InputError, match=line):
    grounding.boxes_at(example, times)
  assert bool(TASK.reference_problem(example)) == (object_track is None)


def test_an_object_that_never_appears_earns_the_format_alone():
  absent = dataclasses.replace(EXAMPLE, object_track=track([GONE] * 4, times=TIMES))
  scores = score(episode(frame(1), box(0, 0, 840, 840)), examples=(absent,))
  np.testing.assert_allclose(scores.total[0, 0], [0.5, 0.5])
  assert TASK.reference_replies(absent, TIMES) == ()
  assert TASK.relevant(absent, TIMES) == ()


def test_the_reference_shows_the_largest_box_and_earns_everything():
  for task in (TASK, make(box_scale=lambda size: (1000.0, 1000.0))):
    replies = task.reference_replies(EXAMPLE, TIMES)
    assert '"frame_idx": 3, "object description": "the red star"' in replies[0]
    np.testing.assert_allclose(score(episode(*replies), task=task).total.sum(), 3, rtol=1e-6)
  assert replies[0].startswith("<think>0 gone, 1 small, 2 small, 3 large.</think>")
  place = "top left: yes, top right: no, bottom left: no, bottom right: no."
  assert replies[1].startswith(f"<think>{place}</think>")
  assert '"bbox_2d": [168, 84, 672, 588]' in TASK.reference_replies(EXAMPLE, TIMES)[1]
  described = dataclasses.replace(EXAMPLE, extra={"description": "the red one"})
  assert "the red one" in TASK.reference_replies(described, TIMES)[0]


def test_a_tiny_box_at_the_edge_is_rounded_to_one_inside():
  small = dataclasses.replace(
    EXAMPLE, object_track=track([(479, 239, 479.1, 239.1)] * 4, times=TIMES)
  )
  for task in (make(key_frame_size=(28, 28)), make(box_scale=lambda size: (1000.0, 1000.0))):
    replies = task.reference_replies(small, TIMES)
    found = task.grounding(replies, POOL, (240, 480))
    assert found.problem == ""
    left, top, right, bottom = found.box
    assert 460 < left < right <= 480 and 230 < top < bottom <= 240


@pytest.mark.parametrize(
  ("replies", "found"),
  [
    (("",), {"problem": "json"}),
    ((frame(9),), {"problem": "range"}),
    ((frame(2),), {"key_frame": 2, "description": "the big star", "problem": "turns"}),
    (
      (frame(2), box(1, 2, 1, 4)),
      {"key_frame": 2, "description": "the big star", "problem": "box"},
    ),
    (
      (frame(2), box(840, 0, 900, 10)),
      {"key_frame": 2, "description": "the big star", "problem": "outside"},
    ),
    (
      (frame(2), box(420, 0, 900, 840)),  # the part beyond the edge is cut off
      {"key_frame": 2, "description": "the big star", "box": (240, 0, 480, 240)},
    ),
  ],
)
def test_an_episode_is_read_as_a_key_frame_a_description_and_a_box_of_the_video(replies, found):
  assert TASK.grounding(replies, POOL, (240, 480)) == grounding.Grounding(**found)


def test_boxes_are_in_pixels_of_the_frame_as_it_was_snapped_to_the_patch_grid():
  task = make(key_frame_size=(850, 400))  # shown at 840 x 392
  found = task.grounding((frame(0), box(98, 420, 392, 840)), POOL, (240, 480))
  np.testing.assert_allclose(found.box, (120, 120, 480, 240), rtol=1e-12)
  thousandths = make(box_scale=lambda size: (1000.0, 1000.0), key_frame_size=(850, 400))
  found = thousandths.grounding((frame(0), box(250, 500, 1000, 1000)), POOL, (240, 480))
  np.testing.assert_allclose(found.box, (120, 120, 480, 240), rtol=1e-12)


side = st.integers(2, 4000)
fraction = st.floats(0, 1)


@hypothesis.given(st.tuples(side, side), st.tuples(side, side), st.tuples(*[fraction] * 4))
def test_a_box_of_the_video_returns_from_a_reply_as_it_was(size, asked, fractions):
  (height, width), scale = size, pixels(asked)
  left, right = sorted((fractions[0] * (width - 1), 1 + fractions[1] * (width - 1)))
  top, bottom = sorted((fractions[2] * (height - 1), 1 + fractions[3] * (height - 1)))
  hypothesis.assume(left < right and top < bottom and left < width - 1e-6 and top < height - 1e-6)
  numbers = grounding.to_reply((left, top, right, bottom), scale, size)
  back = grounding.to_video(numbers, scale, size)
  np.testing.assert_allclose(back, (left, top, right, bottom), rtol=1e-12, atol=1e-9)


def test_actions_are_read_by_the_turn_of_the_reply():
  both = '{"frame_idx": 2, "object description": "x", "bbox_2d": [1, 2, 3.5, 4]}'
  first, second = (TASK.parse_action(EXAMPLE, POOL, both, turn) for turn in (0, 1))
  assert (first.kind, first.start, first.end) == ("retrieve", 2, 2)
  assert (second.kind, second.answer) == ("answer", "[1, 2, 3.5, 4]")
  problems = [
    TASK.parse_action(EXAMPLE, POOL, reply, turn).problem
    for reply, turn in ((frame(4), 0), ("", 0), ("", 1), (box(3, 0, 1, 1), 1))
  ]
  assert problems == ["range", "format", "format", "answer"]


def test_sizes_need_two_numbers():
  with pytest.raises(errors.InputError, match=r"--config\.env\.frame_size=\(448, 448, 3\)"):
    make(frame_size=(448, 448, 3))


def combined(index, *corners):
  """One reply with the key frame and the box."""
  answer = {"frame_idx": index, "object description": "a star", "bbox_2d": corners}
  return f"<think>t</think> <answer>{json.dumps([answer])}</answer>"


def test_without_decomposition_one_reply_gives_frame_and_box_in_the_frames_of_the_first_turn():
  task = make(decompose=False)
  first = task.observe(EXAMPLE, POOL, ())
  assert first == TASK.observe(EXAMPLE, POOL, ())
  assert task.longest_replies(POOL) == ()
  small = shown(TRUTH[3], (448, 448))
  right = combined(3, *small)
  assert task.observe(EXAMPLE, POOL, (right,)) is None
  found = task.grounding((right,), POOL, (240, 480))
  assert (found.key_frame, found.problem) == (3, "")
  np.testing.assert_allclose(found.box, TRUTH[3], rtol=1e-9)
  scores = score(
    episode(right),
    episode(combined(3, *shown(TRUTH[3]))),
    episode(frame(3)),
    episode("3"),
    task=task,
  )
  np.testing.assert_allclose(scores.total[0], [[3, 0], [2, 0], [2 / 3 + 1, 0], [0, 0]], rtol=1e-6)
  assert scores.scored[0].tolist() == [[True, False]] * 4
  assert scores.rewards["spatial"][0, 0].tolist() == [1, 0]
  assert task.episode_metrics(EXAMPLE, episode(right)) == {
    "accuracy": 1,
    "key_frame_visible": 1,
    "box_iou": pytest.approx(1),
    "key_frame_value": 1,
    "format": 1,
    "turns": 1,
  }
  kinds = [task.parse_action(EXAMPLE, POOL, reply, 0).kind for reply in (right, frame(3), "3")]
  assert kinds == ["answer", "invalid", "invalid"]


def test_without_decomposition_the_reference_is_one_reply_that_earns_three():
  task = make(decompose=False)
  (reply,) = task.reference_replies(EXAMPLE, TIMES)
  assert score(episode(reply), task=task).total[0, 0].tolist() == [3, 0]


def test_an_instruction_without_the_box_is_refused_without_decomposition():
  run = recipe_config.load("configs/revseg.py:7b")
  run.env.decompose = False
  with pytest.raises(errors.InputError, match="does not ask for bbox_2d"):
    revseg.ReVSeg.check_config(run)
  run.env.instruction += ' "bbox_2d"'
  revseg.ReVSeg.check_config(run)


def test_frames_that_together_pass_the_limit_of_a_whole_video_are_refused():
  for size in ("qwen3vl_8b", "7b", "tiny_qwen3vl"):
    revseg.ReVSeg.check_config(recipe_config.load(f"configs/revseg.py:{size}"))
  run = recipe_config.load("configs/revseg.py:qwen3vl_8b")
  run.env.frame_size = (640, 640)
  match = r"data\.frames=16 frames of that size have 6553600 pixels"
  with pytest.raises(errors.InputError, match=match) as told:
    revseg.ReVSeg.check_config(run)
  assert "max_video_pixels=3211264" in str(told.value)
  run.model.max_video_pixels = 16 * 640 * 640
  revseg.ReVSeg.check_config(run)
  run.data.frames = 17
  with pytest.raises(errors.InputError, match=r"data\.frames=17 frames of that size"):
    revseg.ReVSeg.check_config(run)
  run.data.sampling, run.data.max_frames = "fps", 16
  revseg.ReVSeg.check_config(run)
  run.data.required_frames, run.model.min_video_pixels = 4, 4 * 640 * 640 + 1
  match = r"required_frames=4 .* 1638400 pixels, outside model\.min_video_pixels=1638401"
  with pytest.raises(errors.InputError, match=match):
    revseg.ReVSeg.check_config(run)


@pytest.mark.parametrize(("size", "patch"), [("3b", 14), ("7b", 14), ("qwen3vl_8b", 16)])
def test_released_sizes_pad_no_patches_and_leave_room_for_text(size, patch):
  run = recipe_config.load(f"configs/revseg.py:{size}")
  shown, key_frame = (
    math.prod(side // patch for side in run.env[name]) for name in ("frame_size", "key_frame_size")
  )
  assert run.model.patch_buckets == (shown,)
  assert run.turns.patch_buckets == (key_frame,)
  (frames,) = run.model.frame_buckets
  assert frames == run.data.frames // 2  # two frames a temporal patch
  # Media tokens have four patches. A query and what is asked for take about 250 tokens.
  for buckets, media in (
    (run.model.prefix_buckets, frames * shown // 4),
    (run.turns.observation_buckets, key_frame // 4),
  ):
    assert 200 < buckets[0] - media <= 400 and buckets[-1] - media > 500
