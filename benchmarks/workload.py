"""The workload of several benchmarks: a random model, prompts of one video each, and replies.

The same can be had with a copy of the prompt for each reply. `ISSUE` is the size that goals are
stated for; tests use smaller ones.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree
import ml_collections
import numpy as np
import tokenizers

from vr_jax import records
from vr_jax.models import interface, registry
from vr_jax.models.common import export, prompts
from vr_jax.models.common import flops as flops_lib
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen3_vl import config as qwen3_config
from vr_jax.models.tinyllava import config as tinyllava_config

SECONDS = 0.25  # between two temporal patches
SYSTEM = "You are a helpful assistant."


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadSizes:
  """The sizes of a model and its batch.

  family: model_type of the model, one of `CONFIGS`.
  frames: temporal patches of a prompt; images of it, if one frame of the tower has all of a video.
  side: patches along each side of them.
  text: words around the video.
  """

  layers: int
  embed: int
  heads: int
  kv_heads: int
  mlp: int
  vocabulary: int
  vision_layers: int
  vision_embed: int
  vision_heads: int
  vision_mlp: int
  frames: int
  side: int
  text: int
  prompts: int
  group: int
  time: int
  family: str = "qwen2_5_vl"

  @property
  def blocks(self) -> int:
    """Runs of video tokens in a prompt that have a special token before and behind them."""
    counts = {qwen3_config.MODEL_TYPE: self.frames, tinyllava_config.MODEL_TYPE: 0}
    return counts.get(self.family, min(self.frames, 1))

  @property
  def video_tokens(self) -> int:
    """Video tokens of one prompt, without the two special tokens around each block of them."""
    return self.frames * self.side**2 // 4

  @property
  def prefix(self) -> int:
    """Tokens of one prompt."""
    return self.video_tokens + 2 * self.blocks + self.text


ISSUE = WorkloadSizes(
  layers=4,
  embed=256,
  heads=4,
  kv_heads=2,
  mlp=704,
  vocabulary=2048,
  vision_layers=4,
  vision_embed=160,
  vision_heads=4,
  vision_mlp=432,
  frames=16,
  side=16,
  text=30,
  prompts=1,
  group=8,
  time=128,
)


@functools.cache
def byte_tokenizer(model_type: str) -> tokenizers.Tokenizer:
  """A tokenizer of bytes and a family's special tokens."""
  return registry.family(model_type).train_tokenizer([], 512)


def model_config(sizes: WorkloadSizes) -> Any:
  """The model of these sizes, float32."""
  return CONFIGS[sizes.family](sizes)


def _qwen2_5_config(sizes: WorkloadSizes) -> config_lib.Qwen2_5_VLConfig:
  """As in the releases, every fourth layer of the vision tower has full attention."""
  eighth = sizes.embed // sizes.heads // 8
  return config_lib.Qwen2_5_VLConfig(
    text=config_lib.TextConfig(
      **_text_sizes(sizes),
      mrope_section=(4 * eighth - 2 * (3 * eighth // 2), 3 * eighth // 2, 3 * eighth // 2),
    ),
    vision=config_lib.VisionConfig(
      depth=sizes.vision_layers,
      hidden_size=sizes.vision_embed,
      intermediate_size=sizes.vision_mlp,
      num_heads=sizes.vision_heads,
      out_hidden_size=sizes.embed,
      fullatt_block_indexes=tuple(range(3, sizes.vision_layers, 4)),
      rope_after_video="sides",  # as in transformers
    ),
    tie_word_embeddings=True,
    **_token_ids(sizes),
  )


def _qwen3_config(sizes: WorkloadSizes) -> qwen3_config.Qwen3VLConfig:
  """The first three layers of the vision tower give features to the text layers."""
  head_dim = sizes.embed // sizes.heads
  minor = head_dim // 2 * 5 // 16
  return qwen3_config.Qwen3VLConfig(
    text=qwen3_config.Qwen3TextConfig(
      **_text_sizes(sizes),
      head_dim=head_dim,
      mrope_section=(head_dim // 2 - 2 * minor, minor, minor),
    ),
    vision=qwen3_config.Qwen3VisionConfig(
      depth=sizes.vision_layers,
      hidden_size=sizes.vision_embed,
      intermediate_size=sizes.vision_mlp,
      num_heads=sizes.vision_heads,
      out_hidden_size=sizes.embed,
      deepstack_visual_indexes=tuple(range(min(3, sizes.layers, sizes.vision_layers))),
    ),
    tie_word_embeddings=True,
    **_token_ids(sizes),
  )


def _tinyllava_config(sizes: WorkloadSizes) -> tinyllava_config.TinyLlavaConfig:
  """A resampler of three layers, as released, whose queries are a prompt's video tokens."""
  vision = tinyllava_config.SiglipConfig(
    num_hidden_layers=sizes.vision_layers,
    hidden_size=sizes.vision_embed,
    intermediate_size=sizes.vision_mlp,
    num_attention_heads=sizes.vision_heads,
    patch_size=14,
    image_size=14 * sizes.side,
    feature_layer=-1,
  )
  return tinyllava_config.TinyLlavaConfig(
    text=tinyllava_config.PhiConfig(**_text_sizes(sizes)),
    vision=vision,
    resampler=tinyllava_config.ResamplerConfig(queries=max(1, sizes.video_tokens), layers=3),
    max_position_embeddings=sizes.prefix + sizes.time,
    end_token_id=_token_ids(sizes)["eos_token_id"],
  )


CONFIGS = {
  config_lib.MODEL_TYPE: _qwen2_5_config,
  qwen3_config.MODEL_TYPE: _qwen3_config,
  tinyllava_config.MODEL_TYPE: _tinyllava_config,
}


def _text_sizes(sizes: WorkloadSizes) -> dict[str, int]:
  return {
    "vocab_size": sizes.vocabulary,
    "hidden_size": sizes.embed,
    "intermediate_size": sizes.mlp,
    "num_hidden_layers": sizes.layers,
    "num_attention_heads": sizes.heads,
    "num_key_value_heads": sizes.kv_heads,
  }


def _token_ids(sizes: WorkloadSizes) -> dict[str, int]:
  fields = registry.family(sizes.family).tokenizer_fields(byte_tokenizer(sizes.family))
  return {name: number for name, number in fields.items() if name != "vocab_size"}


def tower_shape(sizes: WorkloadSizes, config: interface.ModelConfig) -> tuple[int, int]:
  """Frames that the tower reads of a prompt's video, and patches of each."""
  shapes = config.vision_shapes
  images = sizes.frames * (shapes.images_per_frame or 1)
  patches = shapes.most_patches(images, sizes.side**2 * shapes.pixels_per_patch)
  return shapes.count_frames(images), patches


def forward_flops(sizes: WorkloadSizes) -> flops_lib.Forward:
  """FLOPs of one forward pass over one prompt and its group, in the group layout."""
  config = model_config(sizes)
  frames, patches = tower_shape(sizes, config)
  return registry.family_of(config).forward_flops(
    config,
    frames=frames,
    patches=patches,
    prefix=sizes.prefix,
    group=sizes.group,
    time=sizes.time,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """A random model and its prompts, each as one conversation and all as a batch.

  own: the model's processor.
  """

  sizes: WorkloadSizes
  config: Any
  own: Any
  graphdef: nnx.GraphDef
  params: PyTree
  encoded: tuple[prompts.EncodedPrompt, ...]
  prompt: records.Prompt

  @property
  def forbidden(self) -> tuple[int, ...]:
    """Tokens that no reply may contain: media, ends of turns, and other sides' pad and end.

    A conversation goes on differently behind a reply that ended its turn itself.
    """
    own = (*self.own.media_tokens, self.own.end_token)
    return (*own, self.sizes.vocabulary - 2, self.sizes.vocabulary - 1)

  @property
  def allowed_tokens(self) -> Bool[Array, "vocab"]:
    """Mask of the tokens that a reply may contain."""
    return jnp.ones(self.config.text.vocab_size, bool).at[jnp.array(self.forbidden)].set(False)

  def save(self, directory: pathlib.Path) -> None:
    """Writes the model for transformers, in the dtype that our weights are cast to in each pass."""
    export.save_pretrained(
      self.params,
      directory,
      config=self.config,
      family=registry.family_of(self.config),
      dtype=self.config.dtype,
    )


def platform_dtype() -> str:
  """The dtype that all sides compute in: float32 on a CPU, bfloat16 on an accelerator."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def make(sizes: WorkloadSizes, *, remat: str = "none") -> Work:
  """Random weights, pixels and words, from one seed. remat: see `rematerialisation.py`."""
  config = dataclasses.replace(model_config(sizes), remat=remat, dtype=platform_dtype())
  graphdef, params = nnx.split(registry.family_of(config).make_model(config, rngs=nnx.Rngs(0)))
  pixels = (sizes.side * config.vision.patch_size) ** 2
  own = make_processor(config, pixels, pixels)
  rng = np.random.default_rng(0)
  encoded = tuple(_conversation(sizes, own, rng, f"prompt {i}") for i in range(sizes.prompts))
  frames, patches = tower_shape(sizes, config)
  batch = own.collate(
    encoded,
    prefix_buckets=(sizes.prefix,),
    frame_buckets=(frames,),
    patch_buckets=(patches,),
  )
  return Work(
    sizes=sizes,
    config=config,
    own=own,
    graphdef=graphdef,
    params=params,
    encoded=encoded,
    prompt=jax.tree.map(jnp.asarray, batch),
  )


def make_processor(
  config: interface.ModelConfig, min_pixels: int, max_pixels: int, *, system: str = SYSTEM
) -> Any:
  """The processor of a model, with limits of a frame."""
  section = {
    "min_pixels": min_pixels,
    "max_pixels": max_pixels,
    "min_video_pixels": 0,
    "max_video_pixels": 0,
    "system": system,
    "resize_backend": "torchvision",
  }
  family = registry.family_of(config)
  words = byte_tokenizer(config.model_type)
  return family.make_processor(config, words, ml_collections.ConfigDict(section))


def _conversation(
  sizes: WorkloadSizes, own: Any, rng: np.random.Generator, name: str
) -> prompts.EncodedPrompt:
  """Words, a video, words; without frames the words alone."""
  config, before = own.config, sizes.text // 2
  words = rng.integers(1, 256, sizes.text)
  if not sizes.frames:
    return own.join(words.astype(np.int32), [], [], name=name)
  if sizes.blocks:
    video = [config.video_token_id] * (sizes.video_tokens // sizes.blocks)
    middle = [config.vision_start_token_id, *video, config.vision_end_token_id] * sizes.blocks
  else:
    middle = [config.image_token_id] * sizes.video_tokens
  tokens = np.array([*words[:before], *middle, *words[before:]], np.int32)
  frames, patches = tower_shape(sizes, config)
  grid = prompts.Grid(
    kind=records.Kind.VIDEO,
    frames=frames,
    height=patches // sizes.side,
    width=sizes.side,
    seconds=SECONDS,
  )
  shape = (frames, patches, config.vision.patch_dim)
  return own.join(tokens, [grid], [rng.integers(0, 256, shape, np.uint8)], name=name)


def replies(work: Work) -> records.Rollout:
  """Replies of random words and full length; their log-probs are zeros."""
  sizes, rng = work.sizes, np.random.default_rng(1)
  shape = (sizes.prompts, sizes.group, sizes.time)
  tokens = jnp.asarray(rng.integers(0, 256, shape).astype(np.int32))
  return records.Rollout(
    tokens=tokens,
    log_probs=jnp.zeros(shape),
    kind=jnp.full(shape, int(records.Kind.MODEL), jnp.int32),
    turn=jnp.zeros_like(tokens),
  )


def replicated_prompt(prompt: records.Prompt, group: int) -> records.Prompt:
  """Each prompt `group` times, one after the other, for a computation without groups."""
  return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), prompt)


def replicated_rows(tree: PyTree) -> PyTree:
  """[prompts, group, …] -> [prompts x group, 1, …]: every reply a group of its own."""
  return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), tree)


def of_family(
  sizes: WorkloadSizes, flags: Sequence[str], sides: Sequence[str]
) -> tuple[WorkloadSizes, tuple[str, ...]]:
  """Sizes and sides of a benchmark with the flag --family=<model_type>, if it is given.

  The PyTorch sides know Qwen2.5-VL alone.
  """
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--family", choices=tuple(CONFIGS), default=sizes.family)
  family = parser.parse_args(list(flags)).family
  kept = tuple(side for side in sides if side != "torch" or family == config_lib.MODEL_TYPE)
  return dataclasses.replace(sizes, family=family), kept
