"""Group layout of each family: prefill, forward_replies and decode against a plain forward pass."""

import dataclasses
import functools
from typing import Any, cast

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
from jax import extend
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax import records
from vr_jax.models import registry
from vr_jax.models.common import rematerialisation
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import mesh as mesh_lib

GROUP, TIME = 3, 6
SLOTS = (4, 0, 5, 2, 1, 3)  # in which the replies are decoded: any order will do
LENGTHS = np.array([[6, 1, 4], [0, 5, 6]])  # of the replies; one is empty
TOLERANCE = 1e-5
CASES = {**builders.FIRST_CASES, "tinyllava_groups": builders.GROUPS}


@pytest.fixture(params=list(builders.FIRST_CASES))
def family(request):
  return request.param


# For what the decoder does alike for all families, one of them is enough.
one_family = pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)


@functools.cache
def network(family):
  return builders.load(CASES[family])


@functools.cache
def inputs(family: str) -> tuple[records.Prompt, jax.Array, jax.Array]:
  """Prompts with padding on every axis, reply tokens and which of them count."""
  prompt = builders.prompt(CASES[family], network(family).config, spare=(4, 1, 1))
  tokens = np.random.default_rng(7).integers(0, golden.BYTES, (2, GROUP, TIME))
  return prompt, jnp.asarray(tokens), jnp.asarray(np.arange(TIME) < LENGTHS[..., None])


@nnx.jit
def extended(network, prompt, tokens, valid):
  prefix = network.prefill(prompt)
  return prefix.hidden, network.forward_replies(prefix, tokens, valid)


@nnx.jit
def decoded(network, prompt, tokens):
  prefix = network.prefill(prompt)
  slots = jnp.array(SLOTS)
  order = slots_lib.DecodeSlots(prompt=slots // GROUP, group_index=slots % GROUP, group=GROUP)
  cache = network.init_cache(prefix, len(slots), TIME)
  hidden = []
  for index in range(TIME):
    token = tokens.reshape(-1, TIME)[slots, index]
    step, cache = network.decode(
      network.prepare_decode(prefix), cache, token, jnp.array(index), order
    )
    hidden.append(step)
  return jnp.stack(hidden, axis=1)[jnp.argsort(slots)].reshape(2, GROUP, TIME, -1)


@nnx.jit
def plain(network, prompt):
  return network.run_prompts(prompt, network.encode_vision(prompt.vision))[0]


def replicated(prompt: records.Prompt, tokens, valid) -> records.Prompt:
  """Prompt and reply as one sequence, with a copy of the prompt for each reply."""
  rows = len(prompt.tokens) * GROUP
  copied = jax.tree.map(lambda x: np.repeat(x, GROUP, axis=0), prompt)
  width = prompt.tokens.shape[1] + TIME
  tokens, valid = tokens.reshape(rows, TIME), valid.reshape(rows, TIME)
  fields = {"tokens": 0, "kind": int(records.Kind.PAD), "media_index": -1}
  grown = {}
  for name, fill in fields.items():
    grown[name] = np.full((rows, width), fill, np.int32)
    grown[name][:, :-TIME] = getattr(copied, name)
  places = np.zeros((rows, width, prompt.positions.shape[2]), np.int32)
  places[:, :-TIME] = copied.positions
  lengths = (copied.kind != records.Kind.PAD).sum(axis=1)
  for row, start in enumerate(lengths):
    here = slice(start, start + TIME)
    grown["tokens"][row, here] = tokens[row]
    grown["kind"][row, here] = np.where(valid[row], records.Kind.MODEL, records.Kind.PAD)
    places[row, here] = (copied.next_position[row] + np.arange(TIME))[:, None]
  return dataclasses.replace(copied, positions=places, **grown)


def plain_replies(network, prompt, tokens, valid):
  """Hidden states of the replies from the plain forward, in the group layout."""
  whole = plain(network, replicated(prompt, np.asarray(tokens), np.asarray(valid)))
  starts = np.repeat((prompt.kind != records.Kind.PAD).sum(axis=1), GROUP)
  return replies_of(whole, starts)


def replies_of(whole, starts):
  """Cuts the replies out of sequences in which each follows its prompt."""
  rows = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, TIME))(whole, starts)
  return rows.reshape(-1, GROUP, TIME, whole.shape[-1])


def assert_same_where(valid, left, right, tolerance=TOLERANCE):
  left, right = (np.where(np.asarray(valid)[..., None], x, 0) for x in (left, right))
  np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def test_replies_on_a_shared_prompt_equal_a_plain_forward_of_each(family):
  prompt, tokens, valid = inputs(family)
  _, hidden = extended(network(family), prompt, tokens, valid)
  assert_same_where(valid, hidden, plain_replies(network(family), prompt, tokens, valid))


@pytest.mark.usefixtures("decoding_layers")
def test_decoding_token_by_token_gives_the_hidden_states_of_the_update(family):
  prompt, tokens, valid = inputs(family)
  _, hidden = extended(network(family), prompt, tokens, valid)
  assert_same_where(valid, decoded(network(family), prompt, tokens), hidden)


def test_the_prefix_keeps_the_hidden_state_of_each_prompts_last_token(family):
  prompt, tokens, valid = inputs(family)
  last, _ = extended(network(family), prompt, tokens, valid)
  whole = plain(network(family), prompt)
  for row, length in enumerate((prompt.kind != records.Kind.PAD).sum(axis=1)):
    np.testing.assert_allclose(last[row], whole[row, length - 1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
  ("family", "spare"),
  [
    *(("qwen2_5_vl", spare) for spare in [(0, 0, 0), (9, 0, 0), (0, 2, 0), (0, 0, 5), (1, 1, 1)]),
    ("qwen3_vl", (9, 2, 5)),
    ("tinyllava", (9, 2, 3)),
    ("tinyllava_groups", (9, 2, 3)),
  ],
  indirect=["family"],
)
def test_padding_of_tokens_frames_or_patches_changes_no_result(family, spare):
  prompt, tokens, valid = inputs(family)
  last, hidden = extended(network(family), prompt, tokens, valid)
  other = builders.prompt(CASES[family], network(family).config, spare=spare)
  other_last, other_hidden = extended(network(family), other, tokens, valid)
  np.testing.assert_allclose(other_last, last, rtol=0, atol=TOLERANCE)
  assert_same_where(valid, other_hidden, hidden)


def padding_of(vision):
  """Which patches are padding, by the field of the family that says so."""
  return (vision.segment if hasattr(vision, "segment") else vision.window) < 0


def test_what_stands_in_padding_reaches_no_result(family):
  prompt, tokens, valid = inputs(family)
  rng = np.random.default_rng(3)
  empty = padding_of(prompt.vision)
  noise = rng.integers(0, 256, prompt.vision.patches.shape, np.uint8)
  vision = dataclasses.replace(
    prompt.vision, patches=np.where(empty[..., None], noise, prompt.vision.patches)
  )
  pad = prompt.kind == records.Kind.PAD
  dirty = dataclasses.replace(
    prompt, tokens=np.where(pad, 77, prompt.tokens).astype(np.int32), vision=vision
  )
  dirty_tokens = jnp.where(valid, tokens, 99)
  last, hidden = extended(network(family), prompt, tokens, valid)
  dirty_last, dirty_hidden = extended(network(family), dirty, dirty_tokens, valid)
  np.testing.assert_array_equal(dirty_last, last)
  assert_same_where(valid, dirty_hidden, hidden, tolerance=0)


def test_a_reply_sees_neither_the_others_of_its_group_nor_its_own_future(family):
  prompt, tokens, valid = inputs(family)
  _, hidden = extended(network(family), prompt, tokens, valid)
  changed = tokens.at[0, 0, 3].set((tokens[0, 0, 3] + 1) % golden.BYTES)
  _, other = extended(network(family), prompt, changed, valid)
  moved = np.abs(np.asarray(other - hidden)).max(axis=-1) > 1e-6
  expected = np.zeros_like(moved)
  expected[0, 0, 3:] = True
  np.testing.assert_array_equal(moved, expected)


def test_gradients_through_the_shared_prompt_equal_those_of_replicated_prompts(family):
  prompt, tokens, valid = inputs(family)
  graphdef, params = nnx.split(network(family))
  weight = jnp.asarray(np.random.default_rng(5).standard_normal((2, GROUP, TIME, 32)))

  def score(hidden):
    return jnp.where(valid[..., None], hidden * weight, 0).sum()

  def shared(params):
    whole = nnx.merge(graphdef, params)
    return score(whole.forward_replies(whole.prefill(prompt), tokens, valid))

  copies = replicated(prompt, np.asarray(tokens), np.asarray(valid))
  starts = np.repeat((prompt.kind != records.Kind.PAD).sum(axis=1), GROUP)

  def copied(params):
    whole = nnx.merge(graphdef, params)
    return score(replies_of(plain(whole, copies), starts))

  left, right = jax.jit(jax.grad(shared))(params), jax.jit(jax.grad(copied))(params)
  for (path, a), (_, b) in zip(nnx.to_flat_state(left), nnx.to_flat_state(right), strict=True):
    name = ".".join(map(str, path))
    scale = np.abs(b[...]).max()
    assert (scale > 0) == (name not in ("text.head", "text.head_bias")), name
    np.testing.assert_allclose(a[...], b[...], rtol=0, atol=1e-5 * max(scale, 1), err_msg=name)


@functools.cache
def gradient(family, remat, **changes):
  """Gradient of a loss on replies as a function of parameters, under a rematerialisation policy."""
  prompt, tokens, valid = inputs(family)
  config = dataclasses.replace(network(family).config, remat=remat, **changes)
  graphdef = builders.graphdef(config)

  def loss(params):
    whole = nnx.merge(graphdef, params)
    return (whole.forward_replies(whole.prefill(prompt), tokens, valid) ** 2).mean()

  return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
  ("family", "policy"),
  [
    *(("qwen2_5_vl", policy) for policy in rematerialisation.POLICIES),
    ("qwen3_vl", "attention"),
    ("tinyllava", "attention"),
  ],
  indirect=["family"],
)
def test_recomputing_layers_changes_no_gradient(family, policy):
  params = nnx.state(network(family))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
    gradient(family, policy)(params),
    gradient(family, "none")(params),
  )


@one_family
def test_policies_compute_again_what_they_say(family):
  def counted(primitive, **changes):
    params, names = nnx.state(network(family)), ("none", *rematerialisation.POLICIES)
    made = {name: jax.make_jaxpr(gradient(family, name, **changes))(params) for name in names}
    return {name: _count(jaxpr.jaxpr, primitive) for name, jaxpr in made.items()}

  for dtype in ("float32", "bfloat16"):  # weights are float32
    products = counted("dot_general", dtype=dtype)
    counts = [products[name] for name in ("dots", "attention", "full")]
    assert products["none"] <= counts[0] < counts[1] == counts[2], (dtype, products)
  kernels = counted("pallas_call", attention="splash")
  assert 0 < kernels["none"] == kernels["dots"] == kernels["attention"] < kernels["full"], kernels


@one_family
def test_a_compiled_program_of_few_layers_keeps_less_where_they_are_computed_again(family):
  params = nnx.state(network(family))
  compiled = {name: gradient(family, name).lower(params).compile() for name in ("none", "full")}
  memory = {
    name: cast(Any, program.memory_analysis()).temp_size_in_bytes
    for name, program in compiled.items()
  }
  assert memory["full"] < 0.8 * memory["none"], memory


def _count(jaxpr, primitive):
  """Counts calls, also in inner functions, except those without outputs, which compilers drop."""
  inner = (j for e in jaxpr.eqns if e.outvars for j in extend.core.jaxprs_in_params(e.params))
  own = sum(int(equation.primitive.name == primitive) for equation in jaxpr.eqns)
  return own + sum(_count(each, primitive) for each in inner)


def test_a_batch_without_media_needs_no_frames(family):
  case = dataclasses.replace(builders.FIRST_CASES[family], prompts=((("text", 9),),))
  bare = builders.prompt(case, network(family).config)
  padded = builders.prompt(case, network(family).config, spare=(0, 2, 3))
  assert bare.vision.patches.shape[1] == 0
  np.testing.assert_allclose(
    plain(network(family), bare), plain(network(family), padded), rtol=0, atol=TOLERANCE
  )


def test_parameters_start_random_in_float32_and_name_every_axis(family):
  config = network(family).config
  fresh = registry.family_of(config).make_model(config, rngs=nnx.Rngs(0))
  known = {"layers", "embed", "heads", "kv_heads", "mlp", "vocab", "patch", None}
  known |= {"vision_embed", "vision_heads", "vision_mlp"}
  for path, leaf in nnx.to_flat_state(nnx.state(fresh)):
    assert isinstance(leaf, nnx.Param), path
    assert leaf[...].dtype == jnp.float32, path
    assert len(leaf.axes) == leaf[...].ndim, path
    assert set(leaf.axes) <= known, path
  assert abs(float(fresh.text.embedding[...].std()) - config.initializer_range) < 1e-3


def test_bfloat16_activations_stay_close_to_float32_and_logits_are_float32(family):
  prompt, tokens, valid = inputs(family)
  config = dataclasses.replace(network(family).config, dtype="bfloat16")
  graphdef = builders.graphdef(config)
  half = nnx.merge(graphdef, nnx.state(network(family)))
  _, rough = extended(half, prompt, tokens, valid)
  _, exact = extended(network(family), prompt, tokens, valid)
  assert rough.dtype == jnp.bfloat16
  assert half.logits(rough).dtype == jnp.float32
  error = np.abs(np.asarray(rough, np.float32) - np.asarray(exact))[np.asarray(valid)]
  assert error.mean() < 0.05


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize("policy", ["full", "dots"])
def test_features_behind_the_first_layers_are_recomputed_with_them(family, policy):
  params = nnx.state(network(family))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
    gradient(family, policy)(params),
    gradient(family, "none")(params),
  )


@pytest.mark.parametrize("family", ["qwen3_vl", "tinyllava"], indirect=True)
def test_a_mesh_gives_the_gradients_of_one_device(family):
  """All families, but with the other resampler, do whole steps in tests/parallel/test_mesh.py."""
  config, (_, tokens, valid) = network(family).config, inputs(family)
  case = builders.FIRST_CASES[family]
  length = builders.prompt(case, config).tokens.shape[1]
  prompt = builders.prompt(case, config, spare=(length % 2, 0, 0))
  mesh = mesh_lib.make_mesh((1, 2, 2, 2))
  make = registry.family_of(config).make_model
  layout = mesh_lib.MeshLayout(mesh)
  split = nnx.graphdef(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), layout=layout)))

  def loss(graphdef, params):
    whole = nnx.merge(graphdef, params)
    hidden = whole.forward_replies(whole.prefill(prompt), tokens, valid)
    return jnp.where(valid[..., None], whole.logits(hidden) ** 2, 0).sum()

  gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
  params = nnx.state(network(family))
  expected = gradient(nnx.graphdef(network(family)), params)
  sharded = jax.tree.map(jax.device_put, params, mesh_lib.param_shardings(params, mesh))
  found = gradient(split, sharded)
  for (path, one), (_, other) in zip(
    nnx.to_flat_state(expected), nnx.to_flat_state(found), strict=True
  ):
    scale = np.abs(one[...]).max()
    assert scale > 0, path
    if path[-2:] == ("blocks", "key_bias"):
      continue  # rounding alone: all keys moved alike leave a softmax as it was
    np.testing.assert_allclose(other[...], one[...], rtol=0, atol=1e-4 * scale, err_msg=str(path))
