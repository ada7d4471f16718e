"""Episodes of several turns, decoded and appended to, against a plain forward pass over each."""

import dataclasses
import functools

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax import records
from vr_jax.models.common import packing, prompts
from vr_jax.models.common import slots as slots_lib

GROUP = 3
REPLIES = np.array([[3, 5], [1, 2], [4, 0], [5, 1], [2, 4], [0, 3]])  # tokens of two replies each
# Rows and columns of patches of the images in observations; the third observation is text only.
SHOWN = (((4, 6), (2, 2)), ((6, 4),), (), ((2, 4), (2, 4), (4, 4)), ((2, 2),), ((4, 4), (6, 2)))
SLOTS = (4, 0, 5, 2, 1, 3)  # where the replies are kept: any order will do
TOLERANCE = 1e-5


@pytest.fixture(params=list(builders.FIRST_CASES))
def family(request):
  return request.param


@functools.cache
def network(family):
  return builders.load(builders.FIRST_CASES[family])


@functools.cache
def inputs(family: str) -> tuple[list, list, list]:
  """Prompts; what replies are shown; tokens of their two replies."""
  made, rng = builders.make_processor(network(family).config), np.random.default_rng(1)

  def shown(sides):
    tokens, grids, patches = [rng.integers(0, golden.BYTES, 2)], [], []
    for height, width in sides:
      grid = prompts.Grid(kind=records.Kind.IMAGE, frames=1, height=height, width=width)
      if family == "tinyllava":  # all images have one size
        grid = made.image_grid((1, 1), None, "image")
      grids.append(grid)
      patches.append(rng.integers(0, 256, (1, grid.patches, *made.patch_shape), np.uint8))
      (run,) = made.media_runs(grid)
      media = np.full(run.tokens, made.config.image_token_id)
      tokens += [media, rng.integers(0, golden.BYTES, rng.integers(1, 4))]
    return made.join(np.concatenate(tokens).astype(np.int32), grids, patches)

  first = [
    builders.encode(builders.FIRST_CASES[family], network(family).config, index)
    for index in range(2)
  ]
  texts = [[rng.integers(0, golden.BYTES, n).astype(np.int32) for n in two] for two in REPLIES]
  return first, [shown(sides) for sides in SHOWN], texts


def said(family, tokens) -> prompts.EncodedPrompt:
  """A reply as a conversation of its own."""
  return builders.make_processor(network(family).config).join(tokens, [], [])


def joined(*parts: prompts.EncodedPrompt) -> prompts.EncodedPrompt:
  return prompts.join(parts, name="joined")


def collated(family, encoded, *, spare=0) -> records.Prompt:
  return builders.make_processor(network(family).config).collate(
    encoded,
    prefix_buckets=(max(len(one.tokens) for one in encoded) + spare,),
    frame_buckets=(max(len(one.frames) for one in encoded) + spare,),
    patch_buckets=(64,),
  )


@nnx.jit
def plain(network, prompt):
  return network.run_prompts(prompt, network.encode_vision(prompt.vision))[0]


@functools.cache
def expected(family: str) -> list[np.ndarray]:
  """Hidden states of each reply's suffix, from one forward over its whole conversation."""
  first, shown, texts = inputs(family)
  parts = [
    (said(family, one), obs, said(family, two))
    for (one, two), obs in zip(texts, shown, strict=True)
  ]
  whole = collated(family, [joined(first[i // GROUP], *three) for i, three in enumerate(parts)])
  hidden = np.asarray(plain(network(family), whole))
  cuts = [len(first[i // GROUP].tokens) for i in range(len(parts))]
  lengths = [sum(len(part.tokens) for part in three) for three in parts]
  return [h[a : a + n] for h, a, n in zip(hidden, cuts, lengths, strict=True)]


@nnx.jit
def feed(network, prefix, cache, tokens, counts, rows, order):
  """Decodes given tokens behind what is written: (hidden states, cache)."""
  recent = network.init_cache(prefix, *tokens.shape)

  def step(recent, inputs):
    hidden, recent = network.decode_later_turn(
      network.prepare_decode(prefix), cache, recent, *inputs, rows, order
    )
    return recent, hidden

  recent, hidden = jax.lax.scan(step, recent, (tokens.T, jnp.arange(tokens.shape[1])))
  cache = cache.write_rows(network.layout, recent, rows.cache_slot, rows.written, counts)
  return hidden.swapaxes(0, 1), cache


@nnx.jit
def show(network, prefix, cache, shown, rows):
  media = network.encode_vision(shown.vision)
  hidden, new = network.prefill_observation(prefix, cache, shown, media, rows)
  counts = (shown.kind != records.Kind.PAD).sum(axis=1)
  return hidden, cache.write_rows(network.layout, new, rows.cache_slot, rows.written, counts)


def played(family, batches, *, spare=0):
  """Hidden states of replies with observations appended in batches; `None` is an empty row."""
  first, shown, texts = inputs(family)
  prefix = nnx.jit(type(network(family)).prefill)(
    network(family), collated(family, first, spare=spare)
  )
  slots = np.array(SLOTS)
  order = slots_lib.DecodeSlots(prompt=slots // GROUP, group_index=slots % GROUP, group=GROUP)
  cache = network(family).init_cache(prefix, len(SLOTS), 60)
  written = np.zeros(len(SLOTS), np.int32)
  place = np.asarray(prefix.next_position)[slots // GROUP]
  found = {reply: [] for reply in SLOTS}

  def rows(homes):
    homes = np.asarray(homes)
    kept = np.minimum(homes, len(SLOTS) - 1)
    return slots_lib.CacheRows(
      cache_slot=homes,
      prompt_slot=np.where(homes < len(SLOTS), slots[kept] // GROUP, 2),
      written=written[kept],
      position=place[kept],
    )

  def say(turn):
    nonlocal cache
    tokens = np.zeros((len(SLOTS), 5), np.int32)
    for slot, reply in enumerate(SLOTS):
      tokens[slot, : REPLIES[reply, turn]] = texts[reply][turn]
    counts = REPLIES[slots, turn].astype(np.int32)
    everyone = rows(np.arange(len(SLOTS)))
    hidden, cache = feed(network(family), prefix, cache, tokens, counts, everyone, order)
    for slot, reply in enumerate(SLOTS):
      found[reply].append(hidden[slot, : counts[slot]])
    written[:] += counts
    place[:] += counts

  say(0)
  for batch in batches:
    homes = [len(SLOTS) if reply is None else SLOTS.index(reply) for reply in batch]
    seen = [shown[reply or 0] for reply in batch]
    hidden, cache = show(
      network(family), prefix, cache, collated(family, seen, spare=spare), rows(homes)
    )
    for row, reply in enumerate(batch):
      if reply is not None:
        found[reply].append((len(seen[row].tokens), hidden[row]))
        written[homes[row]] += len(seen[row].tokens)
        place[homes[row]] += seen[row].next_position
  say(1)
  return found


@pytest.mark.usefixtures("decoding_layers")
@pytest.mark.parametrize(
  ("family", "batches", "spare"),
  [
    ("qwen2_5_vl", [(0, 1, 2, 3, 4, 5)], 0),
    ("qwen2_5_vl", [(5, None), (2, 0), (1, 3), (None, 4)], 3),
    ("qwen3_vl", [(5, None), (2, 0), (1, 3), (None, 4)], 3),
    ("tinyllava", [(5, None), (2, 0), (1, 3), (None, 4)], 3),
  ],
  indirect=["family"],
)
def test_what_is_shown_and_said_next_equals_a_plain_forward_over_the_conversation(
  family, batches, spare
):
  found = played(family, batches, spare=spare)
  for reply, whole in enumerate(expected(family)):
    one, (count, last), two = found[reply]
    np.testing.assert_allclose(one, whole[: len(one)], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(last, whole[len(one) + count - 1], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(two, whole[len(one) + count :], rtol=0, atol=TOLERANCE)


@functools.cache
def suffix(family: str) -> tuple[np.ndarray, np.ndarray, records.EpisodeInputs]:
  """Tokens of all suffixes, which are there, and what else they need."""
  first, shown, texts = inputs(family)
  starts = [first[i // GROUP].next_position for i in range(len(texts))]
  parts = [
    (said(family, one), obs, said(family, two))
    for (one, two), obs in zip(texts, shown, strict=True)
  ]
  rows = collated(family, [joined(*three) for three in parts], spare=1)
  shape = (2, GROUP, rows.tokens.shape[1])
  _, frames, patches = rows.vision.patches.shape[:3]
  media = frames * network(family).config.vision_shapes.media_tokens(patches)
  index = rows.media_index + np.where(
    rows.media_index >= 0, np.arange(6)[:, None] % GROUP * media, 0
  )
  places = rows.positions + np.array(starts)[:, None, None]
  vision = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[2:]), rows.vision)
  return (
    jnp.asarray(rows.tokens.reshape(shape)),
    jnp.asarray((rows.kind != records.Kind.PAD).reshape(shape)),
    records.EpisodeInputs(
      positions=places.astype(np.int32).reshape(*shape, -1),
      media_index=index.astype(np.int32).reshape(shape),
      vision=vision,
    ),
  )


@nnx.jit(static_argnames="packed")
def extended(network, prompt, tokens, valid, episode_inputs, packed):
  prefix = network.prefill(prompt)
  if not packed:
    return network.forward_replies(prefix, tokens, valid, episode_inputs)
  places = packing.make(network.layout, valid, packed)
  return places.unpack(
    network.forward_packed_replies(prefix, tokens, valid, places, episode_inputs)
  )


@pytest.mark.parametrize(
  ("family", "packed", "encoded"),
  [
    *(("qwen2_5_vl", packed, encoded) for packed in (None, 130) for encoded in (False, True)),
    ("qwen3_vl", None, True),
    ("qwen3_vl", 130, False),
    ("tinyllava", None, True),
    ("tinyllava", 170, False),
  ],
  indirect=["family"],
)
def test_whole_suffixes_at_once_equal_a_plain_forward_over_each_conversation(
  family, packed, encoded
):
  tokens, valid, more = suffix(family)
  if encoded:
    media = network(family).encode_vision(more.vision)
    more = dataclasses.replace(more, vision=None, media=media)
  assert packed is None or valid.sum() <= packed < valid.size
  hidden = extended(
    network(family), collated(family, inputs(family)[0]), tokens, valid, more, packed
  )
  for reply, whole in enumerate(expected(family)):
    mine = np.asarray(hidden)[reply // GROUP, reply % GROUP, : len(whole)]
    np.testing.assert_allclose(mine, whole, rtol=0, atol=TOLERANCE)


def test_gradients_of_later_turns_reach_the_tower_as_in_a_plain_forward(family):
  tokens, valid, more = suffix(family)
  first, shown, texts = inputs(family)
  graphdef, params = nnx.split(network(family))
  weight = np.random.default_rng(5).standard_normal((*tokens.shape, 32), np.float32)
  parts = [
    (said(family, one), obs, said(family, two))
    for (one, two), obs in zip(texts, shown, strict=True)
  ]
  whole = collated(family, [joined(first[i // GROUP], *three) for i, three in enumerate(parts)])
  starts = [len(first[i // GROUP].tokens) for i in range(len(parts))]
  places = np.minimum(
    np.array(starts)[:, None] + np.arange(tokens.shape[2]), whole.tokens.shape[1] - 1
  )

  def shared(params):
    made = nnx.merge(graphdef, params)
    hidden = made.forward_replies(made.prefill(collated(family, first)), tokens, valid, more)
    return jnp.where(valid[..., None], hidden * weight, 0).sum()

  def copied(params):
    hidden = plain(nnx.merge(graphdef, params), whole)
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1).reshape(weight.shape)
    return jnp.where(valid[..., None], hidden * weight, 0).sum()

  left, right = jax.jit(jax.grad(shared))(params), jax.jit(jax.grad(copied))(params)
  for (path, a), (_, b) in zip(nnx.to_flat_state(left), nnx.to_flat_state(right), strict=True):
    scale = max(float(np.abs(b[...]).max()), 1)
    np.testing.assert_allclose(a[...], b[...], rtol=0, atol=1e-5 * scale, err_msg=str(path))
