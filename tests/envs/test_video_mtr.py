"""Video-MTR: what each turn shows, what episodes earn, and what is remembered between batches."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from benchmarks import fuzz_video_mtr
from vr_jax import errors, records
from vr_jax.envs import environment, retrieval_actions, video_mtr
from vr_jax.rewards import exploration, relevance

EXAMPLE = records.Example(
  id="q1",
  video="v.mp4",
  question="Which colour?",
  options=("A. red", "B. green"),
  answer="B",
  problem_type="multiple choice",
  shown=records.Span(start=0.0, end=64.0),
)
RIGHT = "<think>so</think><answer>B</answer>"
WRONG = "<think>so</think><answer>A</answer>"
JUNK = "well"
RETHINK = "Turn 2 of 3.\nInvalid action. Let me rethink."


def look(start, end):
  return f"<think>there</think><retrieve>{start},{end}</retrieve>"


def _task(**changes):
  fields = {
    "instruction": "Look or answer.",
    "last_instruction": "Answer now.",
    "turns": 3,
    "history_turns": 2,
    "frame_budget": 16,
    "on_invalid_action": "rethink",
    "exploration": exploration.ExplorationRule(stages=()),
  }
  return video_mtr.VideoMTR(**{**fields, **changes})


def _observe(task, pool, replies) -> environment.Observation:
  """The turn after these replies, which must not end the episode."""
  shown = task.observe(EXAMPLE, pool, replies)
  assert shown is not None
  return shown


def _texts(seen):
  return "".join(part for part in seen.parts if isinstance(part, str))


def test_the_first_turn_shows_half_of_the_budget_over_the_whole_pool():
  seen = _observe(_task(), 64, ())
  assert seen.frames == (0, 9, 18, 27, 36, 45, 54, 63)
  assert seen.parts[:4] == (
    "Turn 1 of 3. Frames out of 0 to 63:\nframe_idx:0, ",
    environment.ShownFrame(0),
    "\nframe_idx:9, ",
    environment.ShownFrame(9),
  )
  assert seen.parts[-1] == "\nWhich colour?\nA. red\nB. green\nLook or answer."
  assert seen.texts[-1].removeprefix("\n") == _task().question(EXAMPLE)


def test_every_frame_comes_right_after_its_index():
  parts = _observe(_task(), 64, [look(3, 40)]).parts
  frames = [pair for pair in itertools.pairwise(parts) if not isinstance(pair[1], str)]
  assert len(frames) == 4
  for before, part in frames:
    assert isinstance(part, environment.ShownFrame)
    assert isinstance(before, str) and before.endswith(f"frame_idx:{part.index}, ")


def test_a_retrieval_shows_at_most_a_quarter_of_the_budget_from_its_interval():
  task = _task()
  assert _observe(task, 64, [look(10, 40)]).frames == (10, 20, 30, 40)
  assert _observe(task, 64, [look(10, 11)]).frames == (10, 11)
  assert _observe(task, 64, [look(10, 40), look(63, 63)]).frames == (63,)


def test_the_last_turn_asks_for_an_answer():
  task = _task()
  assert "Look or answer." in _texts(_observe(task, 64, [look(0, 1)]))
  last = _texts(_observe(task, 64, [look(0, 1)] * 2))
  assert "Answer now." in last and "Look" not in last


def test_an_invalid_reply_costs_a_turn_and_shows_no_frames():
  task = _task()
  assert _observe(task, 64, [JUNK]).parts == (RETHINK,)
  assert _observe(task, 64, [JUNK, JUNK]).frames == ()
  assert task.observe(EXAMPLE, 64, [JUNK] * 3) is None
  assert _observe(task, 64, [JUNK, look(1, 2)]).frames == (1, 2)


@pytest.mark.parametrize(
  ("reply", "says"),
  [
    (JUNK, "<think>"),
    (look("a", "b"), "whole numbers"),
    (look(0, 64), "no such frames"),
    ("<think></think><answer>Z</answer>", "kind that was asked for"),
  ],
)
def test_as_an_option_it_is_told_what_was_wrong_and_asked_again(reply, says):
  seen = _observe(_task(on_invalid_action="explain"), 64, [reply])
  assert seen.frames == () and says in _texts(seen) and "Which colour?" in _texts(seen)


def test_an_episode_ends_with_an_answer_and_with_the_last_turn():
  task = _task()
  assert task.observe(EXAMPLE, 64, [RIGHT]) is None
  assert task.observe(EXAMPLE, 64, [look(0, 1), WRONG]) is None
  assert task.observe(EXAMPLE, 64, [look(0, 1)] * 3) is None
  assert task.observe(EXAMPLE, 64, [RIGHT, look(0, 1)]) is None


def test_with_one_turn_the_whole_budget_is_shown_and_an_answer_asked_for():
  task = _task(turns=1)
  seen = _observe(task, 64, ())
  assert len(seen.frames) == 16 and "Answer now." in _texts(seen)
  assert task.question(EXAMPLE).endswith("Answer now.")
  assert task.observe(EXAMPLE, 64, [look(0, 1)]) is None


@pytest.mark.parametrize("pool", [1, 2, 5])
def test_a_pool_smaller_than_the_budget_is_shown_once_each(pool):
  task = _task()
  assert _observe(task, pool, ()).frames == tuple(range(pool))
  again = _observe(task, pool, [look(0, pool - 1)])
  assert again.frames == retrieval_actions.spread(0, pool - 1, 4)
  assert _observe(task, pool, [look(0, pool)]).frames == ()


def test_no_text_of_an_episode_is_left_out_where_there_is_no_instruction():
  seen = _observe(_task(instruction="", last_instruction=""), 1, ())
  assert seen.parts[-1] == "\nWhich colour?\nA. red\nB. green"


@pytest.mark.parametrize(
  "wrong",
  [{"turns": 0}, {"history_turns": -1}, {"frame_budget": 3}, {"frame_budget": 0, "turns": 1}],
)
def test_a_task_that_could_show_nothing_is_refused(wrong):
  (name, *_) = wrong
  with pytest.raises(errors.InputError, match=f"config.env.{name}"):
    _task(**wrong)


def test_a_window_may_leave_turns_out():
  assert _task(turns=4, history_turns=2).history_turns == 2
  assert _task(turns=4, history_turns=0).observe(EXAMPLE, 64, [JUNK] * 3)


def _scores(task, *episodes, relevant=(20, 21), pool=64):
  return _finished(task, *episodes, relevant=relevant, pool=pool)[0]


def _finished(task, *episodes, relevant=(20, 21), pool=64):
  """(scores of a training batch, its counts)."""
  played = [
    environment.Episode(pool=pool, relevant=relevant, replies=tuple(said)) for said in episodes
  ]
  return _finish(task, [EXAMPLE], [played])


def _finish(task, examples, episodes, **options):
  replies = _replies(episodes)
  return task.finish_batch(examples, replies, task.score(examples, replies), **options)


def _replies(episodes):
  return environment.Replies(
    episodes=episodes, segment=np.zeros((len(episodes), len(episodes[0]), 1), np.int32)
  )


def test_turns_earn_by_what_they_look_at_and_by_the_answer():
  scores = _scores(
    _task(),
    [look(20, 21), RIGHT],
    [look(40, 41), RIGHT],
    [look(20, 21), WRONG],
    [JUNK, RIGHT],
    [look(20, 21), look(20, 21), look(20, 21)],
  )
  expected = [[0.6, 1.1, 0], [0.1, 1.1, 0], [0, 0.1, 0], [0, 1.1, 0], [0, 0, 0.1]]
  np.testing.assert_allclose(scores.total[0], expected, atol=1e-6)
  np.testing.assert_array_equal(scores.scored[0].sum(-1), [2, 2, 2, 2, 3])
  np.testing.assert_allclose(sum(scores.rewards.values()), scores.total)


def test_a_look_that_is_worse_than_the_first_frames_costs_what_is_lost():
  scores = _scores(_task(), [look(40, 41), RIGHT], relevant=(0, 1))
  assert scores.rewards["relevance"][0, 0, 0] == pytest.approx(-1 / 9)


def test_evidence_outside_the_pool_is_evidence_that_is_not_known():
  task = _task()
  scores, counts = _finished(task, [look(20, 21), RIGHT], relevant=(64, 99, -1))
  assert (scores.rewards["relevance"] == 0).all()
  assert counts["relevance/unscored_retrievals"] == 1 and "frame_recall" not in counts


def test_of_evidence_partly_outside_the_pool_the_part_inside_counts():
  cut, inside = _task(), _task()
  said = [look(20, 21), RIGHT], [look(20, 23), RIGHT]
  scores, counts = _finished(cut, *said, relevant=(-1, 20, 21, 64, 99))
  expected, wanted = _finished(inside, *said, relevant=(20, 21))
  np.testing.assert_array_equal(scores.total, expected.total)
  assert scores.rewards["relevance"][0, :, 0].tolist() == [0.5, 0.5]
  assert counts == wanted


def test_prompts_of_one_batch_may_have_pools_of_different_sizes():
  alone = [_scores(_task(), [look(0, 1), RIGHT], relevant=(1,), pool=pool) for pool in (2, 64)]
  played = [
    [environment.Episode(pool=pool, relevant=(1,), replies=(look(0, 1), RIGHT))] for pool in (2, 64)
  ]
  both, _ = _finish(_task(), [EXAMPLE, EXAMPLE], played)
  np.testing.assert_array_equal(both.total, np.concatenate([one.total for one in alone]))


def test_the_codes_variant_scores_by_its_own_rules():
  task = _task(relevance=relevance.RelevanceRule(variant="code"))
  scores = _scores(task, [look(20, 21), RIGHT], [look(20, 21), WRONG])
  np.testing.assert_allclose(scores.total[0], [[0.6, 1.0, 0], [0.1, 0.1, 0]], atol=1e-6)


def test_retrieving_seldom_is_rewarded_until_it_is_done_often_enough_in_a_row():
  task = _task(exploration=exploration.ExplorationRule(patience=2))
  rare = [[RIGHT]] * 10 + [[look(0, 1), WRONG]]
  scores, counts = _finished(task, *rare)
  assert scores.rewards["exploration"][0, -1].tolist() == [1, 0, 0]
  assert scores.total[0, -1, 0] == 1
  assert counts["retrieval_rate"] == counts["exploration/bonus_fraction"] == pytest.approx(1 / 12)
  often = [[look(0, 1), RIGHT]] * 2
  _scores(task, *often)
  kept = json.loads(json.dumps(task.state()))
  assert kept == {"above": 1, "closed": False}
  _scores(task, *often)
  assert (_scores(task, *rare).rewards["exploration"] == 0).all()
  again = _task(exploration=exploration.ExplorationRule(patience=2))
  again.set_state(kept)
  assert again.state() == kept
  assert _scores(again, *rare).rewards["exploration"].max() == 1


def test_counts_are_those_of_the_batch():
  task = _task()
  _scores(task, [JUNK])
  _, counts = _finished(task, [JUNK, RIGHT], [look(20, 21), RIGHT], [RIGHT], [RIGHT])
  assert counts == {
    "turns": 1.5,
    "episode_accuracy": 1.0,
    "retrieval_rate": pytest.approx(1 / 6),
    "invalid_action_rate": pytest.approx(1 / 6),
    "exploration/bonus_fraction": 0,
    "relevance/unscored_retrievals": 0,
    "exploration/ended": 0,
    "frame_recall": 0.25,
  }


def test_a_look_that_no_turn_can_show_gets_no_bonus_and_is_not_exploring():
  late = [WRONG[:-1], JUNK, look(0, 1)]
  scores = _scores(_task(exploration=exploration.ExplorationRule(stages=((0.5, 1.0),))), late)
  assert (scores.rewards["exploration"] == 0).all()
  alone = _task(turns=1, exploration=exploration.ExplorationRule(stages=((0.5, 1.0),), patience=1))
  assert (_scores(alone, [look(0, 1)]).rewards["exploration"] == 0).all()
  assert not alone.state()["closed"]


def test_processes_that_share_a_batch_decide_on_the_bonus_and_count_together():
  mine, others = [[look(0, 1), RIGHT]] * 2, [[RIGHT]] * 16

  def together(*groups):
    """What the last of these processes finds."""
    asked = [[] for _ in groups]
    for number, episodes in enumerate(groups):
      task = _task(exploration=exploration.ExplorationRule(patience=1))
      others_said = iter(zip(*asked[:number], strict=True)) if number else iter(())

      def summed(numbers, number=number, others_said=others_said):
        asked[number].append(numbers)
        return numbers + sum(next(others_said, ()))

      played = [environment.Episode(pool=64, relevant=(20,), replies=tuple(e)) for e in episodes]
      scores, counts = _finish(task, [EXAMPLE], [played], sum_processes=summed)
    return task, scores, counts

  whole = _task(exploration=exploration.ExplorationRule(patience=1))
  expected, wanted = _finished(whole, *others, *mine, relevant=(20,))
  task, scores, counts = together(others, mine)
  assert counts == pytest.approx(wanted) and task.state() == whole.state()
  bonus = scores.rewards["exploration"][0]
  np.testing.assert_array_equal(bonus, expected.rewards["exploration"][0, -2:])
  assert bonus.max() == 0.5


def test_an_answer_is_worth_what_its_problem_type_says():
  task, example = (
    _task(),
    dataclasses.replace(EXAMPLE, problem_type="regression", options=(), answer="4"),
  )
  said = ("<think></think><answer>3</answer>",)
  episode = environment.Episode(pool=4, relevant=(), replies=said)
  scores = task.score([example], _replies([[episode]]))
  assert scores.rewards["accuracy"][0, 0, 0] == 0.75


def test_thousands_of_odd_replies_break_no_rule():
  outcome = fuzz_video_mtr.run(3000, seed=1)
  assert outcome["broken"] == {} and outcome["replies"] >= 3000
  problems = {f"invalid {problem}" for problem in ("format", "interval", "range", "answer")}
  assert set(outcome["read_as"]) == {"answer", "retrieve"} | problems


def test_a_share_of_the_examples_shows_a_look_before_the_answer():
  times = np.arange(64.0)
  span = (records.Span(start=40.0, end=44.0),)
  step = records.Step(text="It is red.", start=40.0, end=44.0)
  some = [dataclasses.replace(EXAMPLE, id=str(n), relevant=span, steps=(step,)) for n in range(200)]
  shown = [_task(sft_retrieval_fraction=0.25).reference_replies(one, times) for one in some]
  looks = [replies for replies in shown if len(replies) == 2]
  assert 30 < len(looks) < 70
  assert looks[0][0].endswith("<retrieve>40,43</retrieve>")
  for replies in shown:
    assert (
      retrieval_actions.parse(replies[-1], 64, some[0].problem_type, some[0].options).kind
      == "answer"
    )
    assert ("It is red." in replies[-1]) == (len(replies) == 2)
  assert _task().reference_replies(some[0], times) == ()


def test_what_an_episode_came_to():
  episode = environment.Episode(pool=64, relevant=(8, 9), replies=(look(8, 9), RIGHT))
  found = _task().episode_metrics(EXAMPLE, episode)
  assert found == {
    "accuracy": 1.0,
    "format": 1.0,
    "turns": 2.0,
    "retrievals": 1.0,
    "frame_recall": 1.0,
  }


def test_what_is_only_evaluated_gets_no_bonus_and_leaves_no_trace():
  task = _task(exploration=exploration.ExplorationRule(stages=((0.5, 1.0),)))
  episode = environment.Episode(pool=64, relevant=(8, 9), replies=(look(8, 9), RIGHT))
  before = task.state()
  scores = task.score([EXAMPLE], _replies([[episode]]))
  assert "exploration" not in scores.rewards and task.state() == before and not task.counts()
  trained, counts = _finish(task, [EXAMPLE], [[episode]])
  np.testing.assert_allclose(trained.total - scores.total, trained.rewards["exploration"])
  assert counts["episode_accuracy"] == 1


def test_thoughts_of_a_demonstration_tell_what_changes_in_the_frames_of_their_own_turn():
  values = ("red", "blue", "red", "green", "red", "blue", "green", "red")
  states = [
    records.State(object="star", time=8.0 * cell, attribute=attribute, value=value)
    for cell, colour in enumerate(values)
    for attribute, value in (("colour", colour), ("size", "small"))
  ]
  span = (records.Span(start=40.0, end=48.0),)
  example = dataclasses.replace(EXAMPLE, relevant=span, states=tuple(states))
  first, second = _task(sft_retrieval_fraction=1.0, frame_budget=8).reference_replies(
    example, np.arange(64.0)
  )
  before, asked = "At 0s, the star is red. At 16s, the star is red.", "At 40s, the star is blue."
  told = f"{before} {asked} At 56s, the star is red."
  assert first == f"<think>{told}</think>\n<retrieve>40,47</retrieve>"
  assert second == f"<think>{asked}</think>\n<answer>{EXAMPLE.answer}</answer>"


def test_thoughts_of_a_demonstration_tell_nothing_that_is_hidden_or_not_known_yet():
  states = [
    records.State(object="star", time=time, attribute=attribute, value=value)
    for time, attribute, value in (
      (24.0, "colour", "red"),
      (8.0, "colour", "blue"),
      (8.0, "place", "left"),
      (24.0, "place", "right"),
      (8.0, "visibility", "hidden"),
      (24.0, "visibility", "visible"),
    )
  ]
  step = records.Step(text="It comes out.", start=24.0, end=32.0)
  example = dataclasses.replace(EXAMPLE, states=tuple(states), steps=(step,))
  (reply,) = _task(sft_retrieval_fraction=0.5, frame_budget=8, turns=1).reference_replies(
    example, np.arange(32.0)
  )
  told = "At 24s, the star is red. It comes out."
  assert reply == f"<think>{told}</think>\n<answer>{EXAMPLE.answer}</answer>"
