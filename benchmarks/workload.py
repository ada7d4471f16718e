"""The workload of several benchmarks: a random model, prompts of one video each, and replies.

The same can be had with a copy of the prompt for each reply. `ISSUE` is the size that goals are
stated for; tests use smaller ones.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree
import ml_collections
import numpy as np

from vr_jax import records
from vr_jax.models import interface, registry
from vr_jax.models.common import export, prompts
from vr_jax.models.common import flops as flops_lib
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import processor, tokenizer
from vr_jax.models.qwen3_vl import config as qwen3_config

BYTES = tokenizer.train_tokenizer([], 256 + len(tokenizer.SPECIAL_TOKENS))
# Between two temporal patches. After a long video, transformers gives a reply other positions in
# `forward` than in `generate`; ours are the latter. With this value the two are the same.
SECONDS = 0.25
SYSTEM = "You are a helpful assistant."


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadSizes:
  """The sizes of a model and its batch.

  family: model_type of the model.
  frames: temporal patches of a prompt.
  side: patches along each side of a temporal patch.
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
    """Runs of video tokens in a prompt."""
    return self.frames if self.family == qwen3_config.MODEL_TYPE else min(self.frames, 1)

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


def model_config(sizes: WorkloadSizes) -> config_lib.Qwen2_5_VLConfig | qwen3_config.Qwen3VLConfig:
  """The model of these sizes, float32.

  As in the releases, every fourth layer of Qwen2.5-VL's vision tower has full attention. Of
  Qwen3-VL's, the first three layers give features to the text layers.
  """
  if sizes.family == qwen3_config.MODEL_TYPE:
    return _qwen3_config(sizes)
  eighth = sizes.embed // sizes.heads // 8
  return config_lib.Qwen2_5_VLConfig(
    text=config_lib.TextConfig(
      vocab_size=sizes.vocabulary,
      hidden_size=sizes.embed,
      intermediate_size=sizes.mlp,
      num_hidden_layers=sizes.layers,
      num_attention_heads=sizes.heads,
      num_key_value_heads=sizes.kv_heads,
      mrope_section=(4 * eighth - 2 * (3 * eighth // 2), 3 * eighth // 2, 3 * eighth // 2),
    ),
    vision=config_lib.VisionConfig(
      depth=sizes.vision_layers,
      hidden_size=sizes.vision_embed,
      intermediate_size=sizes.vision_mlp,
      num_heads=sizes.vision_heads,
      out_hidden_size=sizes.embed,
      fullatt_block_indexes=tuple(range(3, sizes.vision_layers, 4)),
    ),
    image_token_id=_token_id("<|image_pad|>"),
    video_token_id=_token_id("<|video_pad|>"),
    vision_start_token_id=_token_id("<|vision_start|>"),
    vision_end_token_id=_token_id("<|vision_end|>"),
    tie_word_embeddings=True,
  )


def _qwen3_config(sizes: WorkloadSizes) -> qwen3_config.Qwen3VLConfig:
  head_dim = sizes.embed // sizes.heads
  minor = head_dim // 2 * 5 // 16
  return qwen3_config.Qwen3VLConfig(
    text=qwen3_config.Qwen3TextConfig(
      vocab_size=sizes.vocabulary,
      hidden_size=sizes.embed,
      intermediate_size=sizes.mlp,
      num_hidden_layers=sizes.layers,
      num_attention_heads=sizes.heads,
      num_key_value_heads=sizes.kv_heads,
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
    image_token_id=_token_id("<|image_pad|>"),
    video_token_id=_token_id("<|video_pad|>"),
    vision_start_token_id=_token_id("<|vision_start|>"),
    vision_end_token_id=_token_id("<|vision_end|>"),
    tie_word_embeddings=True,
  )


def _token_id(token: str) -> int:
  number = BYTES.token_to_id(token)
  if number is None:
    raise ValueError(f"workload: the tokenizer has no {token}")
  return number


def forward_flops(sizes: WorkloadSizes) -> flops_lib.Forward:
  """FLOPs of one forward pass over one prompt and its group, in the group layout."""
  config = model_config(sizes)
  return registry.family_of(config).forward_flops(
    config,
    frames=sizes.frames,
    patches=sizes.side**2,
    prefix=sizes.prefix,
    group=sizes.group,
    time=sizes.time,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """A random model and its prompts, each as one conversation and all as a batch."""

  sizes: WorkloadSizes
  config: Any
  graphdef: nnx.GraphDef
  params: PyTree
  encoded: tuple[prompts.EncodedPrompt, ...]
  prompt: records.Prompt

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """Placeholder tokens for pixels."""
    return tuple(_token_id(token) for token in processor.MEDIA_TOKENS)

  @property
  def forbidden(self) -> tuple[int, ...]:
    """Tokens that no reply may contain: media, ends of turns, and other sides' pad and end.

    A conversation goes on differently behind a reply that ended its turn itself.
    """
    own = (*self.media_tokens, _token_id("<|im_end|>"))
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
  own = make_processor(config, 4 * 28 * 28, 1024 * 28 * 28)
  rng = np.random.default_rng(0)
  encoded = tuple(_conversation(sizes, own, rng, f"prompt {i}") for i in range(sizes.prompts))
  batch = own.collate(
    encoded,
    prefix_buckets=(sizes.prefix,),
    frame_buckets=(sizes.frames,),
    patch_buckets=(sizes.side**2,),
  )
  return Work(
    sizes=sizes,
    config=config,
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
  return family.make_processor(config, BYTES, ml_collections.ConfigDict(section))


def _conversation(
  sizes: WorkloadSizes, own: Any, rng: np.random.Generator, name: str
) -> prompts.EncodedPrompt:
  """Words, a video, words; without frames the words alone."""
  config, before = own.config, sizes.text // 2
  words = rng.integers(1, 256, sizes.text)
  if not sizes.frames:
    return own.join(words.astype(np.int32), [], [], name=name)
  video = [config.video_token_id] * (sizes.video_tokens // sizes.blocks)
  middle = [config.vision_start_token_id, *video, config.vision_end_token_id] * sizes.blocks
  tokens = np.array([*words[:before], *middle, *words[before:]], np.int32)
  grid = prompts.Grid(
    kind=records.Kind.VIDEO,
    frames=sizes.frames,
    height=sizes.side,
    width=sizes.side,
    seconds=SECONDS,
  )
  shape = (sizes.frames, sizes.side**2, config.vision.patch_dim)
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
  parser.add_argument("--family", choices=("qwen2_5_vl", "qwen3_vl"), default="qwen2_5_vl")
  family = parser.parse_args(list(flags)).family
  kept = tuple(side for side in sides if side != "torch" or family == "qwen2_5_vl")
  return dataclasses.replace(sizes, family=family), kept
