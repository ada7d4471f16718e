"""Attention backends against a plain softmax on tiny shapes; CPU emulates splash, XLA cuDNN."""

import functools

import jax
from jax import extend
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax import errors
from vr_jax.models import layout
from vr_jax.models.common import (
  attention,
  attention_cudnn,
  attention_decode,
  attention_splash,
  attention_tiles,
  attention_xla,
  kv_cache,
)
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.parallel import mesh as mesh_lib

HEADS, KV_HEADS, DIM = 4, 2, 8
EMULATED = functools.partial(attention_splash.attend_segments, interpret=True)
EMULATED_REPLIES = functools.partial(attention_splash.attend_replies, interpret=True)
REPLACED = functools.partial(attention_cudnn.attend_segments, implementation="xla")
TOLERANCE = 1e-5


def _draw(*shapes):
  keys = jax.random.split(jax.random.key(1), len(shapes))
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _plain(query, key, value, mask):
  """Plain softmax attention [batch, queries, heads, head_dim], mask [batch, queries, keys]."""
  key, value = (jnp.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
  logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
  share = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf))
  return jnp.einsum("bhqk,bkhd->bqhd", share, value)


def _assert_same(left, right, arguments, seen=True):
  """The same values where `seen`, and the same gradients of a sum of them."""

  def loss(function, *arguments):
    out = jnp.where(seen, function(*arguments), 0)
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

  def both(function):
    wanted = tuple(range(len(arguments)))
    return jax.jit(jax.grad(functools.partial(loss, function), argnums=wanted, has_aux=True))

  expected, actual = both(left)(*arguments), both(right)(*arguments)
  for wanted, given in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
    np.testing.assert_allclose(given, wanted, atol=TOLERANCE * float(jnp.abs(wanted).max()))


# Chunks: 16 queries at a time (of one prompt of 40 keys, 4 heads), the last one filled up.
WITHIN = {
  "xla": attention_xla.attend_segments,
  "xla_in_chunks": functools.partial(attention_xla.attend_segments, logits=2 * 16 * HEADS * 40),
  "xla_in_tiles": functools.partial(attention_xla.attend_segments, logits=2 * HEADS * 16 * 16),
  "xla_row_by_row": functools.partial(attention_xla.attend_segments, logits=40 * HEADS * 40),
  "splash": EMULATED,
  "splash_fused": functools.partial(EMULATED, fused=True),
  "cudnn": REPLACED,
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """So small that the sizes here need several, and some have to be filled up."""
  monkeypatch.setattr(attention_tiles, "KEYS", 8)
  monkeypatch.setattr(attention_tiles, "QUERIES", 8)
  monkeypatch.setattr(attention_xla, "SIDE", 8)


@pytest.mark.parametrize("backend", WITHIN)
def test_a_prompt_padded_on_the_right_attends_causally(backend):
  length = 40
  query, key, value = _draw(
    (2, length, HEADS, DIM), (2, length, KV_HEADS, DIM), (2, length, KV_HEADS, DIM)
  )
  valid = jnp.arange(length) < jnp.array([[40], [33]])
  segment, index = valid.astype(jnp.int32), jnp.arange(length)
  mask = (segment[:, :, None] == segment[:, None]) & (index <= index[:, None])
  _assert_same(
    lambda *qkv: _plain(*qkv, mask),
    lambda *qkv: WITHIN[backend](*qkv, segment, segment, index, causal=True),
    (query, key, value),
    seen=valid[..., None, None],
  )


@pytest.mark.parametrize("backend", WITHIN)
def test_patches_attend_within_their_window_whatever_their_order(backend):
  query, key, value = _draw(*[(2, 40, HEADS, DIM)] * 3)
  segment = jnp.stack([jnp.arange(40) % 3, jnp.where(jnp.arange(40) < 30, 0, -1)])
  mask = segment[:, :, None] == segment[:, None]
  _assert_same(
    lambda *qkv: _plain(*qkv, mask),
    lambda *qkv: WITHIN[backend](*qkv, segment, segment, jnp.arange(40), causal=False),
    (query, key, value),
  )


@pytest.mark.parametrize("part", [0, 1])
def test_the_second_half_of_a_prompts_queries_knows_where_it_stands(part):
  query, key, value = _draw((1, 20, HEADS, DIM), (1, 40, KV_HEADS, DIM), (1, 40, KV_HEADS, DIM))
  segments = (jnp.ones((1, 20), jnp.int32), jnp.ones((1, 40), jnp.int32))
  index = jnp.arange(20) + 20 * part
  arguments = (query, key, value, *segments, index)
  expected = _plain(query, key, value, (jnp.arange(40) <= index[:, None])[None])
  for function in (attention_xla.attend_segments, EMULATED, REPLACED):
    actual = jax.jit(functools.partial(function, causal=True))(*arguments)
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


REPLIES = {
  "xla": attention_xla.attend_replies,
  "xla_in_chunks": functools.partial(attention_xla.attend_replies, logits=2 * 3 * 4 * HEADS * 30),
  "xla_in_tiles": functools.partial(attention_xla.attend_replies, logits=2 * HEADS * 8 * 8),
  "splash": EMULATED_REPLIES,
  "splash_fused": functools.partial(EMULATED_REPLIES, fused=True),
  "cudnn": functools.partial(attention_cudnn.attend_replies, implementation="xla"),
}


@pytest.mark.parametrize("part", [slice(0, 10), slice(5, 10)])
@pytest.mark.parametrize("backend", REPLIES)
def test_replies_attend_to_their_prompt_and_to_themselves(backend, part):
  prefix, time = 20, 10
  query, prefix_key, prefix_value, key, value = _draw(
    (2, 3, time, HEADS, DIM),
    *[(2, prefix, KV_HEADS, DIM)] * 2,
    *[(2, 3, time, KV_HEADS, DIM)] * 2,
  )
  prefix_valid = jnp.arange(prefix) < jnp.array([[20], [13]])
  own_valid = jnp.arange(time) < jnp.array([[[10], [4], [1]], [[10], [7], [10]]])
  index = jnp.arange(time)[part]

  def plain(query, prefix_key, prefix_value, key, value):
    def rows(prefix, own):
      prefix = jnp.broadcast_to(prefix[:, None], (2, 3, *prefix.shape[1:]))
      return jnp.concatenate([prefix, own], axis=2).reshape(6, prefix.shape[2] + time, -1, DIM)

    causal = (jnp.arange(time) <= index[:, None]) & own_valid[:, :, None]
    before = jnp.broadcast_to(prefix_valid[:, None, None], (2, 3, len(index), prefix))
    mask = jnp.concatenate([before, causal], axis=3).reshape(6, len(index), -1)
    flat = query.reshape(6, len(index), HEADS, DIM)
    return _plain(flat, rows(prefix_key, key), rows(prefix_value, value), mask).reshape(query.shape)

  def backend_of(query, prefix_key, prefix_value, key, value):
    blocks = (prefix_key, prefix_value, prefix_valid, key, value, own_valid)
    return REPLIES[backend](query, *blocks, index)

  arguments = (query[:, :, part], prefix_key, prefix_value, key, value)
  seen = own_valid[:, :, part, None, None]
  _assert_same(plain, backend_of, arguments, seen=seen)


def _decoded(query, key, value, *_, causal):
  """A decoding step over a prompt of these keys; the own token has next to no weight."""
  slot, valid = jnp.zeros(1, jnp.int32), jnp.ones(key.shape[:2], bool)
  own = (*kv_cache.transpose_for_decode(-key[:, :1], value[:, :1]), jnp.ones(1, bool))
  prefix = (*kv_cache.transpose_for_decode(key, value), valid)
  return attention_decode.step(query[0], slot, slot, *prefix, *own, group=1)[None]


@pytest.mark.parametrize("backend", [*WITHIN, "step"])
def test_softmax_over_many_keys_tells_apart_logits_that_are_one_in_bfloat16(backend):
  # Logits alternate between 20 and 20.0586: bfloat16 has 20 and 20.125, and its sums of ones end at
  # 256.
  odd = (jnp.arange(600) % 2)[None, :, None, None]
  key = jnp.where((odd == 1) & (jnp.arange(16) < 6), 4 + 1 / 32, 4).astype(jnp.bfloat16)
  value = jnp.broadcast_to(odd, key.shape).astype(jnp.bfloat16)
  query = jnp.full((1, 1, HEADS, 16), 1.25, jnp.bfloat16)
  segments = (jnp.ones((1, 1), jnp.int32), jnp.ones((1, 600), jnp.int32))
  function = {**WITHIN, "step": _decoded}[backend]
  mixed = jax.jit(functools.partial(function, causal=False))(
    query, key, value, *segments, jnp.arange(1)
  )
  np.testing.assert_allclose(mixed, 1 / (1 + np.exp(-15 / 256)), atol=4e-3)


def test_tiles_of_nothing_but_padding_are_never_computed():
  prefix, time = 16, 24  # tiles of 8: what is not a number outside of those with tokens would show
  query, prefix_key, prefix_value, key, value = _draw(
    (2, 3, time, HEADS, DIM),
    *[(2, prefix, KV_HEADS, DIM)] * 2,
    *[(2, 3, time, KV_HEADS, DIM)] * 2,
  )
  prefix_valid = jnp.arange(prefix) < jnp.array([[8], [16]])
  own_valid = jnp.arange(time) < jnp.array([[[24], [8], [0]], [[16], [8], [8]]])
  holes = [
    jnp.where(valid[..., None, None], x, jnp.nan)
    for x, valid in (
      (query, own_valid),
      (prefix_key, prefix_valid),
      (prefix_value, prefix_valid),
      (key, own_valid),
      (value, own_valid),
    )
  ]

  def found(query, prefix_key, prefix_value, key, value):
    blocks = (prefix_key, prefix_value, prefix_valid, key, value, own_valid)
    out = attention_xla.attend_replies(query, *blocks, jnp.arange(time), logits=HEADS * 8 * 8)
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

  both = jax.jit(jax.grad(found, argnums=range(5), has_aux=True))
  whole, cut = both(query, prefix_key, prefix_value, key, value), both(*holes)
  for wanted, given in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
    np.testing.assert_array_equal(given, wanted)
  assert not cut[1][~own_valid].any()


def test_plain_attention_of_a_long_prompt_never_has_all_its_logits():
  length = 9216
  shapes = [jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16) for heads in (28, 4, 4)]
  segment, index = jax.ShapeDtypeStruct((1, length), jnp.int32), jnp.arange(length)

  def loss(query, key, value, segment):
    out = attention_xla.attend_segments(query, key, value, segment, segment, index, causal=True)
    return out.astype(jnp.float32).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*shapes, segment)
  largest = max(_sizes(jaxpr.jaxpr))
  assert attention_xla.LOGITS / 4 < largest <= attention_xla.LOGITS


def _sizes(jaxpr):
  """Of all arrays, inner loops included."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for inner in extend.core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)


class _On(layout.OneDevice):
  def __init__(self, platform):
    object.__setattr__(self, "_platform", platform)

  @property
  def platform(self):
    return self._platform


def _config(**fields):
  text = config_lib.TextConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
  )
  vision = config_lib.VisionConfig(
    depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=8
  )
  ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
  return config_lib.Qwen2_5_VLConfig(text=text, vision=vision, **dict.fromkeys(ids, 0), **fields)


@pytest.mark.parametrize(
  ("platform", "dtype", "backend"),
  [
    ("tpu", "bfloat16", "splash"),
    ("gpu", "bfloat16", "cudnn"),
    ("gpu", "float16", "cudnn"),
    ("cpu", "bfloat16", "xla"),
    ("tpu", "float32", "xla"),
    ("gpu", "float32", "xla"),
  ],
)
def test_each_platform_has_its_kernel_for_activations_of_two_bytes(platform, dtype, backend):
  assert attention.make(_config(dtype=dtype), _On(platform)).backend == backend


@pytest.mark.parametrize(
  ("name", "platform", "message"),
  [
    ("splash", "gpu", "does not run on gpu; one of cudnn, xla"),
    ("cudnn", "tpu", "does not run on tpu; one of splash, splash_fused, xla"),
    ("flash", "cpu", "does not run on cpu; one of splash, splash_fused, xla"),
    ("cudnn", "gpu", "takes no float32; set config.model.dtype=bfloat16"),
  ],
)
def test_a_kernel_that_does_not_run_here_is_named(name, platform, message):
  with pytest.raises(errors.InputError, match=f"config.model.attention={name}: {message}"):
    attention.make(_config(dtype="float32", attention=name), _On(platform))


def test_the_decode_kernel_runs_on_tpus_where_each_prompt_lies_whole():
  config = _config(decode_attention="pallas", dtype="bfloat16")
  assert attention.make(config, _On("tpu")).decodes_in_kernel
  assert not attention.make(_config(), _On("tpu")).decodes_in_kernel
  message = "config.model.decode_attention=pallas: does not run on gpu; one of xla"
  with pytest.raises(errors.InputError, match=message):
    attention.make(config, _On("gpu"))
  mesh = mesh_lib.make_mesh((1, 1, 2, 1), jax.devices()[:2])
  with pytest.raises(errors.InputError, match="splits each over 2 devices; set xla"):
    attention.make(config, mesh_lib.MeshLayout(mesh))


def test_a_dtype_that_the_chip_lacks_is_named():
  with pytest.raises(errors.InputError, match="float16: TPUs have none"):
    attention.make(_config(dtype="float16"), _On("tpu"))


def test_the_kernel_computes_the_blocks_that_a_row_of_prompt_and_replies_sees_and_no_others():
  prompt = attention_splash.RepliesMask(group=1, time=2048)
  replies = attention_splash.RepliesMask(group=8, time=512, prefix=2048)
  block, seen, computed = attention_splash.BLOCKS[0], 0, []
  for mask in (prompt, replies):
    pairs = mask[:, :]
    seen += pairs.sum()
    blocks = pairs.reshape(len(pairs) // block, block, -1, block).any(axis=(1, 3))
    kernel = attention_splash.make_kernel(mask, attention_splash.Options(1, (block, block)))
    passes = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    assert [np.count_nonzero(info.block_mask) for info in passes] == [blocks.sum()] * 3
    computed.append(blocks.sum())
  whole = (2048 + 8 * 512) ** 2
  assert seen / whole == pytest.approx(0.31, abs=0.005)
  assert sum(computed) * block**2 / whole == pytest.approx(0.35, abs=0.005)


@pytest.mark.parametrize("logits", [2**27, 2**10], ids=["plain", "tiles"])
@pytest.mark.parametrize(
  ("time", "said", "prefix", "read", "length", "written"),
  [
    (5, 5, 7, 7, 9, 4),
    (5, 3, 7, 2, 9, 9),
    (40, 33, 65, 64, 300, 290),
    (601, 590, 31, 31, 11, 0),
    (1, 1, 130, 1, 640, 17),
  ],
)
def test_what_a_reply_is_shown_sees_prompt_past_and_itself(
  time, said, prefix, read, length, written, logits
):
  """Against a softmax over the keys that each token may see, in float64."""
  rng, heads, kv_heads, dim = np.random.default_rng(time), HEADS, KV_HEADS, DIM

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  query, own = draw(time, heads, dim), [draw(time, kv_heads, dim) for _ in range(2)]
  prompt = [draw(prefix, kv_heads, dim) for _ in range(2)]
  past = draw(kv_heads, dim, length), draw(kv_heads, length, dim)
  attend = jax.jit(functools.partial(attention_decode.prefill_observation, logits=logits))
  row = (query, *own, np.arange(time) < said, 0, 0, written)
  seen = (*prompt, np.arange(prefix) < read, *past)
  (found,) = attend(*(jnp.asarray(x)[None] for x in (*row, *seen)))
  before = past[0].transpose(2, 0, 1)[:written], past[1].swapaxes(0, 1)[:written]
  for token in range(said):
    key, value = (
      np.concatenate([p[:read], b, o[: token + 1]]).astype(np.float64)
      for p, b, o in zip(prompt, before, own, strict=True)
    )
    for head in range(heads):
      of = head // (heads // kv_heads)
      share = np.exp(key[:, of] @ query[token, head] * dim**-0.5)
      expected = share @ value[:, of] / share.sum()
      np.testing.assert_allclose(found[token, head], expected, atol=2e-6)
