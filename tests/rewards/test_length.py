"""The length reward in characters, and the total in which it counts for or against an answer."""

import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.envs import environment, moss_chatv, question_answer
from vr_jax.rewards import length


def reply(characters: int, answer: str = "red") -> str:
  return f"<think>{'x' * characters}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (reply(0), 0.5),
    (reply(300), 0.625),
    (reply(1200), 1.0),
    (reply(5000), 1.0),
    (" " + reply(1200), 0.0),
    (reply(1200).replace("</think>", ""), 0.0),
    ("", 0.0),
  ],
)
def test_a_right_format_earns_half_and_its_reasoning_the_rest(text, expected):
  assert length.length_rewards([text], 1200) == pytest.approx([expected])


@pytest.mark.parametrize("seed", range(20))
def test_any_text_earns_a_number_from_0_to_1(seed):
  rng = np.random.default_rng(seed)
  pieces = rng.choice(["<think>", "</think>", "<answer>", "</answer>", "a ", "\n", "é"], 12)
  (score,) = length.length_rewards(["".join(pieces)], 3)
  assert 0 <= score <= 1


def test_length_counts_for_a_right_answer_and_against_a_wrong_one():
  accuracy = np.array([1, 1, 0, 0, 0], np.float32)
  lengths = np.array([0, 0.75, 0.75, 0.5, 0], np.float32)
  assert length.signed_total(accuracy, lengths).tolist() == [1, 1.75, -0.75, -0.5, -2]


def as_replies(texts) -> environment.Replies:
  return environment.Replies.from_texts([texts], np.zeros((1, len(texts), 1), np.int32))


EXAMPLE = records.Example(
  id="q",
  video="v.mp4",
  question="?",
  answer="red",
  problem_type="free-form",
  shown=records.Span(start=0, end=1),
)


@pytest.mark.parametrize("kind", [question_answer.QuestionAnswer, moss_chatv.MossChatV])
def test_recipes_of_one_reply_may_combine_it_with_their_other_rewards(kind):
  names = ("accuracy", "length", "format*0.5")
  task = kind(rewards=names, combination="signed", length_characters=100)
  replies = (reply(50), reply(50, "blue"), "red")
  scores = task.score([EXAMPLE], as_replies(replies))
  np.testing.assert_allclose(scores.rewards["length"][0, :, 0], [0.75, 0.75, 0])
  np.testing.assert_allclose(scores.total[0, :, 0], [1.75 + 0.5, -0.75 + 0.5, -2])
  plain = kind(rewards=names, length_characters=100)
  scores = plain.score([EXAMPLE], as_replies(replies))
  np.testing.assert_allclose(scores.total[0, :, 0], [2.25, 1.25, 0])


@pytest.mark.parametrize("rewards", [("accuracy",), ("length", "format"), ("accuracy", "length*2")])
def test_a_signed_total_needs_both_rewards_unweighted(rewards):
  with pytest.raises(errors.InputError, match=r"config\.env\.combination=signed: needs the rew"):
    question_answer.QuestionAnswer(rewards=rewards, combination="signed")
