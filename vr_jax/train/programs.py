"""The programs of one RL step with abstract arguments: what a compiler needs to know of a config, and no weights.

They are the functions that `rl_loop` calls: the encoder, the sampler, the scorer and the step of `train/steps.py`.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections
import numpy as np
import optax

from vr_jax import errors, records
from vr_jax.data import sampling
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import sizes
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder, sampler
from vr_jax.train import inputs, network, steps
from vr_jax.train import state as state_lib

TEXT_TOKENS = 256  # that a prompt holds beside its video, where the buckets leave the choice
STOP_TOKENS = (0,)  # which ones they are changes no program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
  """How much one step works on: the sizes of its arrays. frames: temporal patches; patches: of one of these."""

  prompts: int
  group: int
  time: int
  prefix: int
  frames: int
  patches: int
  microbatches: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A jitted function and what it is called with.

  runs: calls in one RL step. turns: how often a loop runs whose length only the replies decide, None where there is
  none. tower: whether it runs the vision tower. held: arrays that lie in memory meanwhile, and that it does not read.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[PyTree, ...]
  keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
  runs: int = 1
  turns: int | None = None
  tower: bool = False
  held: PyTree = None


def model_of(config: ml_collections.ConfigDict) -> model_config.Config:
  """The sizes of a config's model: of its config.json where it is there, of the release that it names, or its own.

  Raises InputError where a pretrained model is neither.
  """
  section = config.model
  if not section.pretrained:
    # A trained tokenizer gives the media tokens other ids, which changes no program.
    fields = {**sizes.MEDIA_TOKENS, **section.architecture.to_dict()}
    return network.with_section(model_config.Config.from_dict(fields), section)
  path = Path(section.pretrained)
  if (path / "config.json").is_file():
    read = model_config.Config.from_json(path / "config.json")
  elif path.name in sizes.RELEASES:
    read = model_config.Config.from_dict(sizes.RELEASES[path.name])
  else:
    raise errors.InputError(
      f"config.model.pretrained={path}: holds no config.json, and is none of {', '.join(sizes.RELEASES)}"
    )
  return network.with_section(read, section)


def load_of(config: ml_collections.ConfigDict, model: model_config.Config) -> Load:
  """What a step of full clips works on: the buckets that hold their frames, at the largest size that a frame may have.

  The prompt's bucket is the smallest with room for `TEXT_TOKENS` beside the video, or else the largest.
  Raises InputError where a bucket is too small for a clip.
  """
  section, vision = config.model, model.vision
  rule = inputs.sampling_rule(config.data)
  images = rule.frames if isinstance(rule, sampling.Uniform) else rule.max_frames
  frames = -(-images // vision.temporal_patch_size)
  patches = section.max_pixels // vision.patch_size**2
  media = frames * patches // vision.merge_unit
  _check_bucket(frames, "temporal patches", section.frame_buckets, "frame_buckets")
  _check_bucket(patches, "patches a frame", section.patch_buckets, "patch_buckets")
  _check_bucket(media + 1, "tokens with its question", section.prefix_buckets, "prefix_buckets")
  roomy = [size for size in section.prefix_buckets if size >= media + TEXT_TOKENS]
  return Load(
    prompts=config.rl.prompts,
    group=config.rl.group,
    time=config.rl.max_new_tokens,
    prefix=min(roomy, default=max(section.prefix_buckets)),
    frames=min(size for size in section.frame_buckets if size >= frames),
    patches=min(size for size in section.patch_buckets if size >= patches),
    microbatches=config.rl.microbatches,
  )


def of_config(
  config: ml_collections.ConfigDict, model: model_config.Config, mesh: jax.sharding.Mesh, load: Load
) -> list[Program]:
  """The programs of a step in the order in which they run; the devices of `mesh` may be those of a topology.

  Raises InputError where the mesh does not fit the model or the batch.
  """
  run = _run(config, model, mesh, load)
  return [_encoder(run), _rollout(run), *_scorers(run), _train_step(run)]


def resident(
  config: ml_collections.ConfigDict, model: model_config.Config, mesh: jax.sharding.Mesh, load: Load
) -> int:
  """Bytes on each device that a run holds between its programs: parameters, optimizer, reference.

  Raises InputError as `of_config` does.
  """
  run = _run(config, model, mesh, load)
  return bytes_per_device((run.state, run.anchor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """What `rl_loop` holds before its first step, in shapes.

  anchor: of the reference, what it does not share with the state. prompt: as it is read; encoded: with features of the
  policy's tower.
  """

  net: network.Network
  load: Load
  optimizer: optax.GradientTransformation
  state: state_lib.TrainState
  anchor: PyTree
  prompt: records.Prompt
  encoded: records.Prompt
  replies: records.Rollout

  @property
  def shared(self) -> records.Prompt:
    """What reference and update read: features, if theirs are those of the policy, or else patches."""
    return self.encoded if self.net.tower_frozen else self.prompt

  @property
  def tower(self) -> PyTree:
    """The tower's parameters, which no program reads that is given features."""
    return state_lib.split(self.state.params, ("vision",))[1]

  @property
  def scored(self) -> jax.ShapeDtypeStruct:
    """A number for each token of the replies."""
    return self.replies.log_probs


def _run(
  config: ml_collections.ConfigDict, model: model_config.Config, mesh: jax.sharding.Mesh, load: Load
) -> _Run:
  network.check_context(config, model)
  mesh_lib.check_batch(load.prompts, mesh, "config.rl.prompts", parts=load.microbatches)
  allowed = jnp.ones(model.text.vocab_size, bool)
  net = network.Network(
    config=config, mesh=mesh, model=model, allowed=allowed, stop_tokens=STOP_TOKENS
  )
  optimizer = state_lib.make_optimizer(config.rl, net.abstract_params, net.frozen)
  anchor = state_lib.split(net.abstract_params, net.frozen)[0] if config.rl.kl_weight else None
  prompt = _prompt(load, model)
  return _Run(
    net=net,
    load=load,
    optimizer=optimizer,
    state=state_lib.abstract(net.abstract_params, optimizer, mesh),
    anchor=anchor,
    prompt=mesh_lib.abstract_batch(prompt, mesh),
    encoded=mesh_lib.abstract_batch(_encoded(prompt, model), mesh),
    replies=mesh_lib.abstract_batch(_replies(load), mesh),
  )


def _encoder(run: _Run) -> Program:
  text, _ = state_lib.split(run.state.params, ("vision",))
  return Program(
    name="encoder",
    function=encoder.features,
    arguments=(run.net.graph, run.state.params, run.prompt.vision),
    tower=True,
    held=(text, run.state.optimizer_state, run.anchor),
  )


def _rollout(run: _Run) -> Program:
  whole = mesh_lib.replicated(run.net.mesh)
  allowed = jax.ShapeDtypeStruct(run.net.allowed.shape, bool, sharding=whole)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
  return Program(
    name="rollout",
    function=sampler.sample_at_once,
    arguments=(run.net.graph, run.state.params, run.encoded, allowed, key),
    keywords={"decoding": run.net.decoding(group=run.load.group, max_new_tokens=run.load.time)},
    turns=run.load.time,
    held=(run.tower, run.state.optimizer_state, run.anchor),
  )


def _scorers(run: _Run) -> list[Program]:
  """Those of reference and policy, where the recipe wants them."""
  rl, frozen = run.net.config.rl, run.net.tower_frozen
  score = steps.make_scorer(run.net.graph, run.net.allowed, temperature=rl.temperature)
  trained = state_lib.split(run.state.params, run.net.frozen)[0]
  of_reference = Program(
    name="reference log-probs",
    function=score,
    arguments=(run.state.params, run.shared, run.replies),
    tower=not frozen,
    held=(run.state.optimizer_state, trained, run.tower if frozen else None),
  )
  of_policy = Program(
    name="policy log-probs",
    function=score,
    arguments=(run.state.params, run.encoded, run.replies),
    held=(run.tower, run.state.optimizer_state, run.anchor),
  )
  return [of_reference] * bool(rl.kl_weight) + [of_policy] * (rl.epochs > 1)


def _train_step(run: _Run) -> Program:
  net, rl = run.net, run.net.config.rl
  signal = jax.ShapeDtypeStruct((run.load.prompts,), bool)
  old = run.scored if rl.epochs > 1 else None
  of_reference = run.scored if rl.kl_weight else None
  return Program(
    name="train step",
    function=steps.make_rl_step(net.graph, run.optimizer, net.allowed, rl, frozen=net.frozen),
    arguments=(
      run.state,
      run.shared,
      run.replies,
      run.scored,
      mesh_lib.abstract_batch(signal, net.mesh),
      old,
      of_reference,
    ),
    runs=rl.epochs,
    tower=not net.tower_frozen,
    held=run.anchor,
  )


def bytes_per_device(tree: PyTree) -> int:
  """What the shards of abstract arrays take on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if isinstance(x, jax.ShapeDtypeStruct)
  )


def _prompt(load: Load, model: model_config.Config) -> records.Prompt:
  tokens = jax.ShapeDtypeStruct((load.prompts, load.prefix), jnp.int32)
  grid = (load.prompts, load.frames, load.patches)
  return records.Prompt(
    tokens=tokens,
    kind=tokens,
    positions=jax.ShapeDtypeStruct((3, *tokens.shape), jnp.int32),
    next_position=jax.ShapeDtypeStruct((load.prompts,), jnp.int32),
    media_index=tokens,
    vision=records.Vision(
      patches=jax.ShapeDtypeStruct((*grid, model.vision.patch_dim), jnp.float32),
      rows=jax.ShapeDtypeStruct((*grid, 2), jnp.int32),
      window=jax.ShapeDtypeStruct(grid, jnp.int32),
    ),
  )


def _encoded(prompt: records.Prompt, model: model_config.Config) -> records.Prompt:
  """The same prompt with features."""
  prompts, frames, patches = prompt.vision.window.shape
  shape = (prompts, frames * patches // model.vision.merge_unit, model.vision.out_hidden_size)
  media = jax.ShapeDtypeStruct(shape, model.dtype)
  return dataclasses.replace(prompt, vision=None, media=media)


def _replies(load: Load) -> records.Rollout:
  shape = (load.prompts, load.group, load.time)
  number = jax.ShapeDtypeStruct(shape, jnp.int32)
  log_probs = jax.ShapeDtypeStruct(shape, jnp.float32)
  return records.Rollout(tokens=number, log_probs=log_probs, kind=number, turn=number)


def _check_bucket(size: int, what: str, buckets: Sequence[int], field: str) -> None:
  if size > max(buckets):
    raise errors.InputError(
      f"config.model.{field}={tuple(buckets)}: a clip of this config has {size} {what}; add a bucket"
    )
