"""The state of a learner before its first step: as arrays, or as shapes alone for a compiler."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import optax

from vr_jax.train import critic as critic_lib
from vr_jax.train import model_setup
from vr_jax.train import train_state as train_state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerState:
  """The states and optimizers of the policy and the critic, and the reference.

  reference_params: see `make_reference`; None without a reference.
  critic: None without a critic.
  """

  optimizer: optax.GradientTransformation
  policy: train_state_lib.TrainState
  reference_params: PyTree | None
  critic_optimizer: optax.GradientTransformation | None
  critic: train_state_lib.TrainState | None


def make_learner_state(
  net: model_setup.ModelSetup, params: PyTree, *, abstract: bool = False
) -> LearnerState:
  """Makes the state of a learner that starts from `params`, which it owns from then on.

  abstract: `params` and the result are shapes, dtypes and shardings; this machine then needn't have
    the devices of the mesh.
  """
  config, rl = net.config, net.config.rl
  create = train_state_lib.abstract if abstract else train_state_lib.create
  optimizer = train_state_lib.make_optimizer(rl, net.abstract_params, net.frozen)
  critic_optimizer = critic = None
  if rl.advantage_estimator == "gae":
    begin = functools.partial(critic_lib.init_critic_params, embed=net.model.hidden_size)
    critic_params = jax.eval_shape(begin, params) if abstract else begin(params)
    critic_optimizer = critic_lib.make_optimizer(
      config, critic_params, critic_lib.frozen_names(net.frozen)
    )
    critic = create(critic_params, critic_optimizer, net.mesh)
  has_reference = rl.kl_weight or (critic and config.critic.kl_weight)
  reference = make_reference(net, params, abstract=abstract) if has_reference else None
  return LearnerState(
    optimizer=optimizer,
    policy=create(params, optimizer, net.mesh),
    reference_params=reference,
    critic_optimizer=critic_optimizer,
    critic=critic,
  )


def make_reference(
  net: model_setup.ModelSetup, params: PyTree, *, abstract: bool = False
) -> PyTree:
  """Copies the parameters that are trained, for the reference.

  The reference shares the frozen ones with the policy (with adapters, the whole base). Matrices are
  in the activations' dtype where every pass casts them to it, which changes no bit of a log-prob.

  abstract: `params` and the result are shapes, dtypes and shardings.
  """
  trained = train_state_lib.split(params, net.frozen)[0]
  cast = _cast_as_passes(net, trained, abstract=abstract)
  if abstract:
    return cast
  return jax.tree.map(
    lambda new, old: jnp.copy(new) if new.dtype == old.dtype else new, cast, trained
  )


def params_to_sample(
  net: model_setup.ModelSetup, params: PyTree, *, abstract: bool = False
) -> PyTree:
  """Parameters as the half that samples gets them, where rl.disjoint_meshes has one.

  Matrices are in the dtype that every pass casts them to, which changes no bit of what is sampled.
  Those that are rounded to 8 bits there are as trained.

  abstract: as in `make_reference`.
  """
  return params if net.samples_int8 else _cast_as_passes(net, params, abstract=abstract)


def _cast_as_passes(net: model_setup.ModelSetup, params: PyTree, *, abstract: bool) -> PyTree:
  def cast(variable: nnx.Variable) -> nnx.Variable:
    x = variable.get_value()
    if x is None:
      return variable
    dtype = dtype_in_passes(net, variable)
    if abstract:
      return variable.replace(jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding))
    return variable.replace(x.astype(dtype))

  return jax.tree.map(cast, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def dtype_in_passes(net: model_setup.ModelSetup, variable: nnx.Variable) -> jnp.dtype:
  """The dtype that every pass casts a parameter to anyway, or else its own."""
  names = {*(variable.get_metadata().get("axes") or ())} - {"layers", None}
  casts = net.family.casts_matrices and not net.adapters and len(names) > 1
  return jnp.dtype(net.model.dtype if casts else variable.get_value().dtype)
