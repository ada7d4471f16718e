"""The programs of one RL step with abstract arguments: all that a compiler needs, without weights.

They are the functions that a step of `rl_loop` calls: the vision encoder, the sampler (with several
turns the programs of `rollout/multi_turn_sampler.py`), the log-probs and the update of
`train/train_step.py`, and a critic's values and update.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections
import numpy as np

from launch import abstract_state
from vr_jax import errors, records
from vr_jax.models import interface
from vr_jax.models.common import slots as slots_lib
from vr_jax.models.common import weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder, sampler, turn_decode
from vr_jax.rollout import slot_layout as slot_layout_lib
from vr_jax.train import critic as critic_lib
from vr_jax.train import step_shapes, train_step
from vr_jax.train import train_state as train_state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A jitted function and its arguments.

  runs_per_step: calls in one RL step.
  turns: iterations of a loop whose length depends on the replies; None without such a loop.
  resident_arrays: arrays that are in memory while it runs, but that it does not read.
  vision: input of the vision tower besides that in prompts and episode inputs.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[PyTree, ...]
  keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
  runs_per_step: int = 1
  turns: int | None = None
  resident_arrays: PyTree = None
  vision: PyTree = None

  @property
  def frames(self) -> list[tuple[int, int]]:
    """What it sends through the vision tower for each row of its batch.

    (temporal patches, patches of each), once for each size.
    """
    leaves = jax.tree.leaves(self.arguments, is_leaf=_has_vision)
    inputs = [self.vision, *(x.vision for x in leaves if _has_vision(x))]
    shapes = [jax.tree.leaves(x)[0].shape for x in inputs if x is not None]
    return [(shape[1], shape[2]) for shape in shapes]

  @property
  def tower(self) -> bool:
    """Whether it runs the vision tower."""
    return bool(self.frames)


def programs_of_step(
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  mesh: jax.sharding.Mesh,
  shapes: step_shapes.StepShapes,
) -> list[Program]:
  """The programs of a step, in the order in which they run.

  The devices of `mesh` may be those of a topology.
  Raises InputError where the mesh does not divide the model or the batch.
  """
  run = abstract_state.make_abstract_state(config, model, mesh, shapes)
  sampling = _episodes(run, shapes.later) if shapes.later else [_rollout(run)]
  learning = [*_scorers(run), *_valuer(run), _train_step(run), *_critic_step(run)]
  return [_encoder(run), *sampling, *learning]


def resident_bytes(run: abstract_state.AbstractTrainState) -> int:
  """Bytes a device that stay in memory for a whole run.

  These are parameters, optimizer state, reference and critic.
  """
  return bytes_per_device((run.state, run.reference_params, run.critic))


def _encoder(run: abstract_state.AbstractTrainState) -> Program:
  return Program(
    name="encoder",
    function=encoder.features,
    arguments=(run.net.graphdef, run.state.params, run.prompt.vision),
    vision=run.prompt.vision,
    resident_arrays=(run.text, run.others),
  )


def _rollout(run: abstract_state.AbstractTrainState) -> Program:
  if run.net.config.rl.decode_slots:
    raise errors.InputError(
      "config.rl.decode_slots: a plan has a slot for each reply; set 0, and count caches of fewer "
      "slots by hand"
    )
  return Program(
    name="rollout",
    function=sampler.sample_without_compaction,
    arguments=(run.net.graphdef, run.state.params, run.encoded, *run.drawing),
    keywords={
      "decoding": run.net.decoding(
        group=run.step_shapes.group,
        max_new_tokens=run.step_shapes.time,
        int8_weights=run.net.samples_int8,
      )
    },
    turns=run.step_shapes.time,
    resident_arrays=(run.tower, run.others),
  )


def _episodes(
  run: abstract_state.AbstractTrainState, later: step_shapes.LaterTurns
) -> list[Program]:
  """The programs that play episodes: prefill, a chunk of decoding, and appending observations."""
  net, shapes, section = run.net, run.step_shapes, run.net.config.turns
  places = slot_layout_lib.SlotLayout.for_groups(net.layout.decoding, shapes.prompts, shapes.group)
  room = {"group": shapes.group, "frames": later.frames_in_all, "patches": later.patches}
  room["window"] = net.config.rl.repetition_window
  start = Program(
    name="prefill",
    function=turn_decode.start,
    arguments=(net.graphdef, run.state.params, run.encoded),
    keywords={**room, "length": min(section.episode_buckets)},
    resident_arrays=(run.tower, run.others),
  )
  prefix, state = _prefilled(run, {**room, "length": shapes.time})
  params, text = net.abstract_decoding_params, _kept_for_training(run)
  slots = places.devices * places.slots
  whole = functools.partial(
    jax.ShapeDtypeStruct.update, sharding=mesh_lib.replicated(net.layout.decoding.mesh)
  )
  decode = Program(
    name="decode",
    function=turn_decode.decode,
    arguments=(
      *(net.graphdef, params, prefix, state, _slots(run, later, slots)),
      *map(whole, (*run.drawing, jax.ShapeDtypeStruct((), jnp.int32))),
    ),
    keywords={
      "decoding": net.decoding(group=shapes.group, int8_weights=net.samples_int8),
      "chunk": section.decode_chunk,
    },
    runs_per_step=(later.turns + 1) * -(-net.config.rl.max_new_tokens // section.decode_chunk),
    turns=section.decode_chunk,
    resident_arrays=(run.tower, text, run.others),
  )
  size = 1
  while size < min(places.slots, section.append_batch_size):
    size *= 2
  rows = _slots(run, later, places.devices * size).rows
  observation = step_shapes.prompt(
    len(rows.cache_slot), later.tokens, later.frames, later.patches, net.model
  )
  append = Program(
    name="append observations",
    function=turn_decode.append_observations,
    arguments=(
      *(net.graphdef, params, prefix, state),
      *(mesh_lib.abstract_batch(observation, net.mesh), rows, rows.cache_slot),
    ),
    keywords={"stride": net.model.vision_shapes.media_tokens(later.patches)},
    runs_per_step=later.turns * -(-places.slots // section.append_batch_size),
    resident_arrays=(
      *(text, run.others),
      train_state_lib.split(params, run.net.family.parameter_groups["head"])[1],  # not read
    ),
  )
  return [start, decode, *[append] * (later.turns > 0)]


def _prefilled(
  run: abstract_state.AbstractTrainState, room: dict[str, int]
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """The results of `turn_decode.start`, with their shardings."""
  begin = functools.partial(turn_decode.start, run.net.graphdef, **room)
  prefix, state = jax.eval_shape(begin, run.state.params, run.encoded)
  place = functools.partial(abstract_state.with_sharding, run.net.layout.decoding)

  def place_media(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return place(x, ("slots", *[None] * (x.ndim - 1)))

  return (
    prefix.placed(place),
    turn_decode.EpisodeDecodeState(
      hidden=place(state.hidden, ("slots", None)),
      cache=state.cache.placed(place),
      media=jax.tree.map(place_media, state.media),
      last_tokens=jax.tree.map(place_media, state.last_tokens),
    ),
  )


def _kept_for_training(run: abstract_state.AbstractTrainState) -> list[jax.ShapeDtypeStruct]:
  """Parameters that stay in memory while decoding reads copies of them."""
  net = run.net
  kept, decoded = map(weight_mapping.flat, (net.abstract_params, net.abstract_decoding_params))
  return jax.tree.leaves([kept[name] for name in kept if decoded[name] is not kept[name]])


def _slots(
  run: abstract_state.AbstractTrainState, later: step_shapes.LaterTurns, count: int
) -> turn_decode.ChunkSlots:
  number = abstract_state.with_sharding(
    run.net.layout.decoding, jax.ShapeDtypeStruct((count,), jnp.int32), ("slots",)
  )
  rows = slots_lib.CacheRows(
    cache_slot=number,
    prompt_slot=number,
    written=number,
    position=number,
    visible_from=number if later.forgets else None,
  )
  return turn_decode.ChunkSlots(rows=rows, row=number, group_index=number, step=number, left=number)


def _scorers(run: abstract_state.AbstractTrainState) -> list[Program]:
  """Log-probs under reference and policy, where the recipe needs them."""
  rl, frozen = run.net.config.rl, run.net.tower_frozen
  score = train_step.make_logprob_fn(
    run.net.graphdef,
    run.net.allowed_tokens,
    temperature=rl.temperature,
    microbatches=rl.log_prob_microbatches,
  )
  trained = train_state_lib.split(run.state.params, run.net.frozen)[0]
  reference = Program(
    name="reference log-probs",
    function=score,
    arguments=(run.state.params, run.shared, run.replies),
    resident_arrays=(run.state.optimizer_state, trained, run.critic, run.tower if frozen else None),
  )
  policy = Program(
    name="policy log-probs",
    function=score,
    arguments=(run.state.params, run.encoded, run.replies),
    resident_arrays=(run.tower if frozen or not run.step_shapes.later else None, run.others),
  )
  return [reference] * (run.reference_params is not None) + [policy] * (rl.num_iterations > 1)


def _valuer(run: abstract_state.AbstractTrainState) -> list[Program]:
  """The critic's values, where there is a critic."""
  if run.critic is None:
    return []
  names = tuple(f"model.{name}" for name in run.net.family.tower)
  tower = train_state_lib.split(run.critic.params, names)[1]
  values = Program(
    name="values",
    function=critic_lib.make_value_fn(
      run.net.graphdef, microbatches=run.net.config.rl.log_prob_microbatches
    ),
    arguments=(run.critic.params, run.shared, run.replies),
    resident_arrays=(
      *(run.state, run.reference_params, run.critic.optimizer_state),
      tower if run.net.tower_frozen else None,
    ),
  )
  return [values]


def _critic_step(run: abstract_state.AbstractTrainState) -> list[Program]:
  """The critic's update, where there is a critic."""
  if run.critic is None or run.critic_optimizer is None:
    return []
  net, rl = run.net, run.net.config.rl
  step = critic_lib.make_critic_step(
    net.update_graphdef,
    run.critic_optimizer,
    clip=net.config.critic.value_clip,
    microbatches=rl.microbatches,
    frozen=critic_lib.frozen_names(net.frozen),
  )
  return [
    Program(
      name="critic step",
      function=step,
      arguments=(run.critic, run.shared, run.replies, run.scored, run.scored),
      runs_per_step=rl.num_iterations,
      resident_arrays=(run.state, run.reference_params, run.ahead),
    )
  ]


def _train_step(run: abstract_state.AbstractTrainState) -> Program:
  net, rl = run.net, run.net.config.rl
  group_mask = jax.ShapeDtypeStruct((run.step_shapes.prompts,), bool)
  old_log_probs = run.scored if rl.num_iterations > 1 else None
  reference_log_probs = run.scored if run.reference_params is not None else None
  return Program(
    name="train step",
    function=train_step.make_rl_step(
      net.update_graphdef, run.optimizer, net.allowed_tokens, rl, frozen=net.frozen
    ),
    arguments=(
      run.state,
      run.shared,
      run.replies,
      run.scored,
      mesh_lib.abstract_batch(group_mask, net.mesh),
      old_log_probs,
      reference_log_probs,
    ),
    runs_per_step=rl.num_iterations,
    resident_arrays=(run.reference_params, run.critic, run.ahead),
  )


def bytes_per_device(tree: PyTree) -> int:
  """Bytes of the shards of abstract arrays on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if isinstance(x, jax.ShapeDtypeStruct)
  )


def _has_vision(x: object) -> TypeGuard[records.Prompt | records.EpisodeInputs]:
  return isinstance(x, records.Prompt | records.EpisodeInputs)
