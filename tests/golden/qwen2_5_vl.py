"""Golden cases of Qwen2.5-VL: our model must agree with the output of Hugging Face transformers.

Weights are not in the golden file: both sides draw them from a seed, tensor by tensor, keyed by
name. To write qwen2_5_vl.npz (needs torch and transformers, extra `parity`):

    python tests/golden/qwen2_5_vl.py
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
BYTES = 256  # tokens below are text; the special tokens of an untrained tokenizer stand behind them
SPECIAL = {
  "vision_start_token_id": 265,
  "vision_end_token_id": 266,
  "image_token_id": 268,
  "video_token_id": 269,
}
VOCAB = 272
EVERY = 8  # of how many positions one has its whole row of logits in the golden file
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of channels, in units of full intensity
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCase:
  """A model and its prompts.

  A part is ("text", tokens) or ("image" or "video", frames, rows, columns, seconds between frames),
  in temporal and in spatial patches.
  """

  name: str
  seed: int
  text: dict[str, Any]
  vision: dict[str, Any]
  tied: bool
  prompts: tuple[tuple[tuple, ...], ...]

  def config(self) -> dict[str, Any]:
    """The config.json of transformers 5."""
    text = {"vocab_size": VOCAB, "rms_norm_eps": 1e-6, **self.text}
    vision = {"out_hidden_size": text["hidden_size"], "rope_after_video": "sides", **self.vision}
    return {
      "model_type": "qwen2_5_vl",
      "text_config": text,
      "vision_config": vision,
      "tie_word_embeddings": self.tied,
      **SPECIAL,
    }

  def tensors(self) -> dict[str, np.ndarray]:
    """Weights by the name they have in a file, without prefixes."""
    shapes = tensor_shapes(self.config())
    return {name: draw_weight(self.seed, name, shape) for name, shape in shapes.items()}

  def prompt(self, index: int) -> tuple[np.ndarray, list[tuple[tuple, np.ndarray]]]:
    """Tokens of a prompt, and its media: (part, patches [frames, patches, patch_dim])."""
    rng = np.random.default_rng([self.seed, index])
    merge = self.vision.get("spatial_merge_size", 2)
    size = self.vision.get("patch_size", 14)
    tokens, media = [], []
    for part in self.prompts[index]:
      if part[0] == "text":
        tokens.extend(rng.integers(0, BYTES, part[1]).tolist())
        continue
      frames, rows, columns = part[1:4]
      pad = SPECIAL[f"{part[0]}_token_id"]
      count = frames * rows * columns // merge**2
      ends = SPECIAL["vision_start_token_id"], SPECIAL["vision_end_token_id"]
      tokens.extend([ends[0], *[pad] * count, ends[1]])
      shape = (frames, rows * columns, 3 * 2 * size**2)
      patches = rng.integers(0, 256, shape, np.uint8)
      media.append((part, patches))
    return np.array(tokens, np.int32), media


def text_config(hidden: int, layers: int, heads: int, kv_heads: int, sections: list[int]) -> dict:
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden * 3 // 2,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
  }


def vision_config(
  hidden: int, depth: int, heads: int, window: int, full: list[int], **more
) -> dict:
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden + 8,
    "depth": depth,
    "num_heads": heads,
    "window_size": window,
    "fullatt_block_indexes": full,
    **more,
  }


CASES = (
  ModelCase(
    name="image_and_video",
    seed=1,
    text=text_config(32, 3, 4, 2, [1, 1, 2]),
    vision=vision_config(32, 3, 2, 56, [1], tokens_per_second=2),
    tied=False,
    prompts=(
      (("text", 5), ("image", 1, 6, 10, 1.0), ("text", 3), ("video", 3, 4, 6, 1.0), ("text", 7)),
      (("video", 2, 6, 6, 0.75), ("text", 4), ("image", 1, 4, 4, 1.0), ("text", 6)),
    ),
  ),
  ModelCase(
    name="one_key_head_tied",
    seed=2,
    text=text_config(48, 2, 6, 1, [2, 1, 1]),
    vision=vision_config(24, 4, 3, 112, [0, 2]),
    tied=True,
    prompts=((("text", 4), ("image", 1, 14, 10, 1.0), ("text", 9)),),
  ),
  ModelCase(
    name="two_videos_single_token_windows",
    seed=3,
    text=text_config(64, 2, 2, 2, [4, 6, 6]),
    vision=vision_config(32, 2, 4, 28, []),
    tied=False,
    prompts=(
      (("video", 4, 4, 4, 2.0), ("text", 2), ("video", 2, 6, 4, 0.4), ("text", 5)),
      (("text", 3), ("video", 5, 2, 2, 1.3), ("text", 11)),
    ),
  ),
  ModelCase(
    name="text_only",
    seed=4,
    text=text_config(32, 4, 4, 4, [2, 1, 1]),
    vision=vision_config(16, 2, 2, 56, [0, 1]),
    tied=True,
    prompts=((("text", 33),), (("text", 12),)),
  ),
  ModelCase(
    name="other_patches",
    seed=5,
    text=text_config(48, 2, 3, 3, [2, 3, 3]),
    vision=vision_config(32, 3, 2, 63, [2], patch_size=7, spatial_merge_size=3),
    tied=False,
    prompts=(
      (("text", 3), ("image", 1, 15, 9, 1.0), ("text", 2), ("image", 1, 3, 3, 1.0), ("text", 4)),
    ),
  ),
)


def random_case(seed: int) -> ModelCase:
  """Draws a case from a seed: sizes, grouping of heads, windows and media."""
  rng = np.random.default_rng(seed)
  kv_heads = int(rng.integers(1, 4))
  heads = kv_heads * int(rng.integers(1, 4))
  half = int(rng.choice([4, 8]))
  cuts = np.sort(rng.choice(np.arange(1, half), 2, replace=False))
  sections = np.diff([0, *cuts, half]).tolist()
  depth, vision_heads = int(rng.integers(1, 4)), int(rng.integers(1, 4))
  full = np.flatnonzero(rng.random(depth) < 0.5).tolist()

  def side():
    return 2 * int(rng.integers(1, 6))

  def medium():
    if rng.random() < 0.5:
      return ("image", 1, side(), side(), 1.0)
    return ("video", int(rng.integers(1, 5)), side(), side(), float(rng.uniform(0.1, 3)))

  def text():
    return ("text", int(rng.integers(1, 9)))

  def prompt():
    pairs = [(text(), medium()) for _ in range(rng.integers(0, 4))]
    return (*(part for pair in pairs for part in pair), text())

  return ModelCase(
    name=f"random_{seed}",
    seed=seed,
    text=text_config(2 * half * heads, int(rng.integers(1, 4)), heads, kv_heads, sections),
    vision=vision_config(
      8 * vision_heads,
      depth,
      vision_heads,
      int(rng.choice([28, 56, 84, 112])),
      full,
      tokens_per_second=int(rng.choice([1, 2, 4, 25])),
    ),
    tied=bool(rng.random() < 0.5),
    prompts=(prompt(), prompt()),
  )


def projection() -> np.ndarray:
  """Two directions of the vocabulary; the golden file has all logits projected on them."""
  return np.random.default_rng(0).standard_normal((VOCAB, 2)).astype(np.float32) / VOCAB**0.5


def reference_model(case: ModelCase) -> Any:
  """The case's model in transformers, float32."""
  import torch
  from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

  tokens = {"bos_token_id": None, "eos_token_id": None}
  fields = case.config()
  fields["text_config"] = {**fields["text_config"], **tokens}
  config = Qwen2_5_VLConfig(**fields)
  config._attn_implementation = "eager"
  model = Qwen2_5_VLForConditionalGeneration(config).eval()
  tensors = case.tensors()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      bare = name.removeprefix("model.").removeprefix("language_model.")
      parameter.copy_(torch.from_numpy(tensors.pop(bare)))
  assert not tensors, sorted(tensors)
  return model


def normalised(
  patches: np.ndarray, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> np.ndarray:
  """What transformers' processor makes of the pixels of patches [..., patch_dim]."""
  channels = patches.reshape(*patches.shape[:-1], 3, -1).astype(np.float32) / 255
  shift, scale = (np.array(x, np.float32)[:, None] for x in (mean, std))
  return ((channels - shift) / scale).reshape(patches.shape)


def media_inputs(
  tokens: np.ndarray,
  media: list[tuple[tuple, np.ndarray]],
  normalised: Callable[[np.ndarray], np.ndarray] = normalised,
) -> dict[str, Any]:
  """What transformers' model takes for a prompt: tokens, kinds, pixels and grids."""
  import torch

  ids = torch.from_numpy(tokens).long()[None]
  kinds = (ids == SPECIAL["image_token_id"]).int() + 2 * (ids == SPECIAL["video_token_id"]).int()
  inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
  names = {"image": ("pixel_values", "image_grid_thw")}
  names["video"] = ("pixel_values_videos", "video_grid_thw")
  for kind, (values, grids) in names.items():
    mine = [(part, patches) for part, patches in media if part[0] == kind]
    if mine:
      grid = [part[1:4] for part, _ in mine]
      flat = np.concatenate([patches.reshape(-1, patches.shape[-1]) for _, patches in mine])
      flat = normalised(flat)
      inputs[values], inputs[grids] = torch.from_numpy(flat), torch.tensor(grid)
  return inputs


def reference_inputs(case: ModelCase, index: int) -> dict[str, Any]:
  """What transformers' model takes for a prompt."""
  import torch

  tokens, media = case.prompt(index)
  inputs = media_inputs(tokens, media)
  seconds = [part[4] for part, _ in media if part[0] == "video"]
  if seconds:
    inputs["second_per_grid_ts"] = torch.tensor(seconds)
  return inputs


def reference_outputs(case: ModelCase, model: Any, index: int) -> dict[str, np.ndarray]:
  """Runs transformers on a prompt: positions [3, prefix], next position, logits [prefix, vocab]."""
  import torch

  inputs = reference_inputs(case, index)
  ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
  places = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
  positions, _ = model.model.get_rope_index(
    ids, kinds, second_per_grid_ts=inputs.get("second_per_grid_ts"), **places
  )
  with torch.no_grad():
    logits = model(**inputs, position_ids=positions).logits
  return {
    "positions": positions[:, 0].numpy().astype(np.int32),
    "next_position": np.asarray(positions[0, 0, -1] + 1, np.int32),  # where `generate` continues
    "logits": logits[0].float().numpy(),
  }


def draw_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Random values of a tensor, which depend on its name."""
  rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
  values = rng.standard_normal(shape, np.float32)
  if len(shape) > 1:
    return values * np.float32(np.prod(shape[1:]) ** -0.5)
  return np.float32(0.1) * values + np.float32("norm" in name or "ln_q" in name)


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """What a Qwen2.5-VL file holds, without prefixes."""
  text, vision = config.get("text_config", config), config["vision_config"]
  embed, mlp = text["hidden_size"], text["intermediate_size"]
  head_dim = embed // text["num_attention_heads"]
  kv = head_dim * text["num_key_value_heads"]
  shapes = {"embed_tokens.weight": (VOCAB, embed), "norm.weight": (embed,)}
  if not config.get("tie_word_embeddings", text.get("tie_word_embeddings")):
    shapes["lm_head.weight"] = (VOCAB, embed)
  for i in range(text["num_hidden_layers"]):
    layer = f"layers.{i}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
      shapes[f"{layer}.{norm}.weight"] = (embed,)
    for part, width in (("q", embed), ("k", kv), ("v", kv)):
      shapes[f"{layer}.self_attn.{part}_proj.weight"] = (width, embed)
      shapes[f"{layer}.self_attn.{part}_proj.bias"] = (width,)
    shapes[f"{layer}.self_attn.o_proj.weight"] = (embed, embed)
    for part, shape in (("gate", (mlp, embed)), ("up", (mlp, embed)), ("down", (embed, mlp))):
      shapes[f"{layer}.mlp.{part}_proj.weight"] = shape
  embed, mlp = vision["hidden_size"], vision["intermediate_size"]
  size = vision.get("patch_size", 14)
  shapes["visual.patch_embed.proj.weight"] = (embed, 3, 2, size, size)
  for i in range(vision["depth"]):
    block = f"visual.blocks.{i}"
    matrices = {"attn.qkv": (3 * embed, embed), "attn.proj": (embed, embed)}
    matrices |= {"mlp.gate_proj": (mlp, embed), "mlp.up_proj": (mlp, embed)}
    matrices |= {"mlp.down_proj": (embed, mlp)}
    for part, shape in matrices.items():
      shapes[f"{block}.{part}.weight"] = shape
      shapes[f"{block}.{part}.bias"] = shape[:1]
    shapes[f"{block}.norm1.weight"] = shapes[f"{block}.norm2.weight"] = (embed,)
  square = embed * vision.get("spatial_merge_size", 2) ** 2
  shapes["visual.merger.ln_q.weight"] = (embed,)
  for part, width in (("0", square), ("2", vision["out_hidden_size"])):
    shapes[f"visual.merger.mlp.{part}.weight"] = (width, square)
    shapes[f"visual.merger.mlp.{part}.bias"] = (width,)
  return shapes


def main() -> None:
  golden = {}
  for case in CASES:
    model = reference_model(case)
    for index in range(len(case.prompts)):
      outputs = reference_outputs(case, model, index)
      logits = outputs.pop("logits")
      outputs |= {"some_logits": logits[::-EVERY], "projected": logits @ projection()}
      golden |= {f"{case.name}.{index}.{name}": value for name, value in outputs.items()}
  np.savez_compressed(FILE, **golden)
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
