"""Everything that training changes, in one pytree."""

from collections.abc import Callable
import dataclasses
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import ml_collections
import optax

from vr_jax.parallel import mesh as mesh_lib


# A state also holds the shapes or shardings of one, so its fields are not checked at run time.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class TrainState:
  """Parameters, optimizer, and the counters of skipped updates.

  step: updates so far, int32, skipped ones included.
  skipped: updates that were skipped because the loss or a gradient was not finite, int32.
  skipped_in_a_row: how many of the most recent updates were skipped, int32.
  """

  step: jax.Array
  params: PyTree
  optimizer_state: PyTree
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def make_optimizer(
  config: ml_collections.ConfigDict, params: PyTree, frozen: tuple[str, ...]
) -> optax.GradientTransformation:
  """Makes AdamW with warm-up, a schedule and clipping by global norm.

  config: the section of the stage: learning_rate, schedule, warmup_steps, steps, weight_decay,
    max_grad_norm, b1, b2, moment_dtype; and epochs, where a step makes several updates (the
    schedule counts updates, but its fields count steps).
  frozen: names of parameters, or of modules, that are not updated.

  moment_dtype is the dtype of the first moment. The second moment stays float32: with b2 = 0.999 an
  update changes it by less than bfloat16 can represent. Weight decay skips vectors (norm scales,
  biases): parameters that have fewer than two logical axes, not counting `layers`.
  """
  matrices = jax.tree.map(_is_matrix, params, is_leaf=_is_variable)
  trained = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      learning_rate_schedule(config),
      b1=config.b1,
      b2=config.b2,
      mu_dtype=config.moment_dtype,
      weight_decay=config.weight_decay,
      mask=matrices,
    ),
  )
  if not frozen:
    return trained
  labels = jax.tree.map_with_path(
    lambda path, _: "frozen" if _is_frozen(path, frozen) else "trained", params
  )
  return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  """The learning rate by number of updates so far. config: as in `make_optimizer`."""
  epochs = config.get("num_iterations", 1)
  warmup = {
    "init_value": 0.0 if config.warmup_steps else config.learning_rate,
    "peak_value": config.learning_rate,
    "warmup_steps": config.warmup_steps * epochs,
  }
  if config.schedule == "constant":  # no program depends on the number of steps
    return optax.warmup_constant_schedule(**warmup)
  steps = max(config.steps, config.warmup_steps + 1)
  return optax.warmup_cosine_decay_schedule(**warmup, decay_steps=steps * epochs)


def make_last_learning_rate_fn(
  config: ml_collections.ConfigDict,
) -> Callable[[TrainState], Array]:
  """Makes a function of a state: the learning rate of the update that led to it.

  config: as in `make_optimizer`.
  """
  schedule = learning_rate_schedule(config)

  @jax.jit
  def last(step: Array, skipped: Array, skipped_in_a_row: Array) -> Array:
    # The optimizer counts the updates that were not skipped.
    return jnp.asarray(schedule(step - skipped - (skipped_in_a_row == 0)))

  return lambda state: last(state.step, state.skipped, state.skipped_in_a_row)


def split(params: PyTree, frozen: tuple[str, ...]) -> tuple[PyTree, PyTree]:
  """Splits a tree into (trained, fixed). Each has None where the other one has the parameter.

  A gradient with respect to `trained` then has no array, and no backward pass, for fixed ones.
  """

  def half(fixed: bool) -> PyTree:
    return jax.tree.map_with_path(
      lambda path, x: x if _is_frozen(path, frozen) == fixed else None, params
    )

  return half(False), half(True)


def join(trained: PyTree, fixed: PyTree) -> PyTree:
  """Undoes `split`."""
  return jax.tree.map(lambda x, y: y if x is None else x, trained, fixed, is_leaf=_is_none)


def create(
  params: PyTree, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  """Makes a fresh state. The optimizer's moments are sharded like their parameters."""
  state = _fresh(params, optimizer)
  return jax.device_put(state, shardings(state, optimizer, mesh))


def abstract(
  params: PyTree, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  """Shapes, dtypes and shardings of the state that `create` makes; `params` may be shapes."""
  state = jax.eval_shape(lambda given: _fresh(given, optimizer), params)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    state,
    shardings(state, optimizer, mesh),
  )


def shardings(
  state: TrainState, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
  """The sharding of each leaf of a state (of arrays or shapes)."""
  whole = mesh_lib.replicated(mesh)
  param_shardings = mesh_lib.param_shardings(state.params, mesh)
  optimizer_shardings = optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, sharding: moment if _is_masked(moment) else sharding,
    state.optimizer_state,
    param_shardings,
    transform_non_params=lambda _: whole,
    is_leaf=_is_masked,
  )
  return dataclasses.replace(
    state,
    step=whole,
    params=param_shardings,
    optimizer_state=optimizer_shardings,
    skipped=whole,
    skipped_in_a_row=whole,
  )


def _fresh(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
  return TrainState(
    step=jnp.int32(0),
    params=params,
    optimizer_state=optimizer.init(params),
    skipped=jnp.int32(0),
    skipped_in_a_row=jnp.int32(0),
  )


def _is_masked(x: object) -> bool:
  """Whether x is the placeholder for the moments of a frozen parameter, which has none."""
  return isinstance(x, optax.MaskedNode)


def _is_variable(x: object) -> bool:
  return isinstance(x, nnx.Variable)


def _is_matrix(variable: nnx.Variable) -> nnx.Variable:
  axes = variable.get_metadata().get("axes") or ()
  return variable.replace(len([axis for axis in axes if axis != "layers"]) >= 2)


def _is_none(x: object) -> bool:
  return x is None


def _is_frozen(path: tuple, frozen: tuple[str, ...]) -> bool:
  """Whether this parameter, or a module that it is part of, is frozen."""
  name = jax.tree_util.keystr(path, simple=True, separator=".")
  return any(f"{name}.".startswith(f"{each}.") for each in frozen)
