"""Texts and frames of an environment, encoded turn by turn or as a whole conversation."""

import numpy as np

from tests.rollout import chat
from vr_jax import records
from vr_jax.envs import video_mtr
from vr_jax.models.common import prompts
from vr_jax.rewards import exploration
from vr_jax.rollout import dialogue

LOOK = "<think></think>\n<retrieve>10,13</retrieve>"
TASK = video_mtr.VideoMTR(
  instruction="Look or answer.",
  last_instruction="Answer.",
  turns=3,
  history_turns=2,
  frame_budget=8,
  on_invalid_action="rethink",
  exploration=exploration.ExplorationRule(stages=()),
)
EXAMPLE = records.Example(
  id="q1",
  video="v.mp4",
  question="Which?",
  answer="A",
  options=("A. red", "B. blue"),
  problem_type="multiple choice",
  shown=records.Span(start=0.0, end=16.0),
)


def _host(pool=None):
  pool = pool or chat.Pool(16, step=16)
  scene = dialogue.EpisodeScene(example=EXAMPLE, pool=pool)
  return dialogue.Dialogue(environment=TASK, processor=chat.PROCESSOR, scenes=[scene])


def _observe(host, *replies) -> prompts.EncodedPrompt:
  """The turn after these replies (token ids), which must not end the episode."""
  shown = host.observe(0, 0, replies)
  assert shown is not None
  return shown


def _ids(text):
  return tuple(chat.PROCESSOR.encode_reply(text))


def test_only_the_frames_that_a_turn_shows_are_read():
  pool = chat.Pool(16, step=16)
  host = _host(pool)
  host.prompt(0)
  assert pool.asked == [(0, 5, 10, 15)]
  shown = _observe(host, _ids(LOOK))
  assert pool.asked == [(0, 5, 10, 15), (10, 13)]
  assert len(shown.frames) == 2
  assert shown.name == "q1, turn 2"


def test_pixels_stand_where_their_index_is_said():
  shown = _observe(_host(), _ids(LOOK))
  firsts = [float(frame.vision.patches.mean()) for frame in shown.frames]
  alone = _host().prompt(0)
  tenth = float(alone.frames[2].vision.patches.mean())
  assert firsts[0] == tenth and firsts[1] > tenth
  text = chat.PROCESSOR.tokenizer.decode(shown.tokens.tolist(), skip_special_tokens=False)
  assert text.index("frame_idx:10") < text.index("frame_idx:13")


def test_an_answer_ends_an_episode_and_junk_does_not():
  host = _host()
  assert host.observe(0, 0, (_ids("<think></think><answer>A</answer>"),)) is None
  again = _observe(host, _ids("well"))
  assert not again.frames and again.next_position == len(again.tokens)


def test_a_conversation_in_one_piece_is_that_of_its_turns():
  host, said = _host(), (_ids(LOOK), _ids("well"))
  whole = host.prompt(0, [LOOK, "well"])
  reply = [chat.PROCESSOR.join(np.array(ids, np.int32), [], []) for ids in said]
  parts = [host.prompt(0), reply[0], _observe(host, said[0]), reply[1]]
  expected = prompts.join([*parts, _observe(host, *said)], name="q1")
  for field in ("tokens", "kind", "positions"):
    np.testing.assert_array_equal(getattr(whole, field), getattr(expected, field))
  assert len(whole.frames) == 6 and whole.next_position == expected.next_position
