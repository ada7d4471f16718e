"""The half of the devices that samples, where rl.disjoint_meshes has the other half train."""

from collections.abc import Iterator
import contextlib
import dataclasses

import jax
from jaxtyping import PyTree

from vr_jax.parallel import disjoint_meshes, processes
from vr_jax.train import experience, learner_state, run_context
from vr_jax.train import train_state as train_state_lib


@dataclasses.dataclass(kw_only=True)
class SamplingHalf:
  """What samples replies while the training half updates the policy.

  context: of the run, on the mesh that samples.
  params: a copy of the policy's parameters there, as of the last `refresh`; no optimizer state.
    None before the first.
  """

  context: run_context.RunContext
  meshes: disjoint_meshes.DisjointMeshes
  params: PyTree | None = None
  _trained: PyTree | None = None  # of `params`
  _fixed: PyTree | None = None  # those that are never trained: they move once

  def refresh(self, params: PyTree) -> PyTree:
    """Copies the policy's parameters to this half, without waiting for the copy; returns it.

    The last copy is deleted.
    """
    # Modules refer to themselves, so their parameters would live until Python looks for garbage.
    jax.tree.map(lambda x: x.delete(), self._trained)
    trained, fixed = train_state_lib.split(params, self.context.frozen)
    if self._fixed is None:
      self._fixed = self._moved(fixed)
    self._trained = self._moved(trained)
    self.params = train_state_lib.join(self._trained, self._fixed)
    return self.params

  def _moved(self, params: PyTree) -> PyTree:
    return self.meshes.to_sampling(learner_state.params_to_sample(self.context, params))

  def hand_over(self, collected: experience.Experience) -> experience.Experience:
    """Copies what the update reads of replies to the training half."""
    prompt, rollout = self.meshes.to_training((collected.prompt, collected.rollout))
    with_features = collected.prompt_with_features
    return dataclasses.replace(
      collected,
      prompt=prompt,
      prompt_with_features=prompt if collected.prompt is with_features else with_features,
      rollout=rollout,
    )


@contextlib.contextmanager
def open_half(context: run_context.RunContext) -> Iterator[SamplingHalf | None]:
  """Yields the half that samples; None without config.rl.disjoint_meshes.

  Processes exchange numbers on its devices then, since those of the training half are busy.

  context: of the run, on the mesh that trains.
  """
  if not context.config.rl.disjoint_meshes:
    yield None
    return
  meshes = disjoint_meshes.DisjointMeshes.make(context.mesh.devices.shape)
  with processes.exchanging_on(meshes.sampling):
    yield SamplingHalf(context=dataclasses.replace(context, mesh=meshes.sampling), meshes=meshes)
