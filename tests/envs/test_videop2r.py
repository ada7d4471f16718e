"""VideoP2R: parsing of replies, and the rewards of the two segments.

The judge here accepts observations with the word "seen".
"""

import json
import random

import numpy as np
import pytest

from vr_jax import records
from vr_jax.envs import environment, videop2r

SEEN, UNSEEN = "it is seen red", "it is there"
WEIGHTS = {
  "perception": 1.0,
  "reasoning": 1.0,
  "accuracy": 1.0,
  "format": 1.0,
  "length": 0.2,
  "temporal": 0.3,
}
EXAMPLE = records.Example(
  id="q1",
  video="v.mp4",
  question="Which colour will the circle have at 9s?",
  options=("A. red", "B. green"),
  answer="B",
  problem_type="multiple choice",
  shown=records.Span(start=0.0, end=4.0),
  steps=(
    records.Step(text="At 0s red.", start=0.0, end=2.0),
    records.Step(text="At 2s green.", start=2.0, end=4.0),
    records.Step(text="At 9s green again.", start=8.0, end=10.0),
  ),
)


class ScriptedJudge:
  """Says yes where "seen" is said, and nothing of what is "odd"."""

  def __init__(self):
    self.asked = []

  def verdicts(self, cases):
    self.asked += [case.observation for case in cases]
    return [None if "odd" in c.observation else "seen" in c.observation for c in cases]

  def counts(self):
    return {"asked": float(len(self.asked))}

  def close(self):
    pass


def _task(**changes):
  fields = {
    "instruction": "",
    "weights": WEIGHTS,
    "length": "segment",
    "perception_tokens": (2, 4),
    "reasoning_tokens": (3, 5),
    "length_accuracy": 0.1,
    "temporal_ratio": 0.8,
    "judge": ScriptedJudge(),
  }
  return videop2r.VideoP2R(**{**fields, **changes})


def _said(*texts, lengths=((1, 1),), shuffled=None):
  lengths = [*lengths] * (len(texts) // len(lengths))
  time = max(sum(pair) for pair in lengths)
  segment = np.full((1, len(texts), time), -1, np.int32)
  for row, (seen, reasoned) in enumerate(lengths):
    segment[0, row, :seen] = 0
    segment[0, row, seen : seen + reasoned] = 1
  return environment.Replies.from_texts([list(texts)], segment, shuffled=shuffled)


def reply(observation=SEEN, think="so", answer="B"):
  return videop2r.format_reply(observation, think, answer)


RIGHT, WRONG, BLIND = reply(), reply(answer="A"), reply(observation=UNSEEN)
NO_TAGS = "it is green"
LATE = "well, " + RIGHT
UNCLOSED = f"<observation>{SEEN}<think>so</think>\n<answer>B</answer>"
NO_ANSWER = f"<observation>{SEEN}</observation><think>so</think>"
TWICE = f"<observation>a</observation>{RIGHT}"


def test_it_is_an_environment():
  assert isinstance(_task(), environment.Environment)


@pytest.mark.parametrize(
  ("text", "observation", "answer"),
  [
    (RIGHT, SEEN, "B"),
    (NO_TAGS, None, None),
    (LATE, None, "B"),
    (UNCLOSED, None, "B"),
    (NO_ANSWER, SEEN, None),
    (TWICE, "a", None),
    ("<think>so</think><answer>B</answer>", None, "B"),
    ("<observation></observation> <think></think> <answer></answer>", "", ""),
    (RIGHT + " and more", SEEN, None),
    ("", None, None),
  ],
)
def test_every_reply_is_taken_apart_in_one_way(text, observation, answer):
  found = videop2r.parse_reply(text)
  assert (found.observation, found.answer) == (observation, answer)
  whole = found.observation is not None and found.think is not None
  assert whole == (observation is not None and answer is not None)
  assert (_task().parse_trace(text) is not None) == bool(observation and found.think and answer)


def test_what_is_written_is_read():
  found = videop2r.parse_reply(videop2r.format_reply("what\nis seen", "so it is", "4.5"))
  assert (found.observation, found.think, found.answer) == ("what\nis seen", "so it is", "4.5")


def test_pieces_cover_any_reply_in_order():
  rng = random.Random(0)
  parts = [*videop2r.VideoP2R.tags, "<answer>", "a", " ", "\n", "é", "</think>"]
  for _ in range(3000):
    text = "".join(rng.choices(parts, k=rng.randrange(12)))
    ends = [end for end, _ in _task().segment_spans(text, 0)]
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    json.dumps(_task().explain(EXAMPLE, text))


def test_the_observation_up_to_its_closing_sign_is_perception_and_all_else_reasoning():
  seen = f"<observation>{SEEN}</observation>"
  assert _task().segment_spans(RIGHT, 0) == ((len(seen) - 1, 0), (len(RIGHT), 1))
  assert _task().segment_spans(UNCLOSED, 0) == ((len(UNCLOSED), 1),)
  texts = [segment["text"] for segment in _task().explain(EXAMPLE, RIGHT)["segments"]]
  assert texts == [seen, RIGHT[len(seen) :]]


def test_the_reference_observes_what_is_shown_and_reasons_about_the_rest():
  assert _task().reference_reply(EXAMPLE) == (
    "<observation>At 0s red.\nAt 2s green.</observation>\n"
    "<think>At 9s green again.</think>\n<answer>B</answer>"
  )
  with_trace = records.Example(**{**vars(EXAMPLE), "observation": "o", "reasoning": "r"})
  assert _task().reference_reply(with_trace) == videop2r.format_reply("o", "r", "B")
  assert _task().reference_reply(records.Example(**{**vars(EXAMPLE), "steps": ()})) is None


def test_each_segment_earns_its_own():
  scores = _task().score([EXAMPLE], _said(RIGHT, WRONG, BLIND, UNCLOSED, NO_ANSWER, NO_TAGS))
  expected = [[1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]
  np.testing.assert_array_equal(scores.rewards["accuracy"][0], expected)
  formed = [[1, 1], [1, 1], [1, 1], [0, 1], [1, 0], [0, 0]]
  np.testing.assert_array_equal(scores.rewards["format"][0], formed)
  np.testing.assert_allclose(scores.total[0], np.add(expected, formed))
  assert scores.scored.all()


def test_a_segment_of_the_wanted_length_earns_more_where_it_is_right():
  lengths = ((2, 3), (4, 5), (1, 6), (2, 3))
  scores = _task().score([EXAMPLE], _said(RIGHT, RIGHT, RIGHT, WRONG, lengths=lengths))
  np.testing.assert_array_equal(scores.rewards["length"][0], [[1, 1], [1, 1], [0, 0], [1, 0]])
  np.testing.assert_allclose(scores.total[0, 0], [2.2, 2.2], rtol=1e-6)


def test_video_r1_rewards_length_of_reasoning_where_more_than_one_is_right():
  task, lengths = _task(length="video_r1"), ((2, 3),)
  both = task.score([EXAMPLE], _said(RIGHT, RIGHT, WRONG, lengths=lengths))
  np.testing.assert_array_equal(both.rewards["length"][0], [[0, 1], [0, 1], [0, 0]])
  alone = task.score([EXAMPLE], _said(RIGHT, WRONG, WRONG, lengths=lengths))
  assert not alone.rewards["length"].any()


def test_without_a_verdict_there_is_no_perception_reward_and_it_is_not_zero_by_accident():
  scores = _task().score([EXAMPLE], _said(RIGHT, reply(observation="odd"), BLIND))
  np.testing.assert_array_equal(scores.scored[0], [[True, True], [False, True], [True, True]])


def test_the_judge_is_asked_about_observations_that_say_something():
  judge = ScriptedJudge()
  task = _task(judge=judge)
  task.score([EXAMPLE], _said(RIGHT, reply(observation=" "), NO_TAGS))
  assert judge.asked == [SEEN]
  assert task.counts() == {"judge/asked": 1.0}


def test_the_total_of_each_segment_is_its_own_whatever_becomes_of_it():
  scores = _task().score([EXAMPLE], _said(RIGHT, WRONG, BLIND))
  np.testing.assert_allclose(scores.total[0], [[2, 2], [2, 1], [1, 2]])


def test_a_weight_of_zero_takes_a_segments_reward():
  scores = _task(weights={**WEIGHTS, "perception": 0.0}).score([EXAMPLE], _said(RIGHT, BLIND))
  np.testing.assert_allclose(scores.total[0], [[0, 2], [0, 2]])


@pytest.mark.parametrize(
  ("shuffled", "earned"),
  [([WRONG, WRONG], [1, 0]), ([RIGHT, WRONG], [1, 0]), ([RIGHT] * 2, [0, 0])],
)
def test_the_temporal_reward_needs_the_order_of_frames_to_help(shuffled, earned):
  scores = _task().score([EXAMPLE], _said(RIGHT, WRONG, shuffled=[shuffled]))
  np.testing.assert_array_equal(scores.rewards["temporal"][0, :, 1], earned)
  assert not scores.rewards["temporal"][..., 0].any()
