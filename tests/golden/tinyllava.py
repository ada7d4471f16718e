"""Golden cases of TinyLLaVA-Video: our model must agree with a reference in PyTorch.

The reference is SiglipVisionModel and PhiForCausalLM of Hugging Face transformers, with the
resamplers written here from their description. Weights are not in the golden file: both sides draw
them from a seed, tensor by tensor, keyed by name. To write tinyllava.npz (needs torch and
transformers, extra `parity`):

    PYTHONPATH=.:tests python tests/golden/tinyllava.py
"""

import dataclasses
import pathlib
from typing import Any

from golden import qwen2_5_vl as shared
import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
MEDIA = shared.VOCAB - 1  # the id where features of a video stand
HEADS, HEAD_DIM, WIDENING = 8, 64, 4  # of the resamplers
PREFIXES = (
  "language_model.model.",
  "language_model.",
  "vision_tower._vision_tower.vision_model.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCase(shared.ModelCase):
  """A model and its prompts.

  A part is ("text", tokens) or ("image" or "video", images).

  connector: fields of the resampler.
  """

  connector: dict[str, Any]

  def config(self) -> dict[str, Any]:
    """The config.json, with all fields that matter."""
    return {
      "model_type": "tinyllava",
      "text_config": {"model_type": "phi", "vocab_size": shared.VOCAB, **self.text},
      "vision_config": {"model_type": "siglip_vision_model", **self.vision},
      "tokenizer_model_max_length": 512,
      "eos_token_id": shared.BYTES,
      **self.connector,
    }

  def tensors(self) -> dict[str, np.ndarray]:
    """Weights by the name they have in a file, without prefixes."""
    shapes = tensor_shapes(self.config())
    return {name: shared.draw_weight(self.seed, name, shape) for name, shape in shapes.items()}

  def prompt(self, index: int) -> tuple[np.ndarray, list[tuple[tuple, np.ndarray]]]:
    """Tokens of a prompt, and its media: (part as of the other families, patches)."""
    rng = np.random.default_rng([self.seed, index])
    side = self.vision["image_size"] // self.vision["patch_size"]
    width = 3 * self.vision["patch_size"] ** 2
    tokens, media = [], []
    for part in self.prompts[index]:
      if part[0] == "text":
        tokens.extend(rng.integers(0, shared.BYTES, part[1]).tolist())
        continue
      tokens.extend([MEDIA] * self.connector["num_queries"])
      images = part[1]
      patches = rng.integers(0, 256, (1, images * side**2, width), np.uint8)
      media.append((("video", 1, images * side, side, 1.0), patches))
    return np.array(tokens, np.int32), media


def text_config(hidden: int, layers: int, heads: int, kv_heads: int, rotary: float) -> dict:
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden * 3 // 2,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "partial_rotary_factor": rotary,
  }


def vision_config(hidden: int, depth: int, heads: int, image: int, patch: int) -> dict:
  return {
    "hidden_size": hidden,
    "intermediate_size": hidden + 8,
    "num_hidden_layers": depth,
    "num_attention_heads": heads,
    "image_size": image,
    "patch_size": patch,
  }


def connector(kind: str, queries: int, layers: int, group: int = 1) -> dict:
  fields = {"connector_type": kind, "num_queries": queries, "num_resampler_layers": layers}
  return {**fields, **({"group": group} if kind == "groupresampler" else {})}


CASES = (
  ModelCase(
    name="groups",
    seed=1,
    text=text_config(32, 3, 4, 4, 0.5),
    vision=vision_config(32, 3, 2, 29, 7),
    connector=connector("groupresampler", 12, 2, 4),
    tied=False,
    prompts=(
      (("text", 5), ("video", 4), ("text", 3), ("image", 1), ("text", 7)),
      (("video", 3), ("text", 4), ("video", 2), ("text", 6)),
    ),
  ),
  ModelCase(
    name="naive",
    seed=2,
    text=text_config(80, 2, 5, 5, 0.4),
    vision=vision_config(24, 2, 3, 28, 14),
    connector=connector("naiveresampler", 9, 3),
    tied=False,
    prompts=((("text", 4), ("video", 5), ("text", 9)), (("image", 1), ("text", 3))),
  ),
  ModelCase(
    name="unrounded_positions",
    seed=3,
    text=text_config(64, 2, 4, 2, 0.75),
    vision=vision_config(32, 4, 4, 40, 8),
    connector={
      **connector("resamplerwithpe", 5, 1),
      "vision_feature_layer": -1,
      "vision_feature_select_strategy": "cls_patch",
    },
    tied=False,
    prompts=((("video", 8), ("text", 11)),),
  ),
  ModelCase(
    name="text_only",
    seed=4,
    text=text_config(32, 4, 2, 2, 1.0),
    vision=vision_config(16, 2, 2, 28, 14),
    connector=connector("naiveresampler", 4, 1),
    tied=False,
    prompts=((("text", 33),), (("text", 12),)),
  ),
)


def random_case(seed: int) -> ModelCase:
  """Draws a case from a seed: sizes, kind of resampler and media."""
  rng = np.random.default_rng(seed)
  heads, vision_heads = int(rng.integers(1, 5)), int(rng.integers(1, 4))
  kv_heads = int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0]))
  patch = int(rng.integers(4, 9))
  group, latents = int(rng.integers(1, 5)), int(rng.integers(1, 5))
  kind = str(rng.choice(["groupresampler", "naiveresampler", "resamplerwithpe"]))

  def part():
    return ("video", int(rng.integers(1, 7)))

  def text():
    return ("text", int(rng.integers(1, 9)))

  def prompt():
    pairs = [(text(), part()) for _ in range(rng.integers(0, 3))]
    return (*(one for pair in pairs for one in pair), text())

  return ModelCase(
    name=f"random_{seed}",
    seed=seed,
    text=text_config(16 * heads, int(rng.integers(1, 4)), heads, kv_heads, rng.choice([0.5, 0.25])),
    vision=vision_config(
      8 * vision_heads,
      int(rng.integers(2, 4)),
      vision_heads,
      patch * int(rng.integers(2, 5)) + int(rng.integers(0, patch)),
      patch,
    ),
    connector=connector(kind, group * latents, int(rng.integers(1, 4)), group),
    tied=False,
    prompts=(prompt(), prompt()),
  )


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """What a TinyLLaVA-Video file holds, by the names of `TinyLlavaMapping.bare`."""
  text, vision = config["text_config"], config["vision_config"]
  embed, mlp = text["hidden_size"], text["intermediate_size"]
  head_dim = embed // text["num_attention_heads"]
  kv = head_dim * text["num_key_value_heads"]
  matrices = {"lm_head": (text["vocab_size"], embed)}
  vectors: dict[str, tuple[int, ...]] = {"final_layernorm": (embed,)}
  for i in range(text["num_hidden_layers"]):
    layer = f"layers.{i}"
    vectors[f"{layer}.input_layernorm"] = (embed,)
    for part, width in (("q_proj", embed), ("k_proj", kv), ("v_proj", kv), ("dense", embed)):
      matrices[f"{layer}.self_attn.{part}"] = (width, embed)
    matrices |= {f"{layer}.mlp.fc1": (mlp, embed), f"{layer}.mlp.fc2": (embed, mlp)}
  shapes = {"embed_tokens.weight": (text["vocab_size"], embed)}
  for module, shape in {**matrices, **vectors}.items():
    shapes[f"{module}.weight"], shapes[f"{module}.bias"] = shape, shape[:1]
  return {**shapes, **_tower_shapes(vision), **_connector_shapes(config)}


def _tower_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  embed, mlp, size = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
  modules = {"tower.embeddings.patch_embedding": (embed, 3, size, size)}
  ends = {"tower.post_layernorm": (embed,), "tower.head.layernorm": (embed,)}
  ends |= {"tower.head.attention.out_proj": (embed, embed)}
  ends |= {"tower.head.mlp.fc1": (mlp, embed), "tower.head.mlp.fc2": (embed, mlp)}
  for i in range(vision["num_hidden_layers"]):
    layer = f"tower.encoder.layers.{i}"
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    modules |= {f"{layer}.self_attn.{name}": (embed, embed) for name in names}
    modules |= {f"{layer}.mlp.fc1": (mlp, embed), f"{layer}.mlp.fc2": (embed, mlp)}
    modules |= {f"{layer}.layer_norm{n}": (embed,) for n in (1, 2)}
  shapes = {"tower.head.probe": (1, 1, embed)}
  shapes |= {"tower.head.attention.in_proj_weight": (3 * embed, embed)}
  shapes |= {"tower.head.attention.in_proj_bias": (3 * embed,)}
  table = ((vision["image_size"] // size) ** 2, embed)
  shapes["tower.embeddings.position_embedding.weight"] = table
  for module, shape in {**modules, **ends}.items():
    shapes[f"{module}.weight"], shapes[f"{module}.bias"] = shape, shape[:1]
  return shapes


def _connector_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  embed = config["text_config"]["hidden_size"]
  inner, top = HEADS * HEAD_DIM, "connector._connector"
  latents = config["num_queries"] // groups(config)
  shapes: dict[str, tuple[int, ...]] = {
    f"{top}.latents": (latents, embed),
    f"{top}.linear.weight": (embed, config["vision_config"]["hidden_size"]),
    f"{top}.linear.bias": (embed,),
  }
  norms = [f"{top}.norm"]
  for i in range(config["num_resampler_layers"]):
    attention, forward = f"{top}.layers.{i}.0", f"{top}.layers.{i}.1"
    norms += [f"{attention}.norm_media", f"{attention}.norm_latents", f"{forward}.0"]
    shapes[f"{attention}.to_q.weight"] = (inner, embed)
    shapes[f"{attention}.to_kv.weight"] = (2 * inner, embed)
    shapes[f"{attention}.to_out.weight"] = (embed, inner)
    shapes[f"{forward}.1.weight"] = (WIDENING * embed, embed)
    shapes[f"{forward}.3.weight"] = (embed, WIDENING * embed)
  return shapes | {f"{name}.{end}": (embed,) for name in norms for end in ("weight", "bias")}


def groups(config: dict[str, Any]) -> int:
  """Parts into which the resampler divides a video; a naive one may have the field, too."""
  return config["group"] if config["connector_type"] == "groupresampler" else 1


def bare(name: str) -> str:
  """A name of the reference's parameters without the prefixes of its parts."""
  for prefix in PREFIXES:
    if name.startswith(prefix):
      rest = name.removeprefix(prefix)
      return f"tower.{rest}" if "vision" in prefix else rest
  return name


def reference_model(case: ModelCase) -> Any:
  """The case's model in PyTorch, float32."""
  from golden import tinyllava_reference
  import torch

  model = tinyllava_reference.Model(case.config()).eval()
  tensors = case.tensors()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(torch.from_numpy(tensors.pop(bare(name))))
  assert not tensors, sorted(tensors)
  return model


def normalised(patches: np.ndarray) -> np.ndarray:
  """What SigLIP's processor makes of the pixels of patches [..., patch_dim]."""
  return shared.normalised(patches, (0.5,) * 3, (0.5,) * 3)


def reference_inputs(case: ModelCase, index: int) -> dict[str, Any]:
  """What the reference takes for a prompt."""
  import torch

  tokens, media = case.prompt(index)
  side = case.vision["image_size"] // case.vision["patch_size"]
  size = case.vision["patch_size"]
  videos = []
  for _, patches in media:
    grid = normalised(patches).reshape(-1, side, side, 3, size, size).transpose(0, 3, 1, 4, 2, 5)
    videos.append(torch.from_numpy(grid.reshape(len(grid), 3, side * size, side * size).copy()))
  return {"input_ids": torch.from_numpy(tokens).long()[None], "videos": videos}


def reference_outputs(case: ModelCase, model: Any, index: int) -> dict[str, np.ndarray]:
  """Runs the reference: positions [1, prefix], next position, logits [prefix, vocab]."""
  import torch

  inputs = reference_inputs(case, index)
  with torch.no_grad():
    logits = model(**inputs).logits
  length = inputs["input_ids"].shape[1]
  return {
    "positions": np.arange(length, dtype=np.int32)[None],
    "next_position": np.asarray(length, np.int32),
    "logits": logits[0].float().numpy(),
  }


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
