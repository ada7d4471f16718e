"""Gradients of float32 weights under bfloat16 activations: summed over devices in float32."""

import dataclasses
import functools
import operator
import re
from typing import Any

from flax import nnx
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models import registry
from vr_jax.models.common import float32_gradients, layers, lora
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import forward

ROWS, GROUP, TIME = 8, 2, 5
HIGHEST = jax.lax.Precision.HIGHEST
# A result of a sum over devices in the text of an HLO module, where names of arrays start with %.
SUM = re.compile(r"%\S+ = ([^%]*?) (?:all-reduce|reduce-scatter)(?:-start)?\(.*")
ALONE = "replica_groups={{0},{1}"  # such a sum is of one device each


LOGIT_CHUNKS = {"qwen2_5_vl": 8192, "qwen3_vl": 32, "tinyllava": 32}  # all at once, or in chunks


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled gradient(params, weights) of log-probs that have a weight for each of ROWS prompts.

  partitioned: the program of one device, as text, before other passes change its dtypes.
  """

  gradient: Any
  params: Any
  partitioned: str


@pytest.fixture(params=list(builders.FIRST_CASES), scope="module")
def program(request, tmp_path_factory):
  """Of each family with adapters everywhere. All is trained; each device has one prompt."""
  mesh = mesh_lib.make_mesh((2, 4, 1, 1))
  graphdef, params = make_model(request.param, mesh)
  gradient = make_gradient(request.param, mesh, graphdef, params)
  directory = tmp_path_factory.mktemp("passes")
  options = {
    "xla_dump_to": str(directory),
    "xla_dump_hlo_pass_re": "spmd-partitioning",
    "xla_dump_hlo_as_text": True,
  }
  # A program from the cache goes through no pass.
  compilation_cache.reset_cache()
  jax.config.update("jax_enable_compilation_cache", False)
  compiled = gradient.lower(params, jnp.ones(ROWS)).compile(options)
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
  (dump,) = directory.glob("*after_spmd-partitioning*")
  return Program(compiled, params, dump.read_text())


def make_model(family, mesh):
  """The static half of the family's smallest model, and its parameters."""
  targets = registry.family(family).lora_targets
  halves = {"text": targets.text, "vision": targets.vision}
  adapters = lora.Adapters(rank=4, alpha=8.0, targets=targets, **halves)
  base = builders.load(builders.FIRST_CASES[family])
  config = dataclasses.replace(
    base.config, dtype="bfloat16", remat="full", logit_chunk=LOGIT_CHUNKS[family]
  )

  def fresh():
    layout = mesh_lib.MeshLayout(mesh)
    network = registry.family_of(config).make_model(config, rngs=nnx.Rngs(0), layout=layout)
    return lora.add(network, adapters, rngs=nnx.Rngs(1))

  # No weight at 0: some gradients would be too.
  params = jax.tree.map(
    lambda x: jnp.where(x.any(), x, 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)),
    nnx.state(lora.add(base, adapters, rngs=nnx.Rngs(1))),
  )
  shardings = mesh_lib.param_shardings(params, mesh)
  return nnx.graphdef(nnx.eval_shape(fresh)), jax.tree.map(jax.device_put, params, shardings)


def make_gradient(family, mesh, graphdef, params):
  case = builders.FIRST_CASES[family]
  prompt = builders.prompt(case, nnx.merge(graphdef, params).config)
  prompt = jax.tree.map(lambda x: np.repeat(x, ROWS // len(case.prompts), axis=0), prompt)
  rng = np.random.default_rng(3)
  tokens = rng.integers(0, builders.golden.BYTES, (ROWS, GROUP, TIME))
  valid = np.arange(TIME) < rng.integers(1, TIME + 1, (ROWS, GROUP, 1))
  prompt, tokens, valid = (mesh_lib.put_batch(x, mesh) for x in (prompt, tokens, valid))

  def loss(params, weights):
    network = nnx.merge(graphdef, params)
    allowed = jnp.ones(network.lm_head_weight().shape[0], bool)
    log_probs, _ = forward.reply_log_probs(network, prompt, tokens, valid, allowed, 0.7)
    return (log_probs * weights[:, None, None]).sum()

  return jax.jit(jax.grad(loss))


def test_what_crosses_devices_of_a_gradient_is_float32(program):
  found = SUM.finditer(program.partitioned)
  sums = [one.group(1) for one in found if ALONE not in one.group()]
  assert len(sums) > 10
  assert not [one for one in sums if "bf16" in one]


def test_the_gradient_over_devices_is_the_sum_of_what_each_of_them_has(program):
  """The same program gives each device's part: the weights of all other rows are 0."""
  whole = program.gradient(program.params, jnp.ones(ROWS))
  one_row = np.eye(ROWS, dtype=np.float32)
  parts = [program.gradient(program.params, jnp.asarray(row)) for row in one_row]
  for (path, found), *rows in zip(*map(nnx.to_flat_state, (whole, *parts)), strict=True):
    each = np.stack([np.asarray(row[...], np.float64) for _, row in rows])
    assert found[...].dtype == np.float32, path
    assert np.abs(each).max() > 0, path
    error = np.abs(np.asarray(found[...]) - each.sum(axis=0)).max()
    assert error < 1e-6 * np.abs(each).sum(axis=0).max(), path


def sharded(x, *spec):
  mesh = mesh_lib.make_mesh((8, 1, 1, 1))
  return jax.device_put(x, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))


OPERATIONS = {
  "dot": (functools.partial(float32_gradients.dot, precision=HIGHEST), (16, 24), "rni,rno->io"),
  "multiply": (
    functools.partial(float32_gradients.multiply, dtype=jnp.bfloat16),
    (16,),
    "rni,rni->i",
  ),
  "add": (functools.partial(float32_gradients.add, dtype=jnp.bfloat16), (16,), "rno->o"),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("rows", [8, 64])
def test_an_operation_has_the_gradient_of_its_formula(name, rows):
  """Against the same sums of the same bfloat16 numbers in float64."""
  operation, shape, formula = OPERATIONS[name]
  keys = jax.random.split(jax.random.key(4), 3)
  x = sharded(jax.random.normal(keys[0], (rows, 3, 16), jnp.bfloat16), "data")
  weight = jax.random.normal(keys[1], shape)
  result, pull = jax.vjp(operation, x, weight)
  rounded = weight.astype(jnp.bfloat16)
  plain = {"dot": operator.matmul, "multiply": operator.mul, "add": operator.add}[name]
  np.testing.assert_array_equal(result, plain(x, rounded))
  outer = sharded(jax.random.normal(keys[2], result.shape, jnp.bfloat16), "data")
  of_x, of_weight = jax.jit(pull)(outer)
  wide = [np.asarray(one, np.float64) for one in (x, outer)]
  expected = np.einsum(formula, *wide[2 - formula.split("->")[0].count("r") :])
  np.testing.assert_allclose(of_weight, expected, rtol=1e-5, atol=1e-5)
  _, pull_plain = jax.vjp(lambda x: plain(x, rounded), x)
  np.testing.assert_array_equal(of_x, jax.jit(pull_plain)(outer)[0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_in_float32_an_operation_is_the_plain_one(name):
  operation, shape, _ = OPERATIONS[name]
  if "dtype" in operation.keywords:
    operation = functools.partial(operation.func, dtype=jnp.float32)
  x, weight = jnp.ones((4, 3, 16)), jnp.ones(shape)
  text = str(jax.make_jaxpr(operation)(x, weight))
  assert "custom_vjp" not in text


def test_a_layer_norm_uses_the_same_scale_whether_it_was_rounded_before_or_not():
  x = jax.random.normal(jax.random.key(5), (6, 32), jnp.bfloat16)
  scale, bias = jax.random.normal(jax.random.key(6), (2, 32))
  norm = functools.partial(layers.layer_norm, x, epsilon=1e-6)
  rounded = norm(scale.astype(jnp.bfloat16), bias.astype(jnp.bfloat16))
  np.testing.assert_array_equal(norm(scale, bias), rounded)
