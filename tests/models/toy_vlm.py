"""A toy family that shares little with the built-in ones, to test the interface of models.

One position axis with plain rotary embeddings. One media token an image, computed from the mean
colours of a grid of cells by a network of one hidden layer; two feature arrays a token. Parallel
attention and feed-forward blocks without biases, and as many key heads as query heads. Its own chat
template.
"""

import dataclasses
from typing import Any, ClassVar, cast

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vr_jax import records
from vr_jax.models import family
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import (
  conversation,
  decoder,
  flops,
  language_model,
  layers,
  lora,
  processor,
  prompts,
  tokenizer,
  weight_mapping,
)

CELLS = 4  # of each side of an image
SPECIAL = ("<pad>", "<end>", "<image>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
  vocab_size: int
  image_token_id: int
  hidden_size: int = 32
  num_hidden_layers: int = 2
  num_attention_heads: int = 2
  max_position_embeddings: int = 1024
  dtype: str = "float32"
  remat: str = "none"
  attention: str = ""
  decode_attention: str = "xla"
  logit_chunk: int = 8192
  tie_word_embeddings: bool = False

  model_type: ClassVar[str] = "toy_vlm"
  position_axes: ClassVar[int] = 1

  @property
  def text_sizes(self):
    return flops.TextSizes(
      layers=self.num_hidden_layers,
      layer_weights=12 * self.hidden_size**2,
      kv_width=2 * self.hidden_size,
      queries_per_key=1,
    )

  @property
  def vision_shapes(self):
    feature = jax.ShapeDtypeStruct((self.hidden_size,), jnp.dtype(self.dtype))
    return prompts.VisionShapes(
      patch=np.zeros((CELLS, CELLS, 3), np.float32),
      feature={"shape": feature, "shade": jax.ShapeDtypeStruct((1,), jnp.dtype(self.dtype))},
      pixels_per_patch=(7 * CELLS) ** 2,
    )

  @property
  def architecture(self) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(self, name) for name in names}

  @property
  def tower_fields(self) -> dict[str, Any]:
    return {"cells": CELLS, "width": self.hidden_size}


class ToyLayers(nnx.Module):
  def __init__(self, config, rngs):
    depth, embed, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=0.1)

    self.norm = layers.constant(("layers", "embed"), (depth, embed), value=1.0)
    for name in ("query", "key", "value"):
      setattr(self, name, weight(("embed", "heads", None), embed, heads, embed // heads))
    self.out = weight(("heads", None, "embed"), heads, embed // heads, embed)
    self.up = weight(("embed", "mlp"), embed, 4 * embed)
    self.down = weight(("mlp", "embed"), 4 * embed, embed)


class Text(decoder.Decoder):
  config: ToyConfig

  def __init__(self, config, layout, *, rngs):
    super().__init__(config, layout)
    shape = (config.vocab_size, config.hidden_size)
    self.embedding = layers.parameter(rngs, ("vocab", "embed"), shape, scale=0.1)
    self.head = layers.parameter(rngs, ("vocab", "embed"), shape, scale=0.1)
    self.layers = ToyLayers(config, rngs)
    self.norm = layers.constant(("embed",), shape[1:], value=1.0)

  def media_angles(self, positions):
    return self.text_angles(positions[..., 0])

  def text_angles(self, positions):
    half = self.config.hidden_size // self.config.num_attention_heads // 2
    frequencies = 1.0 / 100.0 ** (jnp.arange(half) / half)
    return layers.cosines_and_sines(positions[..., None].astype(jnp.float32) * frequencies)

  def project_qkv(self, x, weights, cos, sin):
    x = layers.rms_norm(x, weights["norm"], epsilon=1e-6)
    query, key, value = (self.project(x, weights, name) for name in ("query", "key", "value"))
    return layers.rotate(query, cos, sin), layers.rotate(key, cos, sin), value

  def finish_layer(self, x, mixed, weights, place=lambda x: x):
    normed = layers.rms_norm(x, weights["norm"], epsilon=1e-6)
    wide = jax.nn.gelu(self.project(normed, weights, "up"))
    both = place(self.project(mixed, weights, "out", contract=2)) + self.project(
      wide, weights, "down"
    )
    return x + both

  def final_norm(self, x):
    return layers.rms_norm(x, self.norm[...], epsilon=1e-6)


class ToyVision(nnx.Module):
  """Two arrays of features for each media token: what is there, and how bright it is."""

  def __init__(self, config, *, rngs):
    embed, self.dtype = config.hidden_size, jnp.dtype(config.dtype)
    shape = (CELLS * CELLS * 3, embed)
    self.cells = layers.parameter(rngs, (None, "vision_embed"), shape, scale=0.1)
    self.out = layers.parameter(rngs, ("vision_embed", None), (embed, embed), scale=0.1)

  def __call__(self, cells):
    cells = jnp.asarray(cells)
    flat = cells.reshape(cells.shape[0], -1, self.cells.shape[0]).astype(self.dtype)
    hidden = jax.nn.gelu(flat @ self.cells[...].astype(self.dtype))
    shade = flat.mean(axis=-1, keepdims=True)
    return {"shape": hidden @ self.out[...].astype(self.dtype), "shade": shade}


class Toy(language_model.DecoderLanguageModel):
  def __init__(self, config, *, rngs, layout=layout_lib.OneDevice()):  # noqa: B008 it is frozen
    tower = ToyVision(config, rngs=rngs)
    super().__init__(config, layout, tower, Text(config, layout, rngs=rngs))

  def merge_features(self, media):
    return media["shape"] + media["shade"]


class ToyTemplate:
  """User: … <image> … <end>Assistant: … <end>."""

  slack = len("Assistant: ")

  def __init__(self, words):
    self._plain = conversation.PlainText(words)
    self._end, self._image = words.token_to_id("<end>"), words.token_to_id("<image>")

  def apply(self, turns, media, *, open_reply):
    remaining, tokens, ours = iter(media), [], []
    for turn in turns:
      runs = [(self.text(f"{turn.role.capitalize()}: "), False)]
      for part in turn.parts:
        if isinstance(part, str):
          run = self.text(part)
        else:
          run = [self._image] * sum(each.tokens for each in next(remaining))
        runs.append((run, turn.role == "assistant"))
      runs.append(([self._end], turn.role == "assistant"))
      tokens += [token for run, _ in runs for token in run]
      ours += [mine for run, mine in runs for _ in run]
    opened = self.text("Assistant: ") if open_reply else []
    return np.array(tokens + opened, np.int32), np.array(ours + [False] * len(opened), bool)

  def continuation(self, turns, media, *, ended):
    rest = self.apply(turns, media, open_reply=True)[0]
    return np.concatenate([np.array([] if ended else [self._end], np.int32), rest])

  def text(self, text):
    return self._plain.encode(text)


class ToyProcessor(processor.VideoProcessor):
  end_of_turn, pad_name = "<end>", "<pad>"
  stops, never_sampled = ("<end>", "<pad>"), ("<image>",)
  box_units = "thousandths"
  config: ToyConfig

  @property
  def patch_shape(self):
    return (CELLS, CELLS, 3)

  def special_tokens(self):
    return {"<image>": self.config.image_token_id}

  def make_template(self, tokenizer):
    return ToyTemplate(tokenizer)

  def kinds(self, tokens):
    is_image = tokens == self.config.image_token_id
    return np.where(is_image, records.Kind.IMAGE, records.Kind.TEXT).astype(np.int32)

  def image_grid(self, size, seconds, name):
    return prompts.Grid(kind=records.Kind.IMAGE, frames=1, height=1, width=1)

  def video_grid(self, shape, timestamps, name):
    return prompts.Grid(kind=records.Kind.IMAGE, frames=shape[0], height=1, width=1)

  def frame_size(self, grid):
    return 7 * CELLS, 7 * CELLS

  def patchify(self, frames):
    cells = frames.reshape(len(frames), 1, CELLS, 7, CELLS, 7, 3).mean(axis=(3, 5))
    return (cells / 127.5 - 1).astype(np.float32)

  def frame_inputs(self, patches, grid):
    return list(patches)

  def positions(self, kind, grids):
    return np.arange(len(kind), dtype=np.int32)[:, None], len(kind)


class Weights(weight_mapping.WeightMapping):
  names: ClassVar[dict[str, str]] = {
    "text.embedding": "wte.weight",
    "text.head": "head.weight",
    "text.norm": "norm.weight",
    "vision.cells": "cells.weight",
    "vision.out": "vision_out.weight",
    **{
      f"text.layers.{name}": f"h.{{}}.{name}.weight"
      for name in ("norm", "query", "key", "value", "out", "up", "down")
    },
  }
  tables = ("text.embedding", "text.head")
  merged_inputs = ("text.layers.out",)
  head, embedding = "head.weight", "wte.weight"

  def bare(self, name):
    return name

  def released(self, name):
    return name

  def module(self, parameter):
    return self.names[parameter].removesuffix(".weight")


def make_config(fields) -> ToyConfig:
  known = {field.name for field in dataclasses.fields(ToyConfig)}
  return ToyConfig(**{name: value for name, value in fields.items() if name in known})


def with_options(config, section):
  names = ("dtype", "remat", "attention", "decode_attention", "logit_chunk")
  return dataclasses.replace(config, **{name: section[name] for name in names})


def forward_flops(config, *, frames, patches, prefix, group, time):
  text = config.text_sizes
  token = 2.0 * text.layers * text.layer_weights
  return flops.Forward(
    vision=2.0 * frames * patches * (CELLS * CELLS * 3 + config.hidden_size) * config.hidden_size,
    prefix=prefix * token,
    replies=group * time * token,
    head=2.0 * group * time * config.hidden_size * config.vocab_size,
  )


FAMILY = family.ModelFamily(
  model_type=ToyConfig.model_type,
  make_config=make_config,
  with_options=with_options,
  make_model=Toy,
  model_files=lambda config, _: (
    {
      "model_type": config.model_type,
      **{k: v for k, v in dataclasses.asdict(config).items() if k not in ("remat", "attention")},
    },
    {},
  ),
  make_processor=lambda config, words, section: ToyProcessor(
    config, words, 1, 10**6, system=section.system, library=section.resize_backend
  ),
  load_tokenizer=lambda path: tokenizer.load_tokenizer(path, needed=SPECIAL, owner="the toy"),
  train_tokenizer=lambda texts, size: tokenizer.train_tokenizer(
    texts, size, special_tokens=SPECIAL
  ),
  tokenizer_fields=lambda words: {"image_token_id": cast(int, words.token_to_id("<image>"))},
  forward_flops=forward_flops,
  weights=Weights(),
  parameter_groups={
    "vision": ("vision.cells",),
    "connector": ("vision.out",),
    "text": ("text.embedding", "text.layers", "text.norm"),
    "head": ("text.head",),
  },
  lora_targets=lora.Targets(text=("query", "value", "up", "down"), vision=()),
  end_token="<end>",
  pad_token="<pad>",
  template_words=("User: ", "Assistant: "),
  token_fields={"image_token_id": 3},
)
