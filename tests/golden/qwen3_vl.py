"""Golden cases of Qwen3-VL: our model must agree with the output of Hugging Face transformers.

Weights are not in the golden file: both sides draw them from a seed, tensor by tensor, keyed by
name. To write qwen3_vl.npz (needs torch and transformers, extra `parity`):

    PYTHONPATH=.:tests python tests/golden/qwen3_vl.py
"""

import dataclasses
import pathlib
from typing import Any

from golden import qwen2_5_vl as shared
import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
TIME_TOKENS = 3  # of text before each frame of a video


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCase(shared.ModelCase):
  """A model and its prompts; each frame of a video is a block of its own, behind some text."""

  def config(self) -> dict[str, Any]:
    """The config.json of transformers 5."""
    text = {"vocab_size": shared.VOCAB, "rms_norm_eps": 1e-6, **self.text}
    return {
      "model_type": "qwen3_vl",
      "text_config": text,
      "vision_config": {"out_hidden_size": text["hidden_size"], **self.vision},
      "tie_word_embeddings": self.tied,
      **shared.SPECIAL,
    }

  def tensors(self) -> dict[str, np.ndarray]:
    """Weights by the name they have in a file, without prefixes."""
    shapes = tensor_shapes(self.config())
    return {name: shared.draw_weight(self.seed, name, shape) for name, shape in shapes.items()}

  def prompt(self, index: int) -> tuple[np.ndarray, list[tuple[tuple, np.ndarray]]]:
    """Tokens of a prompt, and its media: (part, patches [frames, patches, patch_dim])."""
    rng = np.random.default_rng([self.seed, index])
    merge = self.vision.get("spatial_merge_size", 2)
    size = self.vision.get("patch_size", 16)
    tokens, media = [], []
    ends = shared.SPECIAL["vision_start_token_id"], shared.SPECIAL["vision_end_token_id"]
    for part in self.prompts[index]:
      if part[0] == "text":
        tokens.extend(rng.integers(0, shared.BYTES, part[1]).tolist())
        continue
      kind, frames, rows, columns = part[:4]
      pad = shared.SPECIAL[f"{kind}_token_id"]
      for _ in range(frames):
        if kind == "video":
          tokens.extend(rng.integers(0, shared.BYTES, TIME_TOKENS).tolist())
        tokens.extend([ends[0], *[pad] * (rows * columns // merge**2), ends[1]])
      shape = (frames, rows * columns, 3 * 2 * size**2)
      patches = rng.integers(0, 256, shape, np.uint8)
      media.append((part, patches))
    return np.array(tokens, np.int32), media


def text_config(hidden: int, layers: int, heads: int, kv_heads: int, sections: list[int]) -> dict:
  rope = {"rope_type": "default", "rope_theta": 1e4}
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden * 3 // 2,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": 2 * sum(sections),
    "rope_parameters": {**rope, "mrope_section": sections, "mrope_interleaved": True},
  }


def vision_config(
  hidden: int, depth: int, heads: int, side: int, levels: list[int], **more: Any
) -> dict:
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden + 8,
    "depth": depth,
    "num_heads": heads,
    "num_position_embeddings": side**2,
    "deepstack_visual_indexes": levels,
    **more,
  }


CASES = (
  ModelCase(
    name="image_and_video",
    seed=1,
    text=text_config(32, 3, 4, 2, [2, 1, 1]),
    vision=vision_config(32, 2, 2, 6, [0, 1]),
    tied=False,
    prompts=(
      (("text", 5), ("image", 1, 6, 10, 1.0), ("text", 3), ("video", 3, 4, 6, 1.0), ("text", 7)),
      (("video", 2, 6, 6, 0.75), ("text", 4), ("image", 1, 4, 4, 1.0), ("text", 6)),
    ),
  ),
  ModelCase(
    name="one_key_head_tied",
    seed=2,
    text=text_config(48, 2, 6, 1, [4, 2, 2]),
    vision=vision_config(24, 4, 3, 4, [0, 2]),
    tied=True,
    prompts=((("text", 4), ("image", 1, 14, 10, 1.0), ("text", 9)),),
  ),
  ModelCase(
    name="two_videos_one_level",
    seed=3,
    text=text_config(64, 2, 2, 2, [8, 4, 4]),
    vision=vision_config(32, 2, 4, 48, [1]),
    tied=False,
    prompts=(
      (("video", 4, 4, 4, 2.0), ("text", 2), ("video", 1, 6, 4, 0.4), ("text", 5)),
      (("text", 3), ("video", 5, 2, 2, 1.3), ("text", 11)),
    ),
  ),
  ModelCase(
    name="text_only",
    seed=4,
    text=text_config(32, 4, 4, 4, [2, 1, 1]),
    vision=vision_config(16, 2, 2, 5, [0, 1]),
    tied=True,
    prompts=((("text", 33),), (("text", 12),)),
  ),
  ModelCase(
    name="other_patches",
    seed=5,
    text=text_config(48, 3, 3, 3, [2, 3, 3]),
    vision=vision_config(32, 3, 2, 7, [0, 1, 2], patch_size=8, spatial_merge_size=3),
    tied=False,
    prompts=(
      (("text", 3), ("image", 1, 15, 9, 1.0), ("text", 2), ("image", 1, 3, 3, 1.0), ("text", 4)),
    ),
  ),
)


def random_case(seed: int) -> ModelCase:
  """Draws a case from a seed: sizes, grouping of heads, levels and media."""
  rng = np.random.default_rng(seed)
  kv_heads = int(rng.integers(1, 4))
  heads = kv_heads * int(rng.integers(1, 4))
  half = int(rng.choice([4, 8]))
  minor = int(rng.integers(1, half // 3 + 1))
  text_layers, depth, vision_heads = (int(rng.integers(2, 4)) for _ in range(3))
  levels = sorted(rng.choice(depth, rng.integers(1, min(depth, text_layers) + 1), replace=False))

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

  sections = [half - 2 * minor, minor, minor]
  return ModelCase(
    name=f"random_{seed}",
    seed=seed,
    text=text_config(8 * int(rng.integers(2, 7)), text_layers, heads, kv_heads, sections),
    vision=vision_config(
      8 * vision_heads, depth, vision_heads, int(rng.integers(2, 50)), [int(i) for i in levels]
    ),
    tied=bool(rng.random() < 0.5),
    prompts=(prompt(), prompt()),
  )


def reference_model(case: ModelCase) -> Any:
  """The case's model in transformers, float32."""
  import torch
  from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

  tokens = {"bos_token_id": None, "eos_token_id": None}
  fields = case.config()
  fields["text_config"] = {**fields["text_config"], **tokens}
  config = Qwen3VLConfig(**fields)
  config._attn_implementation = "eager"
  model = Qwen3VLForConditionalGeneration(config).eval()
  tensors = case.tensors()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      bare = name.removeprefix("model.").removeprefix("language_model.")
      parameter.copy_(torch.from_numpy(tensors.pop(bare)))
  assert not tensors, sorted(tensors)
  return model


def normalised(patches: np.ndarray) -> np.ndarray:
  """What transformers' processor makes of the pixels of patches [..., patch_dim]."""
  return shared.normalised(patches, (0.5,) * 3, (0.5,) * 3)


def reference_inputs(case: ModelCase, index: int) -> dict[str, Any]:
  """What transformers' model takes for a prompt."""
  return shared.media_inputs(*case.prompt(index), normalised)


def reference_outputs(case: ModelCase, model: Any, index: int) -> dict[str, np.ndarray]:
  """Runs transformers on a prompt: positions [3, prefix], next position, logits [prefix, vocab]."""
  import torch

  inputs = reference_inputs(case, index)
  given = {k: inputs.get(k) for k in ("image_grid_thw", "video_grid_thw")}
  positions, _ = model.model.get_rope_index(
    input_ids=inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], **given
  )
  with torch.no_grad():
    logits = model(**inputs, position_ids=positions).logits
  return {
    "positions": positions[:, 0].numpy().astype(np.int32),
    "next_position": np.asarray(positions.max() + 1, np.int32),  # where `generate` continues
    "logits": logits[0].float().numpy(),
  }


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """What a Qwen3-VL file holds, without prefixes."""
  text, vision = config["text_config"], config["vision_config"]
  embed, mlp, head_dim = text["hidden_size"], text["intermediate_size"], text["head_dim"]
  vocab = text["vocab_size"]
  heads, kv = head_dim * text["num_attention_heads"], head_dim * text["num_key_value_heads"]
  shapes = {"embed_tokens.weight": (vocab, embed), "norm.weight": (embed,)}
  if not config["tie_word_embeddings"]:
    shapes["lm_head.weight"] = (vocab, embed)
  for i in range(text["num_hidden_layers"]):
    layer = f"layers.{i}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
      shapes[f"{layer}.{norm}.weight"] = (embed,)
    for part, width in (("q", heads), ("k", kv), ("v", kv)):
      shapes[f"{layer}.self_attn.{part}_proj.weight"] = (width, embed)
    for part in ("q", "k"):
      shapes[f"{layer}.self_attn.{part}_norm.weight"] = (head_dim,)
    shapes[f"{layer}.self_attn.o_proj.weight"] = (embed, heads)
    for part, shape in (("gate", (mlp, embed)), ("up", (mlp, embed)), ("down", (embed, mlp))):
      shapes[f"{layer}.mlp.{part}_proj.weight"] = shape
  return {**shapes, **_tower_shapes(vision)}


def _tower_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  embed, mlp = vision["hidden_size"], vision["intermediate_size"]
  size = vision.get("patch_size", 16)
  square = embed * vision.get("spatial_merge_size", 2) ** 2
  shapes: dict[str, tuple[int, ...]] = {
    "visual.patch_embed.proj.weight": (embed, 3, 2, size, size),
    "visual.patch_embed.proj.bias": (embed,),
    "visual.pos_embed.weight": (vision["num_position_embeddings"], embed),
  }
  layers = {}
  for i in range(vision["depth"]):
    matrices = {"attn.qkv": (3 * embed, embed), "attn.proj": (embed, embed)}
    matrices |= {"mlp.linear_fc1": (mlp, embed), "mlp.linear_fc2": (embed, mlp)}
    layers |= {f"visual.blocks.{i}.{part}": shape for part, shape in matrices.items()}
    layers |= {f"visual.blocks.{i}.norm{n}": (embed,) for n in (1, 2)}
  mergers = {"visual.merger": embed}
  levels = len(vision["deepstack_visual_indexes"])
  mergers |= {f"visual.deepstack_merger_list.{i}": square for i in range(levels)}
  for merger, normalised in mergers.items():
    layers[f"{merger}.norm"] = (normalised,)
    layers[f"{merger}.linear_fc1"] = (square, square)
    layers[f"{merger}.linear_fc2"] = (vision["out_hidden_size"], square)
  for name, shape in layers.items():
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
  return shapes


def main() -> None:
  golden = {}
  for case in CASES:
    model = reference_model(case)
    for index in range(len(case.prompts)):
      outputs = reference_outputs(case, model, index)
      logits = outputs.pop("logits")
      projected = logits @ shared.projection()
      outputs |= {"some_logits": logits[:: -shared.EVERY], "projected": projected}
      golden |= {f"{case.name}.{index}.{name}": value for name, value in outputs.items()}
  np.savez_compressed(FILE, **golden)
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
