"""Rollouts of several turns: independent of how they are played; log-probs of one forward pass."""

from concurrent import futures
import dataclasses
import functools
import math
import os
import subprocess
import sys
import threading
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import local
from tests.rollout import chat
from vr_jax import errors, records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing, prompts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rollout import episodes as episodes_lib
from vr_jax.rollout import forward, multi_turn_sampler, sampler, turn_decode

PROMPTS = 2
TOLERANCE = 1e-5


def _play(
  environment=None,
  *,
  count=PROMPTS,
  mesh=None,
  decode_layout="replicated",
  schedule=None,
  ends_outgrown=False,
  **changes,
) -> tuple[records.Prompt, multi_turn_sampler.episodes_lib.EpisodeRollout]:
  graphdef, params = chat.network(mesh, decode_layout)
  prompt = chat.batch(chat.opening(count))
  if mesh is not None:
    prompt = mesh_lib.put_batch(prompt, mesh)
  with futures.ThreadPoolExecutor(4) as threads:
    return prompt, multi_turn_sampler.play(
      graphdef,
      params,
      prompt,
      chat.ALLOWED,
      jax.random.key(3),
      environment or chat.Chat(),
      decoding=chat.decoding(**changes),
      schedule=dataclasses.replace(chat.SCHEDULE, **(schedule or {})),
      threads=threads,
      ends_outgrown=ends_outgrown,
    )


@functools.cache
def played(group: int, most: int, count: int):
  return _play(group=group, count=count, schedule={"turns": most})


def _host(rollout):
  return jax.tree.map(np.asarray, rollout)


def _same(one, other):
  one, other = _host(one.rollout), _host(other.rollout)
  for name in ("tokens", "kind", "turn"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
  np.testing.assert_array_equal(one.episode_inputs.positions, other.episode_inputs.positions)
  np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=0, atol=TOLERANCE)


@functools.partial(jax.jit, static_argnames=("graphdef", "packed"))
def _scores(graphdef, params, prompt, rollout, packed):
  valid = rollout.kind != records.Kind.PAD
  return forward.reply_log_probs(
    nnx.merge(graphdef, params),
    prompt,
    rollout.tokens,
    valid,
    chat.ALLOWED,
    0.9,
    packed_length=packed,
    scored=rollout.kind == records.Kind.MODEL,
    episode_inputs=rollout.episode_inputs,
  )[0]


@functools.partial(jax.jit, static_argnames=("graphdef", "packed"))
def _values(graphdef, params, head, prompt, rollout, packed):
  valid = rollout.kind != records.Kind.PAD
  model, suffix = nnx.merge(graphdef, params), rollout.episode_inputs
  return forward.reply_values(
    model, head, prompt, rollout.tokens, valid, packed_length=packed, episode_inputs=suffix
  )


@pytest.mark.parametrize(("group", "most", "count"), [(1, 4, 4), (3, 3, 2), (8, 2, 2)])
def test_the_update_repeats_the_log_probs_of_the_rollout(group, most, count):
  prompt, found = played(group, most, count)
  valid = np.asarray(found.rollout.kind) != records.Kind.PAD
  size = packing.size_of(layout_lib.OneDevice(), valid.sum(-1)[None], valid.shape[2], ratio=1.1)
  log_probs = np.asarray(found.rollout.log_probs)
  for packed in (None, size)[: 2 if most == 3 else 1]:
    scores = _scores(*chat.network(), prompt, found.rollout, packed)
    np.testing.assert_allclose(scores, log_probs, rtol=0, atol=TOLERANCE)
  assert log_probs.min() < -2
  said = {len(replies) for row in found.replies for replies in row}
  assert max(said) == most  # some go on to the last turn


def test_a_tower_of_its_own_reads_the_frames_of_later_turns_from_their_patches():
  prompt, found = played(3, 3, PROMPTS)
  vision = found.vision(chat.Chat(), chat.SCHEDULE)
  suffix = dataclasses.replace(found.rollout.episode_inputs, vision=vision, media=None)
  rollout = dataclasses.replace(found.rollout, episode_inputs=suffix)
  scores = _scores(*chat.network(), prompt, rollout, None)
  np.testing.assert_allclose(scores, found.rollout.log_probs, rtol=0, atol=TOLERANCE)


@jax.jit
def _plain(params, prompt):
  model = nnx.merge(chat.network()[0], params)
  x = model.embed(prompt, model.encode_vision(prompt.vision))
  hidden = model.text.prefill(x, prompt.positions, prompt.kind != records.Kind.PAD)[0]
  logits = forward.token_logits(model, hidden, chat.ALLOWED, 0.9)
  every = jax.nn.log_softmax(logits)[:, :-1]
  tokens = jnp.asarray(prompt.tokens)[:, 1:, None]
  return jnp.take_along_axis(every, tokens, axis=-1)[..., 0], hidden


@functools.cache
def _conversations():
  """First turns, whole conversations, and their log-probs and hidden states.

  These are from one forward pass over each conversation.
  """
  _, found = played(3, 3, PROMPTS)
  opening, whole = chat.opening(PROMPTS), []
  for row, group_index in np.ndindex(PROMPTS, 3):
    parts = [opening[row]]
    for number, reply in enumerate(found.replies[row][group_index]):
      parts.append(chat.PROCESSOR.join(np.array(reply, np.int32), [], []))
      parts += found.shown[row][group_index][number : number + 1]
    whole.append(prompts.join(parts, name="whole"))
  sizes = prompts.PromptSizes(prefix=200, frames=8, patches=16)
  joined = prompts.pad(whole, chat.CONFIG.vision_shapes, sizes, pad_token=0)
  scores, hidden = map(np.asarray, _plain(chat.network()[1], joined))
  return opening, whole, scores, hidden


def test_log_probs_are_those_of_one_forward_over_each_whole_conversation():
  rollout = _host(played(3, 3, PROMPTS)[1].rollout)
  opening, whole, scores, _ = _conversations()
  for number, (row, group_index) in enumerate(np.ndindex(PROMPTS, 3)):
    start, length = len(opening[row].tokens), (rollout.kind[row, group_index] > 0).sum()
    tokens = whole[number].tokens[start:]
    np.testing.assert_array_equal(rollout.tokens[row, group_index, :length], tokens)
    places = rollout.episode_inputs.positions[row, group_index, :length]
    np.testing.assert_array_equal(places, whole[number].positions[start:])
    mine = rollout.kind[row, group_index, :length] == records.Kind.MODEL
    expected = scores[number, start - 1 :][:length][mine]
    said = rollout.log_probs[row, group_index, :length][mine]
    np.testing.assert_allclose(said, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("packed", [False, True])
def test_values_are_those_of_one_forward_over_each_whole_conversation(packed):
  prompt, found = played(3, 3, PROMPTS)
  opening, _, _, hidden = _conversations()
  weight = np.random.default_rng(0).normal(0, 0.1, hidden.shape[-1]).astype(np.float32)
  head = forward.ValueHead(weight=nnx.Param(jnp.asarray(weight)), bias=nnx.Param(jnp.float32(0.5)))
  kind = np.asarray(found.rollout.kind)
  lengths = (kind != records.Kind.PAD).sum(-1)
  size = packing.size_of(layout_lib.OneDevice(), lengths[None], kind.shape[2], ratio=1.1)
  values = _values(*chat.network(), head, prompt, found.rollout, size if packed else None)
  for number, (row, group_index) in enumerate(np.ndindex(PROMPTS, 3)):
    start, length = len(opening[row].tokens), lengths[row, group_index]
    expected = hidden[number, start - 1 :][:length] @ weight + 0.5
    np.testing.assert_allclose(values[row, group_index, :length], expected, rtol=1e-5, atol=1e-5)
    assert not values[row, group_index, length:].any()


def test_what_the_environment_shows_carries_no_loss_and_closes_a_reply_that_was_cut_off():
  _, found = played(3, 3, PROMPTS)
  rollout, cut = _host(found.rollout), 0
  for row, group_index in np.ndindex(PROMPTS, 3):
    kind, tokens = rollout.kind[row, group_index], rollout.tokens[row, group_index]
    turn, replies = rollout.turn[row, group_index], found.replies[row][group_index]
    assert not rollout.log_probs[row, group_index][kind != records.Kind.MODEL].any()
    for number, reply in enumerate(replies):
      mine = (turn == number) & (kind == records.Kind.MODEL)
      np.testing.assert_array_equal(tokens[mine], reply)
      assert not set(reply[:-1]) & set(chat.STOPS)
      assert reply[-1] in chat.STOPS or len(reply) == 12
      if number + 1 < len(replies):
        after = tokens[np.flatnonzero(mine)[-1] + 1]
        assert (after == chat.END) == (reply[-1] != chat.END)
        cut += reply[-1] != chat.END
    media = rollout.episode_inputs.media_index[row, group_index] >= 0
    assert (kind[media] == records.Kind.ENVIRONMENT).all()
  assert cut


def test_with_one_turn_replies_are_those_of_the_sampler():
  prompt, found = _play(schedule={"turns": 1, "frame_buckets": (0,)})
  graphdef, params = chat.network()
  key = jax.random.key(3)
  expected = sampler.sample(graphdef, params, prompt, chat.ALLOWED, key, decoding=chat.decoding())
  length = expected.tokens.shape[2]
  assert found.rollout.episode_inputs.media.shape[1] == 0
  np.testing.assert_array_equal(found.rollout.tokens[..., :length], expected.tokens)
  np.testing.assert_array_equal(found.rollout.kind[..., :length], expected.kind)


def test_an_episode_is_the_same_to_the_bit_however_slow_its_environment_is():
  environment = chat.Chat(slow=0.2)
  _, other = _play(environment)
  jax.tree.map(np.testing.assert_array_equal, other.rollout, played(3, 3, PROMPTS)[1].rollout)
  assert other.computed_tokens == played(3, 3, PROMPTS)[1].computed_tokens
  assert not any(name.startswith("Main") for name in environment.threads)


def test_what_comes_next_is_made_while_others_are_decoded(monkeypatch):
  """An observation that needs the next chunk to run gets it: nothing waits for it before."""
  decoded, decode = threading.Condition(), turn_decode.decode
  chunks, beside = [0], []

  def counted(*arguments, **named):
    made = decode(*arguments, **named)
    with decoded:
      chunks[0] += 1
      decoded.notify_all()
    return made

  class Slow(chat.Chat):
    def observe(self, row, group_index, replies):
      with decoded:
        asked = chunks[0]
        beside.append(decoded.wait_for(lambda: chunks[0] > asked, timeout=0.5))
      return super().observe(row, group_index, replies)

  monkeypatch.setattr(turn_decode, "decode", counted)
  _play(Slow())
  assert sum(beside) >= 3


def test_neither_chunks_nor_slots_nor_batches_change_an_episode():
  _, other = _play(
    schedule={"decode_chunk": 12, "append_batch_size": 4, "episode_buckets": (32, 224)},
    slot_fractions=(0.5,),
  )
  _same(other, played(3, 3, PROMPTS)[1])


@pytest.mark.parametrize(
  ("shape", "decode_layout"),
  [((2, 2, 1, 1), "replicated"), ((2, 2, 2, 1), "replicated"), ((1, 4, 2, 1), "tensor")],
)
def test_on_a_mesh_episodes_are_those_of_one_device_and_lie_split_by_prompts(shape, decode_layout):
  mesh = mesh_lib.make_mesh(shape, jax.devices()[: math.prod(shape)])
  _, split = _play(count=4, mesh=mesh, decode_layout=decode_layout, group=2)
  _, whole = _play(count=4, group=2)
  _same(split, whole)
  for x in jax.tree.leaves(split.rollout):
    assert x.sharding.shard_shape(x.shape)[0] == 1


def test_an_episode_that_outgrows_the_largest_bucket_is_named():
  with pytest.raises(errors.InputError, match=r"episode \d.\d, turn \d: \d+ tokens of all turns"):
    _play(schedule={"episode_buckets": (24,)}, group=1)


def test_an_episode_may_end_before_a_turn_that_is_too_large_and_no_other_changes():
  _, whole = played(3, 3, PROMPTS)
  shown = {
    (row, index): [len(each.tokens) for each in whole.shown[row][index]]
    for row, index in np.ndindex(PROMPTS, 3)
  }
  longest = int(np.median([length for lengths in shown.values() for length in lengths]))
  too_large = {place for place, lengths in shown.items() if max(lengths, default=0) > longest}
  assert 0 < len(too_large) < len(shown)

  class Ending(chat.Chat):
    """Its episodes are over where the next turn would be too large."""

    def observe(self, row, group_index, replies):
      found = super().observe(row, group_index, replies)
      return None if found is None or len(found.tokens) > longest else found

  smaller = {"observation_buckets": (longest,)}
  _, found = _play(schedule=smaller, ends_outgrown=True)
  assert found.outgrown.keys() == too_large
  for (row, index), problem in found.outgrown.items():
    turn = len(found.replies[row][index]) + 1
    assert problem == (
      f"episode {row}.{index}, turn {turn}: {shown[row, index][turn - 2]} tokens shown in a turn "
      f"(config.turns.observation_buckets), but the largest bucket has {longest}; shorten it or "
      "add a bucket"
    )
  for row, index in shown:
    replies = found.replies[row][index]
    assert replies == whole.replies[row][index][: len(replies)]
  _, expected = _play(Ending(), schedule=smaller)
  assert not expected.outgrown
  jax.tree.map(np.testing.assert_array_equal, found.rollout, expected.rollout)
  with pytest.raises(errors.InputError, match=r"tokens shown in a turn"):
    _play(schedule=smaller)


def test_what_fails_on_a_thread_fails_here():
  class Broken(chat.Chat):
    def observe(self, row, group_index, replies):
      raise errors.InputError("clip.mp4: cannot be read; ingest it again")

  with pytest.raises(errors.InputError, match="ingest it again"):
    _play(Broken())


def _run_processes(tmp_path, axis, *options, devices=1):
  """Plays episodes in two processes; returns their exit codes, errors and files.

  devices: of each process.
  """
  address = f"localhost:{local.free_port()}"
  files = [tmp_path / f"{index}.npz" for index in range(2)]
  command = (sys.executable, "-m", "tests.rollout.chat_process", address, "2")
  flags = os.environ["XLA_FLAGS"]
  started = [
    subprocess.Popen(
      [*command, str(index), str(file), axis, *options],
      env={**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, file in enumerate(files)
  ]
  try:
    said = [process.communicate(timeout=240)[1] for process in started]
    return [process.returncode for process in started], said, files
  finally:
    for process in started:
      process.kill()


@pytest.mark.parametrize(
  ("axis", "decode_layout", "devices"),
  [("data", "replicated", 1), ("sequence", "replicated", 1), ("fsdp", "tensor", 2)],
)
def test_processes_play_together_what_one_plays_alone(tmp_path, axis, decode_layout, devices):
  """Each has prompts of its own, or slots of all prompts; one of them takes longer to answer. Then
  they draw replies of one turn.

  In the layout tensor, the two devices of a process share its prompts, one head of keys each.
  """
  codes, said, files = _run_processes(tmp_path, axis, decode_layout, devices=devices)
  assert codes == [0, 0], said
  parts = [np.load(file) for file in files]
  alone = _host(played(3, 3, 2 * devices)[1].rollout)
  wanted = {
    "media": alone.episode_inputs.media,
    "positions": alone.episode_inputs.positions,
    **vars(alone),
  }
  wanted["media_index"] = alone.episode_inputs.media_index
  prompt = chat.batch(chat.opening(2 * devices))
  arguments = (*chat.network(), prompt, chat.ALLOWED, jax.random.key(7))
  wanted["replies"] = sampler.sample(*arguments, decoding=chat.decoding()).tokens
  assert (wanted["media_index"] >= 0).any()
  for name in parts[0]:
    arrays = [part[name] for part in parts]
    for found in [np.concatenate(arrays)] if axis != "sequence" else arrays:
      np.testing.assert_allclose(found, wanted[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_an_observation_that_is_another_one_in_another_process_stops_all(monkeypatch):
  made = futures.Future()
  made.set_result(None)  # the episode is over, says this process
  ready = np.ones(1 + len(episodes_lib.ObservationSize._fields), np.int32)
  monkeypatch.setattr(processes, "all_gather", lambda table: np.stack([table, ready]))
  batch = types.SimpleNamespace(table=types.SimpleNamespace(row=np.array([1, 3])))
  with pytest.raises(RuntimeError, match="prompt 3 is another one in another process"):
    multi_turn_sampler.EpisodeBatch.sync_observations(batch, np.array([1]), {1: made})


def test_an_observation_that_fails_in_one_process_stops_all(tmp_path):
  codes, said, _ = _run_processes(tmp_path, "data", "replicated", "1")
  assert 0 not in codes
  assert "clip.mp4: cannot be read" in said[1]
  assert "failed in another process" in said[0]
