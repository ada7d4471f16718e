"""State and inputs of an RL step as shapes, dtypes and shardings.

There are no weights, and the devices need not be attached to this host.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections
import optax

from vr_jax import records
from vr_jax.envs import registry
from vr_jax.models import interface
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import learner_state, model_setup, step_shapes
from vr_jax.train import train_state as train_state_lib

STOP_TOKENS = (0,)  # their values change no program


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractTrainState:
  """A `Learner` before its first step, in shapes.

  reference_params: those of the reference that it does not share with the policy.
  critic: None where the recipe trains none.
  prompt: with the vision tower's input.
  encoded: with features of the policy's tower in its place.
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
    """Prompts of reference and update: with features where all use one tower, or else patches."""
    return self.encoded if self.net.tower_frozen else self.prompt

  @property
  def ahead(self) -> records.Prompt | None:
    """The next step's prompts, on the devices during an update; None with a feature cache."""
    config = self.net.config
    kept = not registry.environment_class(config.recipe).chooses_frames
    cached = self.net.tower_frozen and config.model.feature_cache_gib and kept
    return None if cached else self.prompt

  @property
  def tower(self) -> PyTree:
    """The tower's parameters, which a program that is given features does not read."""
    return train_state_lib.split(self.state.params, self.net.family.tower)[1]

  @property
  def text(self) -> PyTree:
    """All other parameters."""
    return train_state_lib.split(self.state.params, self.net.family.tower)[0]

  @property
  def others(self) -> PyTree:
    """State besides the policy's parameters: its optimizer, the reference, the critic."""
    return self.state.optimizer_state, self.reference_params, self.critic

  @property
  def drawing(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Arguments of sampling besides parameters and prompts: allowed tokens and a random key."""
    whole = mesh_lib.replicated(self.net.mesh)
    return (
      jax.ShapeDtypeStruct(self.net.allowed_tokens.shape, bool, sharding=whole),
      jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole),
    )

  @property
  def scored(self) -> PyTree:
    """A float32 for each token of the replies."""
    return self.replies.log_probs


def make_abstract_state(
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  mesh: jax.sharding.Mesh,
  shapes: step_shapes.StepShapes,
) -> AbstractTrainState:
  """The abstract state of a config on a mesh.

  Raises InputError where the mesh does not divide the model or the batch.
  """
  model_setup.check_context(config, model)
  for parts in (shapes.microbatches, config.rl.log_prob_microbatches):
    mesh_lib.check_batch(shapes.prompts, mesh, "config.rl.batch_size", parts=parts)
  allowed_tokens = jnp.ones(model.vocab_size, bool)
  net = model_setup.ModelSetup(
    config=config, mesh=mesh, model=model, allowed_tokens=allowed_tokens, stop_tokens=STOP_TOKENS
  )
  learner = learner_state.make_learner_state(net, net.abstract_params, abstract=True)
  clip = shapes.prompts, shapes.frames, shapes.patches
  prompt = step_shapes.prompt(shapes.prompts, shapes.prefix, shapes.frames, shapes.patches, model)
  encoded = dataclasses.replace(
    prompt, vision=None, media=model.vision_shapes.abstract_features(*clip)
  )
  replies = mesh_lib.abstract_batch(step_shapes.replies(shapes), mesh)
  return AbstractTrainState(
    net=net,
    step_shapes=shapes,
    optimizer=learner.optimizer,
    state=learner.policy,
    reference_params=learner.reference_params,
    critic_optimizer=learner.critic_optimizer,
    critic=learner.critic,
    prompt=mesh_lib.abstract_batch(prompt, mesh),
    encoded=mesh_lib.abstract_batch(encoded, mesh),
    replies=dataclasses.replace(replies, episode_inputs=_episode_inputs(net, shapes, shapes.later))
    if shapes.later
    else replies,
  )


def _episode_inputs(
  net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, later: step_shapes.LaterTurns
) -> records.EpisodeInputs:
  """Episode inputs of an update: with patches where it trains the tower, else with features."""
  vision_shapes = net.model.vision_shapes
  rows = shapes.prompts, shapes.group * later.frames_in_all, later.patches
  places = step_shapes.abstract_array((shapes.prompts, shapes.group, shapes.time), jnp.int32)
  episode_inputs = records.EpisodeInputs(
    positions=step_shapes.abstract_array((*places.shape, net.model.position_axes), jnp.int32),
    media_index=places,
    vision=None,
    media=vision_shapes.abstract_features(*rows) if net.tower_frozen else None,
    visible_from=places if later.forgets else None,
  )
  vision = vision_shapes.abstract_vision(*rows)
  patches = (
    None if net.tower_frozen else mesh_lib.abstract_batch(vision, net.mesh, axes=mesh_lib.VISION)
  )
  return dataclasses.replace(mesh_lib.abstract_batch(episode_inputs, net.mesh), vision=patches)


def with_sharding(
  layout: mesh_lib.MeshLayout, x: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]
) -> Any:
  """The same array with the sharding that a layout gives these logical axes.

  Typed `Any` because it takes the place of an array in a record.
  """
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding(axes, x.shape))
