"""Video-MTR through every stage: episodes, rewards of turns, policy and critic, resuming."""

import collections
import functools
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, records
from vr_jax.envs import video_mtr
from vr_jax.eval import stage
from vr_jax.models.common import processor
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rollout import dialogue
from vr_jax.train import data_stage, experience, metrics, rl_loop, sft_loop, train_step

RECIPE = "configs/video_mtr.py"
OVERRIDES = {
  "data__simulate__world__behaviours": ("flicker",),
  "data__simulate__world__families": ("moment",),
  "data__simulate__world__fps": 1,
  "data__simulate__world__seconds": 16.0,
  "data__simulate__world__shown": 16.0,
  "data__simulate__world__dwell": 2.0,
  "data__frames": 8,
  "env__frame_budget": 8,
  "env__sft_retrieval_fraction": 0.5,
  "model__prefix_buckets": (256,),
  "model__frame_buckets": (8,),
  "env__turns": 2,
  "turns__episode_buckets": (128,),
  "turns__observation_buckets": (96,),
  "turns__frame_buckets": (2,),
  "turns__decode_chunk": 16,
  "turns__append_batch_size": 16,
  "critic__kl_weight": 0.1,
  "critic__warmup_steps": 0,
  "sft__steps": 0,
  "sft__max_reply_tokens": 96,
  "rl__token_bucket_ratio": 2.0,
  "rl__temperature": 0.9,
}


# The times of frames are text, which takes room.
WITH_TIMES = {
  "size": "tiny_qwen3vl",
  "model__prefix_buckets": (384,),
  "turns__episode_buckets": (192,),
  "turns__observation_buckets": (128,),
}


def config(tmp_path, **changes):
  overrides = {**OVERRIDES, "data__directory": str(tmp_path / "data")}
  return nano.config(RECIPE, **{**overrides, **changes})


def values_of(workdir, name):
  lines = metrics.read(workdir / "metrics.jsonl")
  return [line["values"][name] for line in lines if line["stage"] == "rl"]


LOOK, BEYOND = (f"<think>a</think><retrieve>0,{end}</retrieve>" for end in (0, 1))
ANSWER, JUNK = "<think>a</think><answer>A</answer>", "a"


def looks_or_answers(ids):
  """A text for these tokens: untrained replies differ, so their rewards differ as well."""
  return LOOK if sum(map(int, ids)) % 2 else ANSWER


def one_step(tmp_path, monkeypatch, **changes):
  """Makes an RL step whose replies decode to the four texts above, one after the other.

  Returns what was shown after which replies, the episodes, and the scores.
  """
  nano.use_devices(monkeypatch, 1)
  run = config(tmp_path, rl__steps=1, env__relevance__gate=False, **changes)
  if run.sft.steps:  # its replies are as they are written
    data_stage.prepare(run, tmp_path)
    sft_loop.train(run, tmp_path)
  said = functools.partial(next, itertools.cycle((LOOK, BEYOND, ANSWER, JUNK)))
  texts, shown, earned = collections.defaultdict(said), [], []
  observe, finish_batch = video_mtr.VideoMTR.observe, video_mtr.VideoMTR.finish_batch

  def observed(task, example, pool, replies):
    shown.append((tuple(replies), observe(task, example, pool, replies)))
    return shown[-1][1]

  def finished(task, examples, replies, scores, **options):
    found = finish_batch(task, examples, replies, scores, **options)
    earned.append(([*itertools.chain.from_iterable(replies.episodes)], found[0]))
    return found

  monkeypatch.setattr(video_mtr.VideoMTR, "observe", observed)
  monkeypatch.setattr(video_mtr.VideoMTR, "finish_batch", finished)
  monkeypatch.setattr(
    processor.VideoProcessor, "decode", lambda _, ids: texts[tuple(map(int, ids))]
  )
  data_stage.prepare(run, tmp_path)
  rl_loop.train(run, tmp_path)
  assert np.isfinite(values_of(tmp_path, "loss")).all()
  ((episodes, scores),) = earned
  return shown, episodes, scores


def test_with_one_turn_no_look_is_offered_shown_or_paid_for(tmp_path, monkeypatch):
  told = {"env__instruction": "Look.", "env__last_instruction": "Answer."}
  shown, episodes, scores = one_step(
    tmp_path, monkeypatch, env__turns=1, env__frame_budget=4, **told
  )
  for replies, seen in shown:
    if replies:
      assert seen is None
    else:
      assert len(seen.frames) == 4
      assert seen.parts[-1].endswith("Answer.") and "Look." not in seen.parts[-1]
  looked = [episode.replies in ((LOOK,), (BEYOND,)) for episode in episodes]
  assert any(looked) and not all(looked)
  np.testing.assert_allclose(scores.total.ravel()[looked], 0.1)  # the format alone
  assert (scores.rewards["relevance"] == 0).all() and (scores.rewards["exploration"] == 0).all()
  assert values_of(tmp_path, "turns") == [1]
  assert np.isfinite(values_of(tmp_path, "critic/loss")).all()


def test_of_a_pool_of_one_frame_every_look_shows_that_frame_and_earns_nothing_more(
  tmp_path, monkeypatch
):
  changes = {"data__frames": 1, "rl__advantage_estimator": "episode", "critic__kl_weight": 0.0}
  shown, episodes, scores = one_step(tmp_path, monkeypatch, **changes)
  seen = {replies: what for replies, what in shown if what}
  assert seen.keys() == {(), (LOOK,), (BEYOND,), (JUNK,)}
  assert seen[()].frames == seen[LOOK,].frames == (0,)
  assert seen[BEYOND,].frames == seen[JUNK,].frames == ()
  assert all(episode.pool == 1 for episode in episodes)
  assert (scores.rewards["relevance"] == 0).all()
  invalid = [reply in (BEYOND, JUNK) for episode in episodes for reply in episode.replies]
  assert values_of(tmp_path, "invalid_action_rate") == [pytest.approx(np.mean(invalid))]


@pytest.mark.parametrize(
  ("changes", "times"),
  [
    ({"env__history_turns": 0}, {LOOK: [], BEYOND: []}),
    (
      {**WITH_TIMES, "sft__steps": 1},
      {LOOK: ["<0.0 seconds>"], BEYOND: ["<0.0 seconds>", "<2.0 seconds>"]},
    ),
  ],
  ids=["with a window that forgets", "where frames have their times before them"],
)
def test_sampler_and_update_agree(tmp_path, monkeypatch, changes, times):
  later, observe = {}, dialogue.Dialogue.observe

  def observed(self, row, group_index, replies):
    encoded = observe(self, row, group_index, replies)
    if encoded:
      text = self.processor.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False)
      before_pictures = re.findall(r"(<[^<>|]*>)?<\|vision_start\|>", text)
      later[self.processor.decode(replies[-1])] = [told for told in before_pictures if told]
    return encoded

  monkeypatch.setattr(dialogue.Dialogue, "observe", observed)
  shown, episodes, _ = one_step(tmp_path, monkeypatch, **changes)
  assert {reply: later[reply] for reply in times} == times
  assert any(len(episode.replies) == 2 for episode in episodes)
  np.testing.assert_allclose(
    values_of(tmp_path, "sampling/importance_sampling_ratio/mean"), 1, atol=1e-4
  )
  assert np.isfinite(values_of(tmp_path, "critic/loss")).all() and shown


def test_with_credit_by_episode_every_token_gets_what_all_turns_earned_together():
  total = np.array([[[1, 2], [3, 0], [0, 9]]], np.float32)
  valid = np.array([[[1, 1], [1, 0], [1, 1]]], bool)
  turn = np.array([[[0, -1, 1], [0, -1, -1], [0, -1, 1]]], np.int32)
  scores = records.Scores(rewards={"accuracy": total}, scored=valid, total=total)
  advantages, signal, values = advantages_lib.compute_advantages(
    jax.tree.map(jnp.asarray, scores),
    jnp.asarray(turn),
    segments=("turn 1", "turn 2"),
    multi_turn=True,
    estimator="episode",
    normalize_by_std=False,
    max_tokens=1,
  )
  np.testing.assert_allclose(advantages, [[[-2, 0, -2], [-2, 0, 0], [4, 0, 4]]], rtol=1e-6)
  assert signal.all() and values["completions/clipped_ratio"] == 1
  assert values["rewards/turn 2/accuracy/mean"] == pytest.approx(5.5)  # the second has none


@pytest.mark.parametrize(
  "changes",
  [
    {"env__on_invalid_action": "explain"},
    {"env__turns": 3, "env__history_turns": 2, "env__last_instruction": "And now? " * 30},
  ],
  ids=["why a reply can't be used", "the last turn"],
)
def test_all_that_a_turn_may_show_is_measured_before_training(tmp_path, monkeypatch, changes):
  nano.use_devices(monkeypatch, 1)
  with pytest.raises(errors.InputError, match="tokens shown in a turn"):
    data_stage.prepare(config(tmp_path, **changes), tmp_path / "run")


def test_a_run_goes_from_episodes_to_a_report_and_resumes_as_if_never_stopped(
  tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  first, second = tmp_path / "first", tmp_path / "second"
  run = config(tmp_path, rl__steps=3, rl__checkpoint_every=1)
  data_stage.prepare(run, first)
  rl_loop.train(run, first)
  np.testing.assert_allclose(
    values_of(first, "sampling/importance_sampling_ratio/mean"), 1, atol=1e-4
  )
  assert len(set(values_of(first, "critic/loss"))) == 3
  assert all(np.isfinite(values_of(first, "critic/kl")))

  class Stopped(Exception):
    pass

  def stop(self, step, values, write=metrics.MetricsLog.write):
    write(self, step, values)
    if step == 3:
      raise Stopped

  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(metrics.MetricsLog, "write", stop)
    rl_loop.train(run, second)
  rl_loop.train(run, second)
  for name in ("loss", "critic/loss", "rewards/turn 1/total/mean", "retrieval_rate"):
    assert values_of(first, name)[-1] == values_of(second, name)[-1], name
  _check_rollouts(first, second)
  stage.evaluate(run, second)
  found = json.loads((second / "eval" / "after_rl.json").read_text())
  assert 1 <= found["metrics"]["turns"] <= 2
  replies = (second / "eval" / "after_rl.jsonl").read_text().splitlines()
  reply = json.loads(replies[0])
  assert len(reply["turns"][0]["shown"]) == 4
  assert len(reply["times"]) == 8
  lines = (second / "eval" / "frames.jsonl").read_text().splitlines()
  frames = {each["id"]: each["frames"] for each in map(json.loads, lines)}
  assert len(frames) == run.eval.report_samples
  for shown in (each for each in map(json.loads, replies) if each["id"] in frames):
    assert {str(i) for turn in shown["turns"] for i in turn["shown"]} <= frames[shown["id"]].keys()


def _check_rollouts(first, second):
  """Rollouts have all turns with what they showed, and are the same in a run that was resumed."""
  written = {path.name: path.read_bytes() for path in (first / "rollouts").iterdir()}
  assert len(written) == 3
  assert written == {path.name: path.read_bytes() for path in (second / "rollouts").iterdir()}
  replies = [
    reply
    for line in written["step-000003.jsonl"].splitlines()
    for reply in json.loads(line)["replies"]
  ]
  for reply in replies:
    turns = reply["turns"]
    assert len(turns[0]["times"]) == 4 and reply["text"] == turns[-1]["text"]
    names = {f"turn {number}" for number in range(1, 1 + len(turns))}
    assert reply["advantages"].keys() == names == {n.split("/")[0] for n in reply["rewards"]}
  totals = [reply["rewards"]["turn 1/total"] for reply in replies]
  expected = values_of(first, "rewards/turn 1/total/mean")[-1]
  assert np.mean(totals) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return nano.make_data(tmp_path_factory.mktemp("turns"), recipe=RECIPE, **OVERRIDES)


@pytest.mark.parametrize(
  "changes",
  [
    {"rl__num_iterations": 2},
    {"rl__microbatches": 2},
    {"model__freeze_vision": True},
    {"rl__one_step_off_policy": True, "rl__steps": 2},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_policy_and_critic_learn_whatever_the_way_an_update_is_made(
  data, tmp_path, monkeypatch, changes
):
  nano.use_devices(monkeypatch, 1)
  monkeypatch.setattr(processor.VideoProcessor, "decode", lambda _, ids: looks_or_answers(ids))
  make, updates = train_step.make_rl_step, []

  def watched(*arguments, **options):
    update = make(*arguments, **options)

    def noted(*batch, **packed):
      state, values = update(*batch, **packed)
      updates.append(jax.device_get(values))
      return state, values

    return noted

  monkeypatch.setattr(train_step, "make_rl_step", watched)
  one_program = {"rl__token_bucket_ratio": 0.0, "rl__max_new_tokens": 4, "critic__kl_weight": 0.0}
  settings = {**OVERRIDES, **one_program, "rl__steps": 1, **changes, "data__directory": str(data)}
  run = nano.config(RECIPE, **settings)
  rl_loop.train(run, tmp_path)
  for name in ("loss", "critic/loss", "grad_norm", "critic/grad_norm"):
    found = values_of(tmp_path, name)
    assert len(found) == run.rl.steps and np.isfinite(found).all()
  assert values_of(tmp_path, "critic/loss")[0] > 0
  ratios = [values["policy_ratio"] for values in updates]
  assert len(ratios) == run.rl.steps * run.rl.num_iterations
  assert ratios[0] == pytest.approx(1, abs=1e-5)
  assert updates[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
  if run.rl.num_iterations > 1:
    assert abs(ratios[1] - 1) > 1e-6
  if run.rl.one_step_off_policy:
    assert abs(updates[1]["sampling/importance_sampling_ratio/mean"] - 1) > 1e-6


def test_a_bonus_that_has_ended_stays_ended_in_a_run_that_goes_on_from_a_checkpoint(
  tmp_path, monkeypatch
):
  """All episodes of the first two batches retrieve frames; in the third, some answer at once."""
  nano.use_devices(monkeypatch, 1)
  drawn, batch = experience.Collector.collect, [0]

  def noted(source, params, step, timer):
    batch[:] = [step]
    return drawn(source, params, step, timer)

  def said(_, ids):
    return LOOK if batch[0] < 3 else looks_or_answers(ids)

  class Stopped(Exception):
    pass

  def stop(self, step, values, write=metrics.MetricsLog.write):
    write(self, step, values)
    if step == 3:
      raise Stopped

  monkeypatch.setattr(experience.Collector, "collect", noted)
  monkeypatch.setattr(processor.VideoProcessor, "decode", said)
  changes = {
    "rl__advantage_estimator": "episode",
    "critic__kl_weight": 0.0,
    "env__exploration__patience": 2,
  }
  run = config(tmp_path, rl__steps=3, rl__checkpoint_every=1, **changes)
  data_stage.prepare(run, tmp_path)
  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(metrics.MetricsLog, "write", stop)
    rl_loop.train(run, tmp_path)
  names = ("exploration/ended", "exploration/bonus_fraction", "turns")
  before = {name: values_of(tmp_path, name) for name in names}
  rl_loop.train(run, tmp_path)
  assert {name: values_of(tmp_path, name) for name in names} == before
  assert before["exploration/ended"] == [0, 1, 1] and before["exploration/bonus_fraction"] == [
    0,
    0,
    0,
  ]
  assert before["turns"][:2] == [2, 2]
  assert 1 < before["turns"][2] < 2  # some answer at once: fewer than half of the turns look


def test_of_a_demonstrated_episode_one_reply_is_learnt_behind_the_conversation_before_it(tmp_path):
  data = nano.make_data(tmp_path, recipe=RECIPE, **OVERRIDES)
  context = nano.build(data, recipe=RECIPE, **OVERRIDES)
  items = [*next(context.builder.read("train", 12, view="supervised")).items]
  actions = {context.processor.decode(item.reply).split(">")[-2].rsplit("<")[-1] for item in items}
  assert actions == {"/answer", "/retrieve"}
  for item in items:
    task, times = context.environment, item.clip.timestamps
    replies = task.reference_replies(item.example, times)
    turn = replies.index(context.processor.decode(item.reply))
    observations = [task.observe(item.example, 8, replies[:number]) for number in range(turn + 1)]
    assert None not in observations
    frames = [each.frames for each in observations if each]
    assert len(item.encoded.frames) == sum(map(len, frames))
