"""Turn rewards: the rules of the paper and of its released code, on episodes checked by hand."""

import numpy as np
import pytest

from vr_jax.rewards import relevance

POOL = 8
TRUTH = (2, 3)
EXACT, WIDE, MISSED, NONE = (2, 3), (2, 3, 4, 5), (6, 7), ()  # IoU 1, 1/2, 0
FIRST = (0, 2, 4, 6)  # IoU 1/5


def _mask(indices):
  return np.isin(np.arange(POOL), indices)


def _episodes(*retrieved, right=True, truth=TRUTH, first=FIRST, turns=None):
  """One episode: turns that retrieve, then one that answers unless `right` is None."""
  replies = [*retrieved] if right is None else [*retrieved, NONE]
  turns = turns or len(replies)
  shape = (1, 1, turns)
  frames, accuracy, taken = np.zeros((*shape, POOL), bool), np.zeros(shape), np.zeros(shape, bool)
  for turn, indices in enumerate(replies):
    frames[0, 0, turn], taken[0, 0, turn] = _mask(indices), True
  if right is not None:
    accuracy[0, 0, len(replies) - 1] = float(right)
  return relevance.EpisodeArrays(
    first=_mask(first)[None],
    truth=_mask(truth)[None],
    retrieved_frames=frames,
    accuracy=accuracy,
    well_formed=taken.copy(),
    taken=taken,
  )


def _earned(*retrieved, rule=None, **kind):
  return relevance.turn_rewards(_episodes(*retrieved, **kind), rule or relevance.RelevanceRule())


CODE = relevance.RelevanceRule(variant="code")
UNGATED = relevance.RelevanceRule(gate=False)


def test_iou_is_the_overlap_of_two_sets_of_frames():
  frames = np.stack([_mask(s) for s in (EXACT, WIDE, MISSED, NONE, FIRST)])
  truth = np.broadcast_to(_mask(TRUTH), frames.shape)
  np.testing.assert_allclose(relevance.frame_iou(frames, truth), [1, 0.5, 0, 0, 0.2])
  assert relevance.frame_iou(_mask(NONE)[None], _mask(NONE)[None]) == 0


@pytest.mark.parametrize(
  ("retrieved", "paper", "code"),
  [
    ([WIDE], [0.5], [0.5]),
    ([MISSED], [-0.2], [0]),
    ([WIDE, EXACT], [0.5, 0.5], [0.5, 0.5]),
    ([EXACT, WIDE], [0.5, -0.5], [0.5, 0]),
    ([WIDE, MISSED, WIDE], [0.5, -0.5, 0], [0.5, 0, 0.5]),  # not above the best, but above the last
    ([WIDE, NONE, WIDE], [0.5, 0, 0], [0.5, 0, 0]),  # a turn between that retrieved nothing
  ],
)
def test_relevance_is_gained_by_improvement_and_lost_by_a_worse_look(retrieved, paper, code):
  for rule, expected in [(relevance.RelevanceRule(), paper), (CODE, code)]:
    earned = _earned(*retrieved, rule=rule)
    np.testing.assert_allclose(earned.relevance[0, 0], [*expected, 0], atol=1e-6)


def test_the_penalty_grows_with_its_slope_and_is_bounded():
  steep = _earned(MISSED, rule=relevance.RelevanceRule(slope=2.0))
  assert steep.relevance[0, 0, 0] == pytest.approx(-0.4)
  bounded = _earned(MISSED, rule=relevance.RelevanceRule(slope=9.0))
  assert bounded.relevance[0, 0, 0] == pytest.approx(-0.5)


def test_a_wrong_answer_takes_frames_and_format_of_earlier_turns_and_leaves_the_last_format():
  earned = _earned(EXACT, EXACT, right=False)
  np.testing.assert_allclose(earned.total[0, 0], [0, 0, 0.1], atol=1e-6)
  assert (earned.accuracy == 0).all()
  np.testing.assert_allclose(_earned(EXACT).total[0, 0], [0.6, 1.1], atol=1e-6)


def test_in_the_codes_variant_a_wrong_answer_takes_the_frames_only():
  np.testing.assert_allclose(
    _earned(EXACT, EXACT, right=False, rule=CODE).total[0, 0], [0.1] * 3, atol=1e-6
  )


def test_in_the_codes_variant_late_answers_are_worth_less():
  for turns, worth in enumerate([1.0, 0.9, 0.8]):
    earned = _earned(*[NONE] * turns, rule=CODE)
    assert earned.accuracy[0, 0, turns] == pytest.approx(worth)
  assert _earned(*[NONE] * 12, rule=CODE).accuracy.sum() == 0
  assert _earned(*[NONE] * 12).accuracy[0, 0, 12] == 1


@pytest.mark.parametrize(("worth", "passes"), [(0.1, False), (0.49, False), (0.5, True), (1, True)])
def test_a_graded_answer_opens_the_gate_where_it_is_rather_right_than_wrong(worth, passes):
  assert bool(_earned(WIDE, EXACT, right=worth).relevance.any()) == passes


@pytest.mark.parametrize("rule", [relevance.RelevanceRule(), CODE])
def test_an_episode_that_ends_with_a_good_look_and_no_answer_is_a_wrong_one(rule):
  assert (_earned(WIDE, EXACT, right=None, rule=rule).relevance == 0).all()


def test_without_the_gate_a_wrong_episode_keeps_its_frames_but_not_those_it_never_saw():
  earned = _earned(WIDE, EXACT, right=None, rule=UNGATED)
  np.testing.assert_allclose(earned.total[0, 0], [0.6, 0.1], atol=1e-6)


def test_without_known_evidence_relevance_is_not_scored_but_counted():
  episodes = _episodes(EXACT, MISSED, truth=NONE)
  for rule in (relevance.RelevanceRule(), CODE):
    earned = relevance.turn_rewards(episodes, rule)
    assert (earned.relevance == 0).all()
    assert earned.total[0, 0, 0] == pytest.approx(0.1)
  np.testing.assert_array_equal(episodes.unscored[0, 0], [True, True, False])
  assert not _episodes(EXACT).unscored.any()


def test_recall_is_of_all_that_was_shown_which_the_last_turns_frames_are_not():
  episode = _episodes(MISSED, first=(2, 7))
  assert episode.recall()[0, 0] == 0.5
  assert _episodes((3,), first=(2, 7)).recall()[0, 0] == 1
  assert _episodes((3,), first=(2, 7), right=None).recall()[0, 0] == 0.5
  assert np.isnan(_episodes(EXACT, truth=NONE).recall()[0, 0])


def test_a_reply_in_no_format_earns_nothing():
  episodes = _episodes(NONE, EXACT)
  episodes.well_formed[0, 0, 0] = False
  np.testing.assert_allclose(
    relevance.turn_rewards(episodes, relevance.RelevanceRule()).total[0, 0],
    [0, 0.6, 1.1],
    atol=1e-6,
  )


def test_padding_changes_nothing_and_earns_nothing():
  short, padded = _earned(WIDE), _earned(WIDE, turns=5)
  np.testing.assert_array_equal(padded.total[..., :2], short.total)
  assert (padded.total[..., 2:] == 0).all()


def _random(rng, shape=(4, 3, 5)):
  """Random episodes. No turn both retrieves and answers; only the last turn may answer."""
  prompts, group, turns = shape
  taken = np.arange(turns) < rng.integers(0, turns + 1, (prompts, group, 1))
  last = taken & ~np.roll(taken & (np.arange(turns) > 0), -1, axis=-1)
  answers = last & (rng.random(shape) < 0.7)
  valid = taken & ((rng.random(shape) < 0.8) | answers)
  found = (rng.random((*shape, POOL)) < 0.4) & (valid & ~answers)[..., None]
  return relevance.EpisodeArrays(
    first=rng.random((prompts, POOL)) < 0.4,
    truth=rng.random((prompts, POOL)) < 0.2,
    retrieved_frames=found,
    accuracy=answers * rng.random(shape),
    well_formed=valid,
    taken=taken,
  )


RULES = [
  relevance.RelevanceRule(),
  CODE,
  UNGATED,
  relevance.RelevanceRule(slope=30.0, relevance=0.2, format=0.3),
]


@pytest.mark.parametrize("rule", RULES, ids=["paper", "code", "ungated", "steep"])
def test_no_reward_leaves_its_range(rule):
  rng = np.random.default_rng(0)
  for _ in range(50):
    earned = relevance.turn_rewards(_random(rng), rule)
    for name, (low, high) in rule.ranges().items():
      reward = getattr(earned, name)
      assert reward.dtype == np.float32
      assert low - 1e-6 <= reward.min() and reward.max() <= high + 1e-6, name


@pytest.mark.parametrize("rule", RULES, ids=["paper", "code", "ungated", "steep"])
def test_a_batch_earns_what_its_episodes_earn_alone(rule):
  episodes = _random(np.random.default_rng(1))
  whole = relevance.turn_rewards(episodes, rule)
  for prompt in range(4):
    for group_index in range(3):
      alone = relevance.EpisodeArrays(
        first=episodes.first[prompt : prompt + 1],
        truth=episodes.truth[prompt : prompt + 1],
        **{
          name: getattr(episodes, name)[prompt : prompt + 1, group_index : group_index + 1]
          for name in ("retrieved_frames", "accuracy", "well_formed", "taken")
        },
      )
      np.testing.assert_array_equal(
        relevance.turn_rewards(alone, rule).total[0, 0], whole.total[prompt, group_index]
      )


def test_the_answer_always_earns_more_than_looking_does_in_its_turn():
  ranges = relevance.RelevanceRule().ranges()
  assert ranges["total"] == (-0.4, 1.1)
  assert CODE.ranges()["total"] == (0.0, 1.1)
