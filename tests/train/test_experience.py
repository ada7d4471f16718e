"""Experience: dynamic sampling, replies that are sampled a step ahead, and padding."""

import dataclasses
import functools
import itertools
import shutil
from typing import Any
import zlib

import jax
import ml_collections
import numpy as np
import pytest

from tests.train import counting, nano
from vr_jax import errors, records
from vr_jax.envs import registry
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import decode_replies, dialogue, encoder
from vr_jax.train import (
  batching,
  experience,
  initialization,
  learner,
  metrics,
  reply_shapes,
  rl_loop,
  scoring,
  step_timer,
  train_step,
  vision_features,
)

PROMPTS, GROUP = 4, 4


class Choosy:
  """An environment where replies get different rewards on every `nth` question, else none."""

  def __init__(self, environment, nth):
    self.environment, self.nth, self.seen = environment, nth, []

  def __getattr__(self, name):
    return getattr(self.environment, name)

  def score(self, examples, replies):
    total = np.zeros((len(examples), len(replies.texts[0]), 1), np.float32)
    for row, group in enumerate(replies.texts):
      if len(self.seen) % self.nth == 0:
        total[row, :, 0] = [1 + zlib.crc32(reply.encode()) % 97 for reply in group]
      self.seen.append((examples[row].id, float(total[row].sum()) > 0))
    return records.Scores(rewards={"luck": total}, scored=np.ones_like(total, bool), total=total)


@pytest.fixture
def source(data):
  """Makes a collector where every `nth` group has signal."""
  with scoring.scoring_thread() as thread:
    yield functools.partial(_source, data, thread)


def _source(data, thread, nth, **overrides):
  context = nano.build(data, rl__num_generations=GROUP, **overrides)
  context = dataclasses.replace(context, environment=Choosy(context.environment, nth))
  return experience.Collector(
    context=context,
    batches=context.builder.read("train", PROMPTS),
    cache=None,
    key=jax.random.key(0),
    scoring_thread=thread,
  )


@pytest.fixture(scope="module")
def params(data):
  return nano.sharpened(initialization.fresh_params(nano.build(data)))


def test_what_is_read_ahead_is_drawn_next_and_does_not_count_as_read_before(source, params):
  plain, reader = source(1), source(1)
  for step in (1, 2):
    expected, made = (one.collect(params, step, step_timer.StepTimer()) for one in (plain, reader))
    reader.prefetch(params)
    assert [item.example.id for item in made.items] == [item.example.id for item in expected.items]
    assert made.iterator_state == expected.iterator_state
    np.testing.assert_array_equal(made.rollout.tokens, expected.rollout.tokens)
  assert reader.batches.get_state() != plain.batches.get_state()


def test_groups_without_signal_are_replaced_until_the_batch_is_full(source, params):
  source = source(3, rl__dynamic_sampling_max_batches=5)
  made = source.collect(params, 1, step_timer.StepTimer())
  seen = source.context.environment.seen
  lucky = [name for name, luck in seen if luck]
  assert len(seen) == 3 * PROMPTS  # with 12 there are 4
  assert [item.example.id for item in made.items] == lucky[:PROMPTS]
  assert made.metrics["dynamic_sampling/batches"] == 3
  assert made.metrics["dynamic_sampling/signal_fraction"] == pytest.approx(1 / 3)
  assert (made.wait_for_scores().scores.total.std(axis=1) > 0).all()
  prompts = len(made.lengths) * made.prompt_tokens
  assert made.computed_tokens > made.useful_tokens > 2 * (made.lengths.sum() + prompts)


def test_replies_stay_with_their_prompts_when_groups_of_several_batches_come_together(
  source, params
):
  source = source(3, rl__dynamic_sampling_max_batches=5)
  made = source.collect(params, 1, step_timer.StepTimer())
  context = source.context
  score = train_step.make_logprob_fn(
    context.graphdef, context.allowed_tokens, temperature=context.config.rl.temperature
  )
  log_probs = score(params, made.prompt, made.rollout)
  np.testing.assert_allclose(log_probs, made.rollout.log_probs, rtol=1e-5, atol=1e-5)
  scenes = [dialogue.EpisodeScene(example=item.example, pool=item.clip) for item in made.items]
  host = dialogue.Dialogue(
    environment=context.environment, processor=context.processor, scenes=scenes
  )
  for group, total in zip(
    decode_replies.decode_replies(host, made.rollout).texts,
    made.wait_for_scores().scores.total[..., 0],
    strict=True,
  ):
    np.testing.assert_array_equal(total, [1 + zlib.crc32(text.encode()) % 97 for text in group])
  assert [
    [episode.replies[-1] for episode in group] for group in made.wait_for_scores().episodes
  ] == decode_replies.decode_replies(host, made.rollout).texts


@pytest.mark.parametrize("frozen", [True, False])
def test_prompts_of_several_batches_keep_the_features_that_they_were_sampled_with(
  source, params, monkeypatch, frozen
):
  source = source(
    2, rl__dynamic_sampling_max_batches=1, model__freeze_vision=frozen, model__frame_buckets=(2, 4)
  )
  context, towers, run = source.context, [], encoder.features
  monkeypatch.setattr(encoder, "features", lambda *args: towers.append(1) or run(*args))
  source = dataclasses.replace(source, batches=Ragged(context))
  made = source.collect(params, 1, step_timer.StepTimer())
  assert len(towers) == made.metrics["dynamic_sampling/batches"] == 2

  patches = context.builder.prompt(context.builder.batch(made.items))
  anew = encoder.encode(context.graphdef, params, patches)
  shown = np.asarray(anew.media_index)
  assert (shown >= 0).any(axis=1).tolist() == [True, True, True, False]
  assert anew.media is not None
  assert made.prompt_with_features.media.shape == anew.media.shape
  for row, index in enumerate(shown):
    media, expected = (
      np.asarray(x.media)[row][index[index >= 0]] for x in (made.prompt_with_features, anew)
    )
    np.testing.assert_allclose(media, expected, atol=1e-6 * abs(expected).max(initial=0))
  given = anew if frozen else patches
  for prompt, expected in ((made.prompt_with_features, anew), (made.prompt, given)):
    without, wanted = (dataclasses.replace(one, media=None) for one in (prompt, expected))
    jax.tree.map(np.testing.assert_array_equal, without, wanted)
  np.testing.assert_array_equal(made.media_index, shown)


class Ragged:
  """Two batches of clips with 0, 1 and 2 temporal patches, the second in too large buckets."""

  def __init__(self, context):
    items = nano.ragged_items(context, 8)
    sizes = prompts_lib.PromptSizes(prefix=128, frames=4, patches=32)
    first = context.builder.batch([items[row] for row in (1, 3, 2, 3)])
    self.left = iter(
      [first, context.builder.batch([items[row] for row in (6, 7, 7, 5)], sizes=sizes)]
    )

  def __iter__(self):
    return self

  def __next__(self):
    return next(self.left)

  def get_state(self):
    return {}


def test_what_the_cache_had_of_each_batch_is_counted_once(data, params, tmp_path):
  on = {
    "model__freeze_vision": True,
    "model__feature_cache_gib": 1.0,
    "rl__dynamic_sampling_max_batches": 1,
  }
  copied = shutil.copytree(data, tmp_path / "data")
  with scoring.scoring_thread() as thread:
    source = _source(copied, thread, 2, **on)
    context = source.context
    found = []
    for _ in range(2):
      with vision_features.open_cache(context, params, copied) as cache:
        batches = context.builder.read("train", PROMPTS, cache=cache)
        made = dataclasses.replace(source, batches=batches, cache=cache).collect(
          params, 1, step_timer.StepTimer()
        )
      assert made.metrics["dynamic_sampling/batches"] == 2
      assert made.metrics["vision/cache_rebuilt"] == 0
      found.append(made.metrics["vision/cache_hits"])
  # A clip of the second batch may be in the cache already, from the first batch.
  assert found[0] < found[1] == 2 * PROMPTS


def test_where_too_few_groups_carry_signal_the_cap_ends_the_search_and_others_fill_up(
  source, params
):
  source = source(100, rl__dynamic_sampling_max_batches=1)
  made = source.collect(params, 1, step_timer.StepTimer())
  seen = [name for name, _ in source.context.environment.seen]
  assert len(seen) == 2 * PROMPTS
  assert [item.example.id for item in made.items] == seen[:PROMPTS]
  assert (made.wait_for_scores().scores.total.std(axis=1) > 0).sum() == 1


def test_replies_are_judged_while_others_are_drawn_and_in_their_order(source, params):
  source = source(1)
  drawn = [source.collect(params, step, step_timer.StepTimer()) for step in (1, 2)]
  assert [made.wait_for_scores().scores.total.shape for made in drawn] == [(PROMPTS, GROUP, 1)] * 2
  asked = [item.example.id for made in drawn for item in made.items]
  assert [name for name, _ in source.context.environment.seen] == asked


def test_where_scoring_fails_the_step_does(source, params, monkeypatch):
  source = source(1)
  monkeypatch.setattr(source.context.environment, "score", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    source.collect(params, 1, step_timer.StepTimer()).wait_for_scores()


def test_one_step_off_policy_updates_on_replies_of_the_policy_before(data, tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  monkeypatch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)
  differences = {}
  for off in (False, True):
    config = nano.config(
      data__directory=str(data),
      sft__steps=0,
      rl__steps=3,
      rl__learning_rate=3e-3,
      rl__one_step_off_policy=off,
    )
    rl_loop.train(config, tmp_path / str(off))
    lines = metrics.read(tmp_path / str(off) / "metrics.jsonl")
    differences[off] = [line["values"]["sampling/sampling_logp_difference/mean"] for line in lines]
  assert max(differences[False]) < 1e-4
  assert differences[True][0] < 1e-4  # sampled before any update
  assert min(differences[True][1:]) > 1e-2


def test_off_policy_the_first_of_several_updates_starts_at_ratio_1(data, tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  monkeypatch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)
  of_epochs = []

  def over_epochs(updates):
    of_epochs.append([update["policy_ratio"] for update in updates])
    return learner_over_epochs(updates)

  learner_over_epochs = learner.combine_updates
  monkeypatch.setattr(learner, "combine_updates", over_epochs)
  config = nano.config(
    data__directory=str(data),
    sft__steps=0,
    rl__steps=2,
    rl__num_iterations=2,
    rl__learning_rate=3e-3,
    rl__one_step_off_policy=True,
  )
  rl_loop.train(config, tmp_path / "run")
  first, second = np.array(of_epochs).T
  np.testing.assert_allclose(first, 1, atol=1e-5)
  assert (abs(second - 1) > 1e-5).any()


def _rl(**changes):
  fields = {
    "advantage_estimator": "segments",
    "max_new_tokens": 64,
    "token_bucket_ratio": 1.25,
    "microbatches": 2,
    "log_prob_microbatches": 1,
    "num_generations": GROUP,
    "num_iterations": 2,
    "kl_weight": 0.1,
  }
  return ml_collections.ConfigDict({**fields, **changes})


LENGTHS = np.array([[20, 3, 3, 1], [2, 2, 2, 2], [9, 9, 9, 9], [1, 1, 1, 1]])


def test_arrays_are_halved_while_they_hold_the_longest_reply_and_packed_to_the_fuller_part():
  shapes = reply_shapes.choose_reply_shapes(_rl(), layout_lib.OneDevice(), LENGTHS, budget=64)
  assert shapes.time == 32
  # Rows 0 and 2 are one part, with 63 tokens of 256; 256 / 1.25^6 = 67.1.
  assert shapes.packed_length == 68
  assert shapes.packed_length_of_scorers == int(np.ceil(512 / 1.25**8))  # at least 75
  halves = _rl(log_prob_microbatches=2)
  shapes = reply_shapes.choose_reply_shapes(halves, layout_lib.OneDevice(), LENGTHS, budget=64)
  assert shapes.packed_length_of_scorers == 68


def test_without_packing_only_the_time_is_cut():
  shapes = reply_shapes.choose_reply_shapes(
    _rl(token_bucket_ratio=0), layout_lib.OneDevice(), LENGTHS, budget=64
  )
  assert shapes == reply_shapes.ReplyShapes(
    time=32, packed_length=None, packed_length_of_scorers=None
  )


@pytest.mark.parametrize("turns", [False, True])
def test_replies_are_cut_with_all_that_stands_beside_their_tokens(turns):
  tokens = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
  fields = {"tokens": tokens, "log_probs": tokens.astype(np.float32), "kind": tokens}
  suffix = records.EpisodeInputs(
    positions=np.repeat(tokens[..., None], 3, axis=-1), media_index=tokens, vision=None
  )
  rollout = records.Rollout(**fields, turn=tokens, episode_inputs=suffix if turns else None)
  cut = reply_shapes.truncate(rollout, 2)
  for name in ("tokens", "log_probs", "kind", "turn"):
    np.testing.assert_array_equal(getattr(cut, name), tokens[:, :, :2])
  if turns:
    assert cut.episode_inputs is not None
    np.testing.assert_array_equal(cut.episode_inputs.media_index, tokens[:, :, :2])
    np.testing.assert_array_equal(cut.episode_inputs.positions[..., 1], tokens[:, :, :2])
  else:
    assert cut.episode_inputs is None


def test_the_share_of_padding_is_that_of_a_count_by_hand(source, params):
  drawn = source(1).collect(params, 1, step_timer.StepTimer())
  made = dataclasses.replace(
    drawn, lengths=LENGTHS, prompt_tokens=30.0, useful_tokens=195, computed_tokens=320
  )
  layout, prefix = layout_lib.OneDevice(), drawn.prompt_with_features.tokens.shape[1]
  shapes = reply_shapes.choose_reply_shapes(_rl(), layout, LENGTHS, budget=64)
  assert shapes.packed_length is not None
  assert shapes.packed_length_of_scorers is not None
  # Two updates and two scorers, each over 4 prompts.
  scored = 2 * shapes.packed_length_of_scorers
  computed = 320 + 2 * 2 * shapes.packed_length + scored + 4 * 4 * prefix
  wanted = 195 + 4 * 75 + 4 * 4 * 30
  assert reply_shapes.padding_fraction(_rl(), layout, made, shapes, scorers=2) == pytest.approx(
    1 - wanted / computed
  )
  twice = _rl(log_prob_microbatches=2)
  found = reply_shapes.padding_fraction(twice, layout, made, shapes, scorers=2)
  assert found == pytest.approx(1 - wanted / (computed + scored))


def test_a_curriculum_goes_from_the_shortest_clips_to_the_longest_epoch_after_epoch(
  data, monkeypatch
):
  def seconds(example):
    return zlib.crc32(example.id.encode())

  monkeypatch.setattr(batching, "_seconds", seconds)
  batches = nano.build(data).builder.read("train", 6, by_length=True)
  read = [item.example for _ in range(6) for item in next(batches).items]
  epochs = [[seconds(example) for example in epoch] for epoch in (read[:18], read[18:])]
  assert epochs == [sorted(epochs[0])] * 2
  assert len(set(epochs[0])) == 18


def test_clips_of_one_length_stand_in_an_order_of_the_seed_within_a_curriculum(data, monkeypatch):
  def seconds(example):
    return float(zlib.crc32(example.id.encode()) % 3)

  monkeypatch.setattr(batching, "_seconds", seconds)

  def epoch(seed, **order):
    read = nano.build(data, seed=seed).builder.read("train", 6, **order)
    return [item.example for _ in range(3) for item in next(read).items]

  ingested = epoch(0, repeat=False)
  sorted_only = sorted(ingested, key=seconds)
  drawn = [epoch(0, by_length=True), epoch(1, by_length=True)]
  assert epoch(1, by_length=True) == drawn[1]
  orders = {tuple(example.id for example in one) for one in (sorted_only, *drawn)}
  assert len(orders) == 3
  assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(e.id for e in ingested))}
  for one in drawn:
    assert [seconds(example) for example in one] == [seconds(example) for example in sorted_only]


AT_A_RATE = {
  "data__sampling": "fps",
  "data__sample_fps": 1.0,
  "data__min_frames": 4,
  "data__max_frames": 8,
}


def test_clips_of_about_one_length_share_a_batch_of_training_only_and_only_at_a_rate(
  data, monkeypatch
):
  def epoch(fields, **order):
    read = nano.build(data, **fields).builder.read("train", 3, **order)
    return [[item.example.id for item in next(read).items] for _ in range(6)]

  as_drawn = epoch({})
  assert epoch(AT_A_RATE) == as_drawn  # all clips have the same length
  monkeypatch.setattr(
    batching.BatchBuilder, "_media_tokens", lambda _, clip: zlib.crc32(clip.example.id.encode())
  )
  assert epoch({}) == as_drawn
  for order in ({"repeat": False}, {"by_length": True}):
    assert epoch(AT_A_RATE, **order) == epoch({}, **order)
  spans = sorted(
    (min(lengths), max(lengths))
    for lengths in ([zlib.crc32(name.encode()) for name in batch] for batch in epoch(AT_A_RATE))
  )
  assert all(last < first for (_, last), (first, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(
  ("recipe", "field"),
  [
    (nano.RECIPE, "rl__max_new_tokens"),
    (nano.RECIPE, "sft__max_reply_tokens"),
    ("configs/videop2r.py", "traces__max_tokens"),
  ],
)
def test_a_reply_that_could_pass_the_models_context_is_an_error_that_names_its_field(
  data, recipe, field
):
  overrides: dict[str, Any] = {field: 2000}
  with pytest.raises(errors.InputError, match=f"config.{field.replace('__', '.')}=2000: .* 2048"):
    nano.build(data, recipe=recipe, **overrides)


@pytest.mark.parametrize(
  ("field", "without_model", "with_model"),
  [
    ("sft__max_reply_tokens", {"sft__steps": 0}, {"sft__steps": 1}),
    ("traces__max_tokens", {"traces__writer": "openai"}, {"traces__writer": "sampler"}),
  ],
)
def test_replies_that_the_model_does_not_write_or_learn_are_not_held_to_its_context(
  data, field, without_model, with_model
):
  build = functools.partial(nano.build, data, recipe="configs/videop2r.py", **{field: 2000})
  section, _, name = field.partition("__")
  assert build(**without_model).config[section][name] == 2000
  with pytest.raises(errors.InputError, match=f"config.{section}.{name}=2000"):
    build(**with_model)
