"""The model of a run without its weights: graph, shapes and shardings of parameters, and decoding.

All of it follows from the config, the model's sizes and the mesh. This machine needn't have the
devices of the mesh.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Bool, PyTree
import ml_collections

from vr_jax import errors, optional_sections
from vr_jax.models import family as family_lib
from vr_jax.models import interface, registry
from vr_jax.models.common import lora, weight_mapping
from vr_jax.parallel import data_parts, decoding_layout, disjoint_meshes
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import repetition, sampler

STAGES = ("sft", "rl", "eval")  # those that have a batch size


def mesh_shape(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
  *,
  stages: Sequence[str] = STAGES,
) -> tuple[int, ...]:
  """The mesh (data, fsdp, sequence, tensor) of config.mesh, which may leave two sizes open.

  Where fsdp and sequence are both -1, sequence splits prompts and groups over as few devices as it
  takes to divide the batches of all stages, and fsdp takes the rest. Other shapes stay.

  devices: None: those of this run, or of one half of them with rl.disjoint_meshes.
  stages: those whose batches have to divide.

  Raises InputError as `make_mesh` of parallel/mesh.py does where both are -1.
  """
  data, fsdp, sequence, tensor = shape = tuple(config.mesh)
  if (fsdp, sequence) != (-1, -1):
    return shape
  if -1 in (data, tensor):
    raise errors.InputError(f"config.mesh={shape}: at most one -1, or both fsdp and sequence")
  mesh = _mesh(config, (data, -1, 1, tensor), devices)
  split = None if _divides(config, mesh, stages) else _with_split_groups(config, mesh, stages)
  return split or mesh.devices.shape


def make_mesh(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> jax.sharding.Mesh:
  """The mesh of config.mesh. devices: as in `mesh_shape`. Raises as parallel/mesh.py does."""
  return _mesh(config, mesh_shape(config, devices), devices)


def _mesh(
  config: ml_collections.ConfigDict,
  shape: tuple[int, ...],
  devices: Sequence[jax.Device] | None,  # pyright: ignore[reportInvalidTypeForm]
) -> jax.sharding.Mesh:
  if devices is None:
    return disjoint_meshes.training_mesh(shape, disjoint=config.rl.disjoint_meshes)
  return mesh_lib.make_mesh(shape, devices)


def clamp_microbatches(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> ml_collections.ConfigDict:
  """Copies the config; micro-batches become at most as many as each device has prompts."""
  copy = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  for section, rows in ((copy.sft, copy.sft.batch_size), (copy.rl, copy.rl.batch_size)):
    section.microbatches = max(1, min(section.microbatches, rows // ways))
  copy.rl.log_prob_microbatches = max(
    1, min(copy.rl.log_prob_microbatches, copy.rl.batch_size // ways)
  )
  return copy


def check_batch(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, stage: str) -> None:
  """Raises InputError if the batch of sft, rl or eval can't be split over microbatches and mesh."""
  try:
    _check_batch(config, mesh, stage)
  except errors.InputError as error:
    shape = _with_split_groups(config, mesh, STAGES)
    if shape is None:
      raise
    raise errors.InputError(
      f'{error}; --config.mesh="({",".join(map(str, shape))})" works: there sequence={shape[2]} '
      "splits each prompt and its replies"
    ) from error


def _check_batch(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, stage: str) -> None:
  section = clamp_microbatches(config, mesh)[stage]
  for field in ("microbatches", "log_prob_microbatches"):
    mesh_lib.check_batch(
      section.batch_size, mesh, f"config.{stage}.batch_size", parts=section.get(field, 1)
    )


def _with_split_groups(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, stages: Sequence[str]
) -> tuple[int, ...] | None:
  """The mesh of the same devices whose batches divide, with as little on sequence as that needs."""
  if config.model.decode_attention == "pallas":
    return None  # it takes whole prompts
  data, fsdp, sequence, tensor = mesh.devices.shape
  own = mesh.size // len({device.process_index for device in mesh.devices.flat})
  for part in range(2, data * fsdp + 1):
    shared = sequence * part * tensor  # devices with the same rows
    # Otherwise some processes would find that their rows are one share, and others not.
    if (data * fsdp) % part or (shared % own and own % shared):
      continue
    ways = data * fsdp // part
    shape = math.gcd(data, ways), ways // math.gcd(data, ways), sequence * part, tensor
    try:
      changed = mesh_lib.make_mesh(shape, list(mesh.devices.flat))
      mesh_lib.process_shard(changed)
      for length in config.model.prefix_buckets:
        mesh_lib.check_prefix(length, changed)
    except errors.InputError:
      continue
    if _divides(config, changed, stages):
      return shape
  return None


def _divides(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, stages: Sequence[str]
) -> bool:
  """Whether the batches of these stages can be split over microbatches and mesh."""
  with contextlib.suppress(errors.InputError):
    for stage in stages:
      if config[stage].get("steps", 1):
        _check_batch(config, mesh, stage)
    return True
  return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSetup:
  """A model on a mesh, as a recipe uses it.

  allowed_tokens: [vocab], whether a reply may contain the token.
  stop_tokens: ids of the tokens that end a reply.
  """

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  model: interface.ModelConfig
  allowed_tokens: Bool[Array, "vocab"]
  stop_tokens: tuple[int, ...]

  @property
  def architecture(self) -> dict[str, Any]:
    """The sizes that a checkpoint's parameters must match, by name."""
    adapters = self.adapters.fields if self.adapters else {}
    return {**self.model.architecture, **{f"lora.{k}": v for k, v in adapters.items()}}

  @property
  def family(self) -> family_lib.ModelFamily:
    """The model's family."""
    return registry.family_of(self.model)

  @functools.cached_property
  def adapters(self) -> lora.Adapters | None:
    """The adapters of config.model.lora; None where all weights are trained."""
    return self.family.adapters(self.config.model.lora)

  @property
  def frozen(self) -> tuple[str, ...]:
    """Names of parameters, or modules, that are not trained; with adapters, all others."""
    if self.adapters:
      return tuple(
        name for name in weight_mapping.flat(self.abstract_params) if not lora.is_adapter(name)
      )
    if not self.config.model.freeze_vision:
      return ()
    groups = self.family.parameter_groups
    return groups["vision"] if self.config.model.train_connector else self.family.tower

  @property
  def tower_frozen(self) -> bool:
    """Whether no part of tower and connector is trained, so that their features never change."""
    section = self.config.model
    if self.adapters:
      return not self.adapters.vision
    return section.freeze_vision and not section.train_connector

  @property
  def samples_int8(self) -> bool:
    """Whether RL samples with matrices in 8-bit integers. Evaluations never do."""
    return self.config.rl.sampler_weights == "int8"

  @functools.cached_property
  def graphdef(self) -> nnx.GraphDef:
    """The model's static half, for nnx.merge."""
    return nnx.split(nnx.eval_shape(self.random_model))[0]

  @functools.cached_property
  def update_graphdef(self) -> nnx.GraphDef:
    """The static half of the model that updates are computed with; see `data_parts`."""
    if not data_parts.pay(self.mesh.devices):
      return self.graphdef
    layout = data_parts.layout_of_part(self.layout)
    return nnx.split(nnx.eval_shape(lambda: self._make_model(layout)))[0]

  @functools.cached_property
  def layout(self) -> mesh_lib.MeshLayout:
    """How arrays of training lie on the mesh, and those of decoding."""
    plain = nnx.eval_shape(lambda: self._make_model(mesh_lib.MeshLayout(self.mesh)))
    rl = self.config.rl
    # Replies end one by one: of a step's, about half go on, averaged over its tokens.
    slots = rl.decode_slots or rl.batch_size * rl.num_generations // 2
    return decoding_layout.make(
      self.mesh,
      rl.decode_layout,
      nnx.split(plain)[1],
      slots=slots,
      copies=rl.decode_copies,
    )

  @functools.cached_property
  def abstract_params(self) -> PyTree:
    """Shapes, dtypes and shardings of the parameters, without the parameters."""
    params = nnx.eval_shape(self.random_params)
    shardings = mesh_lib.param_shardings(params, self.mesh)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )

  @functools.cached_property
  def abstract_decoding_params(self) -> PyTree:
    """Like `abstract_params`, as sampling for RL has them."""
    return self.decoding_shapes(int8_weights=self.samples_int8)

  def decoding_shapes(self, *, int8_weights: bool) -> PyTree:
    """Like `abstract_params`, as decoding has them; what stays as it is is the same variable."""
    changing = functools.partial(
      sampler.changed_for_decoding, self.graphdef, int8_weights=int8_weights
    )
    changed = jax.eval_shape(changing, self.abstract_params)

    def as_decoded(kept: nnx.Variable, new: nnx.Variable) -> nnx.Variable:
      x = new.get_value()
      if x is None:
        return kept
      axes = kept.get_metadata()["axes"]
      return kept.replace(
        jax.tree.map(lambda x: x.update(sharding=self.layout.decoding.sharding(axes, x.shape)), x)
      )

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return jax.tree.map(as_decoded, self.abstract_params, changed, is_leaf=is_variable)

  @functools.cached_property
  def draw_params(self) -> Callable[[], PyTree]:
    """A jitted `random_params`; the parameters lie on the mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_params)
    return jax.jit(self.random_params, out_shardings=shardings)

  def random_model(self) -> nnx.Module:
    """Makes the model with random weights, seeded by config.seed."""
    return self._make_model(self.layout)

  def _make_model(self, layout: mesh_lib.MeshLayout) -> nnx.Module:
    rngs = nnx.Rngs(self.config.seed)
    model = self.family.make_model(self.model, rngs=rngs, layout=layout)
    return lora.add(model, self.adapters, rngs=rngs) if self.adapters else model

  def random_params(self) -> PyTree:
    """The parameters of `random_model`; with adapters, the base in lora.base_dtype."""
    params = nnx.split(self.random_model())[1]
    if not self.adapters:
      return params
    dtype, flat = self.config.model.lora.base_dtype, weight_mapping.flat(params)
    base = {n: v.replace(v.get_value().astype(dtype)) for n, v in flat.items()}
    return weight_mapping.unflat({n: flat[n] if lora.is_adapter(n) else base[n] for n in flat})

  def decoding(self, **changes: Any) -> sampler.Decoding:
    """The recipe's sampling options; `changes` replace some of them."""
    rl = self.config.rl
    fields = {
      "group": rl.num_generations,
      "max_new_tokens": rl.max_new_tokens,
      "temperature": rl.temperature,
      "top_p": rl.top_p,
      "top_k": rl.top_k,
      "min_p": rl.min_p,
      "kept_log_probs": rl.sampler_log_probs == "kept",
      "repetition_stop": repetition.RepetitionStop(rl.repetition_window, rl.repetition_count),
      "stop_tokens": self.stop_tokens,
      "slot_fractions": tuple(rl.decode_slot_fractions),
      "slots": rl.decode_slots,
    }
    return sampler.Decoding(**{**fields, **changes})


def family_of(config: ml_collections.ConfigDict) -> family_lib.ModelFamily:
  """The family of a config's model. Raises InputError if no family knows the model."""
  section = config.model
  if section.pretrained:
    return registry.family_in(section.pretrained)
  try:
    return registry.family_of_fields(section.architecture.to_dict())
  except errors.InputError as error:
    raise errors.InputError(f"config.model.architecture.{error}") from error


def model_of(config: ml_collections.ConfigDict) -> interface.ModelConfig:
  """The sizes of a config's model.

  They come from config.json of the pretrained model, from the release that it names, or, without a
  pretrained model, from config.model.architecture. Raises InputError if the pretrained model is
  neither a directory with a config.json nor a known release.
  """
  section = config.model
  if section.pretrained:
    read = registry.preset_config(section.pretrained)
  else:
    # A trained tokenizer gives special tokens other ids, which changes no program.
    family = family_of(config)
    read = family.make_config({**family.token_fields, **section.architecture.to_dict()})
  return registry.family_of(read).with_options(read, section)


def check_context(config: ml_collections.ConfigDict, model: interface.ModelConfig) -> None:
  """Raises InputError if a reply to the longest prompt could exceed the model's context."""
  prompt, context = max(config.model.prefix_buckets), model.max_position_embeddings
  if prompt >= context:
    raise errors.InputError(
      f"--config.model.prefix_buckets={tuple(config.model.prefix_buckets)}: prompts of {prompt} "
      f"tokens alone fill the model's context of {context}; leave that size out"
    )
  fields = [("rl.max_new_tokens", config.rl.max_new_tokens)]
  if config.sft.steps:
    fields.append(("sft.max_reply_tokens", config.sft.max_reply_tokens))
  if "traces" in config and config.traces.writer == "sampler":
    fields.append(("traces.max_tokens", config.traces.max_tokens))
  if optional_sections.takes_turns(config):
    fields.append(("turns.episode_buckets", max(config.turns.episode_buckets)))
  for field, reply in fields:
    if prompt + reply > context:
      raise errors.InputError(
        f"--config.{field}={reply}: with prompts of up to {prompt} tokens "
        f"(config.model.prefix_buckets) this passes the model's context of {context}; "
        "only rope_scaling (linear or yarn) in its config.json raises that"
      )
