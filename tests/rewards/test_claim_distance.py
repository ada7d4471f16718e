"""Steps by what they claim: equal claims are near whatever the words, other claims are far."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from vr_jax.rewards import claim_distance, process
from vr_jax.worlds import claims

DISTANCE = claim_distance.ClaimDistance(read=claims.read_step_claims, seconds=2.0)
REFERENCE = ["At 0s, the circle is red.", "At 2s, the circle turns green.", "So at 4s, it is red."]


def distance(reference, generated):
  """The distance of two texts, each a trace of one step."""
  keys = [*DISTANCE.keys([reference]), *DISTANCE.keys([generated])]
  numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
  first, second = (np.array([numbers[key]]) for key in keys)
  return float(DISTANCE.prepare(list(numbers))(first, second)[0])


@pytest.mark.parametrize(
  ("generated", "expected"),
  [
    ("The disc is red by 0s.", 0.0),
    ("I look at 0 seconds and see a red ball!", 0.0),
    ("At 0s, the circle is not red.", 1.0),
    ("At 0s, the circle is green.", 1.0),
    ("At 0s, the star is red.", 1.0),
    ("At 0s, the circle is large.", 1.0),
    ("At 0.5s, the circle is red.", 0.25),  # 0.5 s of 2 s away
    ("At 2s, the circle is red.", 1.0),
    ("From 0s to 4s the circle is red.", 1.0),  # overlaps, but says more than was seen
    ("From 0s to 1s the circle is red.", 0.5),  # ends 1 s of 2 s later
    ("At 0s, the circle is red and large.", 1 / 3),  # precision 1/2, recall 1
    ("At 0s, the circle is red and red.", 0.0),  # said twice, counts once
    ("At 0s, the circle is red and green.", 1 / 3),  # hedging
    ("The circle is red.", 1.0),  # names no time
    ("", 1.0),
  ],
)
def test_a_step_is_as_near_as_its_claims(generated, expected):
  assert distance("At 0s, the circle is red.", generated) == pytest.approx(expected, abs=1e-6)


def test_steps_without_claims_are_near_only_if_their_words_are_equal():
  assert distance("I look around.", "i look  around") == 0
  assert distance("I look around.", "I look about.") == 1
  assert distance("I look around.", "At 0s, the circle is red.") == 1


def test_a_pronoun_stands_for_the_object_of_an_earlier_step():
  (_, second) = DISTANCE.keys(["At 0s, the circle is red.", "At 2s, it is green."])
  (_, other) = DISTANCE.keys(["At 0s, the star is red.", "At 2s, it is green."])
  assert [claim[0][0] for claim in second.claims] == ["circle"]
  assert second != other


def plain_distance(reference, generated):
  """Soft F1 by two loops."""

  def match(a, b):
    if (a.object, a.attribute, a.value, a.denied) != (b.object, b.attribute, b.value, b.denied):
      return 0.0
    # How far a point of one time may be from the other; that of an interval's end is the most.
    far = max(
      abs(point - min(max(point, other.start), other.end))
      for one, other in ((a, b), (b, a))
      for point in (one.start, one.end)
    )
    return max(0.0, 1 - far / 2.0)

  ref, gen = set(claims.read_claims([reference])), set(claims.read_claims([generated]))
  if not ref or not gen:
    return None
  recall = sum(max(match(a, b) for b in gen) for a in ref) / len(ref)
  precision = sum(max(match(a, b) for a in ref) for b in gen) / len(gen)
  return 1 - 2 * recall * precision / (recall + precision) if recall + precision else 1.0


CLAUSES = strategies.builds(
  "the {} {} {} {}".format,
  strategies.sampled_from(["circle", "star", "circle and the star"]),
  strategies.sampled_from(["is", "is not"]),
  strategies.sampled_from(["red", "green and large", "hidden", "at the top left"]),
  strategies.sampled_from(["at 0s", "at 1s", "at 2.5s", "at 7s", "from 0s to 1s", "from 2s to 7s"]),
)
SENTENCES = strategies.lists(CLAUSES, min_size=1, max_size=4).map("; ".join)


@hypothesis.settings(max_examples=80)
@hypothesis.given(SENTENCES, SENTENCES)
def test_it_is_the_soft_f1_of_two_loops(reference, generated):
  expected = plain_distance(reference, generated)
  if expected is not None:
    assert distance(reference, generated) == pytest.approx(expected, abs=1e-6)


@hypothesis.settings(max_examples=60)
@hypothesis.given(strategies.lists(strategies.text(max_size=20) | SENTENCES, max_size=5))
def test_any_trace_has_a_reward_within_0_and_1(steps):
  trace = " ".join(steps)
  scored = process.process_reward(
    [f"<think>{trace}</think>"] * 2, [REFERENCE, steps], distance=DISTANCE
  )
  assert ((scored.reward >= 0) & (scored.reward <= 1)).all()


@pytest.mark.parametrize("alignment", ["subsequence", "naive"])
def test_a_right_paraphrase_earns_all_and_one_wrong_value_costs_more_than_by_rouge(alignment):
  paraphrase = "The disc is red at 0s. By 2s it has become green. Once it is 4s: the disc is red."
  wrong = " ".join(REFERENCE).replace("turns green", "turns blue")
  replies = [f"<think>{trace}</think>" for trace in (paraphrase, wrong)]
  ours, rouge = (
    process.process_reward(replies, [REFERENCE] * 2, alignment=alignment, distance=each).reward
    for each in (DISTANCE, process.ROUGE)
  )
  assert ours[0] == 1 and rouge[0] < rouge[1]
  np.testing.assert_allclose(ours[1], np.exp(-1 / 3), rtol=1e-6)


@pytest.mark.parametrize("alignment", ["subsequence", "naive"])
def test_claims_for_the_whole_video_earn_no_more_than_wrong_ones(alignment):
  values = ("inside", "outside", "inside", "outside", "inside")
  reference = [f"At {2 * i}s, the circle is {value} the box." for i, value in enumerate(values)]
  wide = [f"From 0s to 10s, the circle is {value} the box." for value in values]
  replies = [f"<think>{' '.join(trace)}</think>" for trace in (reference, wide)]
  scored = process.process_reward(
    replies, [reference] * 2, alignment=alignment, distance=DISTANCE
  ).reward
  np.testing.assert_allclose(scored, [1, np.exp(-1)], rtol=1e-6)
