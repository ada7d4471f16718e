"""What `rl_loop` holds and reads in a step, as shapes, dtypes and shardings: no weights, and devices that may be elsewhere."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections
import optax

from launch import step_shapes
from vr_jax import records
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import learner_state, model_setup
from vr_jax.train import train_state as train_state_lib

STOP_TOKENS = (0,)  # which ones they are changes no program


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractTrainState:
  """What a `Learner` holds before its first step, in shapes.

  reference_params: of the reference, what it does not share with the state. critic: None where there is none. prompt: as it is read;
  encoded: with features of the policy's tower.
  """

  net: model_setup.ModelSetup
  step_shapes: step_shapes.StepShapes
  optimizer: optax.GradientTransformation
  state: train_state_lib.TrainState
  reference_params: PyTree
  critic_optimizer: optax.GradientTransformation | None
  critic: train_state_lib.TrainState | None
  prompt: records.Prompt
  encoded: records.Prompt
  replies: records.Rollout

  @property
  def shared(self) -> records.Prompt:
    """What reference and update read: features, if theirs are those of the policy, or else patches."""
    return self.encoded if self.net.tower_frozen else self.prompt

  @property
  def ahead(self) -> records.Prompt | None:
    """The next prompts, put on the devices beside an update; None where a cache may have features of them."""
    model = self.net.config.model
    cached = self.net.tower_frozen and model.feature_cache_gib and "turns" not in self.net.config
    return None if cached else self.prompt

  @property
  def tower(self) -> PyTree:
    """The tower's parameters, which no program reads that is given features."""
    return train_state_lib.split(self.state.params, self.net.family.tower)[1]

  @property
  def text(self) -> PyTree:
    """All other parameters."""
    return train_state_lib.split(self.state.params, self.net.family.tower)[0]

  @property
  def others(self) -> PyTree:
    """What lies beside the policy's parameters: its optimizer, the reference, the critic."""
    return self.state.optimizer_state, self.reference_params, self.critic

  @property
  def drawing(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """What sampling is given beside parameters and prompts: the tokens that are allowed, and a key."""
    whole = mesh_lib.replicated(self.net.mesh)
    return (
      jax.ShapeDtypeStruct(self.net.allowed_tokens.shape, bool, sharding=whole),
      jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole),
    )

  @property
  def scored(self) -> jax.ShapeDtypeStruct:
    """A number for each token of the replies."""
    return self.replies.log_probs


def make_abstract_state(
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  mesh: jax.sharding.Mesh,
  load: step_shapes.StepShapes,
) -> AbstractTrainState:
  """That of a config on a mesh. Raises InputError where the mesh does not fit the model or the batch."""
  model_setup.check_context(config, model)
  mesh_lib.check_batch(load.prompts, mesh, "config.rl.batch_size", parts=load.microbatches)
  allowed_tokens = jnp.ones(model.vocab_size, bool)
  net = model_setup.ModelSetup(
    config=config, mesh=mesh, model=model, allowed_tokens=allowed_tokens, stop_tokens=STOP_TOKENS
  )
  begun = learner_state.make_learner_state(net, net.abstract_params, abstract=True)
  clip = load.prompts, load.frames, load.patches
  prompt = step_shapes.prompt(load.prompts, load.prefix, load.frames, load.patches, model)
  encoded = dataclasses.replace(
    prompt, vision=None, media=model.vision_shapes.abstract_features(*clip)
  )
  replies = mesh_lib.abstract_batch(step_shapes.replies(load), mesh)
  return AbstractTrainState(
    net=net,
    step_shapes=load,
    optimizer=begun.optimizer,
    state=begun.policy,
    reference_params=begun.anchor,
    critic_optimizer=begun.critic_optimizer,
    critic=begun.critic,
    prompt=mesh_lib.abstract_batch(prompt, mesh),
    encoded=mesh_lib.abstract_batch(encoded, mesh),
    replies=dataclasses.replace(replies, episode_inputs=_suffix(net, load))
    if load.later
    else replies,
  )


def _suffix(net: model_setup.ModelSetup, load: step_shapes.StepShapes) -> records.EpisodeInputs:
  """As an update takes it: with patches where it trains the tower, else with features."""
  shapes = net.model.vision_shapes
  rows = load.prompts, load.group * load.later.frames_in_all, load.patches
  places = jax.ShapeDtypeStruct((load.prompts, load.group, load.time), jnp.int32)
  episode_inputs = records.EpisodeInputs(
    positions=jax.ShapeDtypeStruct((*places.shape, net.model.position_axes), jnp.int32),
    media_index=places,
    vision=None,
    media=shapes.abstract_features(*rows) if net.tower_frozen else None,
    forgotten=places if load.later.forgets else None,
  )
  vision = shapes.abstract_vision(*rows)
  patches = (
    None if net.tower_frozen else mesh_lib.abstract_batch(vision, net.mesh, axes=mesh_lib.VISION)
  )
  return dataclasses.replace(mesh_lib.abstract_batch(episode_inputs, net.mesh), vision=patches)


def with_sharding(
  mesh: jax.sharding.Mesh, x: jax.ShapeDtypeStruct, axes: Sequence[str | None]
) -> jax.ShapeDtypeStruct:
  """The same where the rules of the mesh want these logical axes."""
  sharding = jax.sharding.NamedSharding(mesh, mesh_lib.spec_of(axes, x.shape, mesh))
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
