"""Estimates of the memory, disk and time that a run takes, from its config alone."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections

from vr_jax.envs import registry
from vr_jax.models.common import flops, rematerialisation, weight_mapping
from vr_jax.parallel import accelerators
from vr_jax.rollout import refill_queue
from vr_jax.train import learner_state, model_setup, step_shapes
from vr_jax.train import train_state as train_state_lib

GIB = 2**30
CHECKPOINTS = 3  # of a stage: two are kept while another one is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageMemory:
  """Bytes of one device that a step of a stage takes at the least. Activations are left out.

  stage: sft, rl or eval.
  state: parameters, optimizer, reference and critic.
  gradient: of the parameters that are trained; 0 if none are.
  sampling: the weights that decoding reads, and the keys and values of prompts and replies; 0 if
    nothing is sampled.
  """

  stage: str
  state: int
  gradient: int
  sampling: int

  @property
  def total(self) -> int:
    """Bytes at the worst moment: an update and sampling follow each other."""
    return self.state + max(self.gradient, self.sampling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """What a run takes.

  memory: of the stage that takes most.
  available: bytes of a device, or of the host's memory that a CPU device has a share of; None:
    unknown.
  checkpoint_bytes: of all stages, while one is written.
  feature_bytes: of the cached features of one clip; 0 without a cache.
  sft_step, rl_step: seconds that a step takes at the least, by the device's peak rates; None where
    these are not known, as for CPUs.
  """

  memory: StageMemory
  available: int | None
  checkpoint_bytes: int
  feature_bytes: int
  sft_step: float | None
  rl_step: float | None


def estimate(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Estimate:
  """Estimates a run on this machine's devices. Nothing is computed or allocated.

  Raises InputError if the buckets are too small for a clip, or the mesh does not divide the model.
  """
  model = model_setup.model_of(config)
  net = model_setup.ModelSetup(
    config=model_setup.clamp_microbatches(config, mesh),
    mesh=mesh,
    model=model,
    allowed_tokens=jnp.ones(model.vocab_size, bool),
    stop_tokens=(0,),  # its value changes no size
  )
  shapes = step_shapes.make_step_shapes(net.config, model, mesh)
  speed = accelerators.find_speed(mesh.devices.flat[0].device_kind)
  states = _learner_states(net)
  return Estimate(
    memory=max(_stage_memories(net, shapes, states), key=lambda each: each.total),
    available=_available_bytes(mesh),
    checkpoint_bytes=CHECKPOINTS * sum(_checkpoint_bytes(net, each) for each in states.values()),
    feature_bytes=_feature_bytes(net, shapes),
    sft_step=_sft_seconds(net, shapes, speed),
    rl_step=_rl_seconds(net, shapes, speed),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StageState:
  """What a stage that trains keeps on the devices, as shapes; the last two may be None."""

  policy: train_state_lib.TrainState
  reference_params: PyTree
  critic: train_state_lib.TrainState | None


def _learner_states(net: model_setup.ModelSetup) -> dict[str, _StageState]:
  """The states of the stages of a run that train."""
  params, states = net.abstract_params, {}
  if net.config.rl.steps:
    learner = learner_state.make_learner_state(net, params, abstract=True)
    states["rl"] = _StageState(
      policy=learner.policy, reference_params=learner.reference_params, critic=learner.critic
    )
  if net.config.sft.steps:
    optimizer = train_state_lib.make_optimizer(net.config.sft, params, net.frozen)
    policy = train_state_lib.abstract(params, optimizer, net.mesh)
    states["sft"] = _StageState(policy=policy, reference_params=None, critic=None)
  return states


def _stage_memories(
  net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, states: Mapping[str, _StageState]
) -> Iterator[StageMemory]:
  """The memory of all stages of a run, evaluations included."""
  params, config = net.abstract_params, net.config
  played = dataclasses.replace(shapes, prompts=config.eval.batch_size, group=1)
  as_trained = net.decoding_shapes(int8_weights=False)
  evaluated = _decode_weight_bytes(net, as_trained) + _cache_bytes(net, played)
  sampled = _decode_weight_bytes(net, net.abstract_decoding_params) + _cache_bytes(net, shapes)
  disjoint = config.rl.disjoint_meshes and config.rl.steps
  sampling = {"sft": 0, "rl": 0 if disjoint else sampled}
  if config.rl.eval_every:
    sampling["rl"] = max(sampling["rl"], evaluated)
  if disjoint:  # the half that samples
    moved = learner_state.params_to_sample(net, params, abstract=True)
    yield StageMemory(stage="rl", state=_device_bytes(moved), gradient=0, sampling=sampled)
  for stage, state in states.items():
    yield StageMemory(
      stage=stage,
      state=_device_bytes((state.policy, state.reference_params, state.critic)),
      gradient=_device_bytes(train_state_lib.split(state.policy.params, net.frozen)[0]),
      sampling=sampling[stage],
    )
  yield StageMemory(stage="eval", state=_device_bytes(params), gradient=0, sampling=evaluated)


def _checkpoint_bytes(net: model_setup.ModelSetup, state: _StageState) -> int:
  """Bytes of one checkpoint of a stage."""
  params = state.policy.params
  saved = train_state_lib.split(params, net.frozen)[0] if net.adapters else params
  return _whole_bytes((saved, state.policy.optimizer_state, state.critic))


def _leaves(tree: PyTree) -> list[Any]:
  return [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]


def _whole_bytes(tree: PyTree) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in _leaves(tree))


def _device_bytes(tree: PyTree) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in _leaves(tree))


def _decode_weight_bytes(net: model_setup.ModelSetup, decoding_params: PyTree) -> int:
  """Bytes of a device for the weights that decoding has in another dtype or layout."""
  kept, decoded = map(weight_mapping.flat, (net.abstract_params, decoding_params))
  return _device_bytes([decoded[name] for name in kept if decoded[name] is not kept[name]])


def _cache_bytes(net: model_setup.ModelSetup, shapes: step_shapes.StepShapes) -> int:
  """Bytes of a device for keys and values of prompts and replies."""
  text, slots = net.model.text_sizes, net.config.rl.decode_slots
  prompts, replies = shapes.prompts, shapes.prompts * shapes.group
  if slots:
    places = refill_queue.RefillLayout.choose(net.layout, prompts, shapes.group, slots)
    prompts, replies = places.blocks * places.prompt_slots, places.devices * places.slots
  tokens = prompts * shapes.prefix + replies * shapes.time
  itemsize = jnp.dtype(net.model.dtype).itemsize
  return itemsize * (text.layers * text.kv_width * tokens // net.mesh.size)


def _feature_bytes(net: model_setup.ModelSetup, shapes: step_shapes.StepShapes) -> int:
  """Bytes of one clip in the feature cache; 0 without a cache."""
  chooses_frames = registry.environment_class(net.config.recipe).chooses_frames
  if not (net.tower_frozen and net.config.model.feature_cache_gib) or chooses_frames:
    return 0
  return _whole_bytes(net.model.vision_shapes.abstract_features(1, shapes.frames, shapes.patches))


def _forward(net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, **more: int) -> Any:
  sizes = {"frames": shapes.frames, "patches": shapes.patches, "prefix": shapes.prefix}
  return net.family.forward_flops(net.model, **sizes, **more)


def _training_flops(net: model_setup.ModelSetup, work: flops.Forward) -> float:
  return flops.training(
    work,
    vision_frozen=net.tower_frozen,
    base_frozen=bool(net.adapters),
    rematerialised=net.model.remat in rematerialisation.REPEATING,
  )


def _sft_seconds(
  net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, speed: accelerators.Speed | None
) -> float | None:
  sft = net.config.sft
  if speed is None:
    return None
  work = _training_flops(net, _forward(net, shapes, group=1, time=sft.max_reply_tokens))
  return sft.batch_size * work / (net.mesh.size * speed.flops)


def _rl_seconds(
  net: model_setup.ModelSetup, shapes: step_shapes.StepShapes, speed: accelerators.Speed | None
) -> float | None:
  """Sampling reads the weights once a token; scoring and updating are bound by products."""
  rl = net.config.rl
  if speed is None:
    return None
  forward = _forward(net, shapes, group=shapes.group, time=shapes.time)
  scorers = bool(rl.kl_weight) + (rl.num_iterations > 1)
  work = forward.total + scorers * forward.text
  work += rl.num_iterations * _training_flops(net, forward)
  decoding = shapes.time * decode_bytes(net)[0] / speed.bandwidth
  update = shapes.prompts * work / (net.mesh.size * speed.flops)
  return max(update, decoding) if rl.disjoint_meshes else update + decoding


def decode_bytes(net: model_setup.ModelSetup) -> tuple[int, int]:
  """Bytes of weights that a device reads for each token, and how many of them it has to receive.

  It receives some in the layout of training alone, where it has a part of what it reads.
  """
  layout, own = net.layout.decoding, _device_bytes(_read_params(net))
  read = own * math.prod(layout.mesh.shape[axis] for axis in layout.rules["embed"])
  return read, read - own


def _read_params(net: model_setup.ModelSetup) -> PyTree:
  """The weights that each step of decoding reads as a whole: not the tower, nor an embedding.

  An embedding that is the head, too, is read as a whole.
  """
  groups, params = net.family.parameter_groups, net.abstract_decoding_params
  head = weight_mapping.flat(weight_mapping.part(params, groups["head"]))
  text = weight_mapping.flat(weight_mapping.part(params, groups["text"]))
  if head:
    del text["text.embedding"]
  return weight_mapping.unflat({**text, **head})


def _available_bytes(mesh: jax.sharding.Mesh) -> int | None:
  """Bytes that one device may use, as far as the device or the system says so."""
  device = mesh.devices.flat[0]
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  if device.platform != "cpu":
    return None
  pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
  return pages * size // mesh.size
