"""Golden replies to a video, with an exported directory of TinyLLaVA-Video's tiny size.

The reference is that of tinyllava.py, with `generate` of transformers. Form and random weights are
those of qwen2_5_vl_generate.py. To write tinyllava_generate.json (needs torch and transformers):

    PYTHONPATH=.:tests python tests/golden/tinyllava_generate.py
"""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

from golden import qwen2_5_vl as shared_models
from golden import qwen2_5_vl_generate as shared
from golden import tinyllava as models
import numpy as np
from safetensors import numpy as safetensors

from vr_jax import recipe_config
from vr_jax.models.common import prompts
from vr_jax.models.tinyllava import hf_mapping
from vr_jax.models.tinyllava import tokenizer as tokenizer_lib

FILE = pathlib.Path(__file__).with_suffix(".json")
TOKENIZER = tokenizer_lib.train_tokenizer([], shared_models.VOCAB - 1)
NAIVE = {"connector_type": "naiveresampler", "num_queries": 20, "num_resampler_layers": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCase(shared.GenerateCase):
  """See qwen2_5_vl_generate.GenerateCase.

  connector: fields of the resampler that differ from those of the recipe's model.
  """

  connector: dict[str, Any] = dataclasses.field(default_factory=dict)

  def model_fields(self) -> dict[str, Any]:
    """The config.json of the model."""
    fields = recipe_config.load(f"{shared.ROOT / self.recipe}").model.architecture.to_dict()
    fields["text_config"]["vocab_size"] = shared_models.VOCAB
    end = TOKENIZER.token_to_id(tokenizer_lib.SPECIAL_TOKENS[0])
    return {**fields, **self.connector, "eos_token_id": end}

  def config(self, directory: pathlib.Path) -> Any:
    """The recipe's config. directory: holds the files that `write_source` writes."""
    config = super().config(directory)
    with config.unlocked():
      config.model.architecture.update(self.connector)
    return config

  def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by their released names."""
    released = hf_mapping.TinyLlavaMapping().released
    shapes = models.tensor_shapes(self.model_fields())
    return {released(name): shape for name, shape in shapes.items()}

  def write_source(self, directory: pathlib.Path) -> None:
    """As for the other families, with Phi-2's tokenizer."""
    super().write_source(directory)
    TOKENIZER.save(str(directory / "tokenizer.json"))


TINY = {"recipe": "configs/moss_chatv.py:tiny_phi2", "layers": None, "new_tokens": 24}
CASES = (
  GenerateCase(name="groups", shape=(8, 112, 112), seconds=0.5, **TINY),
  GenerateCase(
    name="naive_adapters",
    shape=(5, 90, 130),
    seconds=2.0,
    connector=NAIVE,
    fields={
      "model.question_first": False,
      "model.system": 'Say "yes".\n{{No}} tools, ü.',
      "model.lora.rank": 3,
      "model.lora.vision": ("query", "up"),
    },
    **TINY,
  ),
)


def reference_model(directory: pathlib.Path) -> Any:
  """Loads the reference from a directory, in float32, with its way of generation."""
  from golden import tinyllava_reference
  import torch
  import transformers

  fields = json.loads((directory / "config.json").read_text())
  end = json.loads((directory / "generation_config.json").read_text())["pad_token_id"]
  model = tinyllava_reference.Model({**fields, "eos_token_id": end}).eval()
  (file,) = directory.glob("*.safetensors")
  tensors = {name: torch.from_numpy(value) for name, value in safetensors.load_file(file).items()}
  # An export of a network that was trained from nothing has no tensors that are not used.
  missing, unknown = model.load_state_dict(tensors, strict=False)
  assert not unknown
  assert all("head." in n or "post_layernorm" in n or ".layers.3." in n for n in missing), missing
  chosen = transformers.GenerationConfig.from_pretrained(directory)
  model.language_model.generation_config = chosen
  return model


def reference_inputs(encoded: prompts.EncodedPrompt, model: Any) -> dict[str, Any]:
  """What the reference takes for a prompt with videos, from our encoding of it."""
  import torch

  siglip = model.vision_tower._vision_tower.vision_model.config
  size = siglip.patch_size
  side = siglip.image_size // size
  videos = []
  for frame in encoded.frames:
    assert frame.vision is not None
    grid = models.normalised(frame.vision.patches).reshape(-1, side, side, 3, size, size)
    pixels = grid.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, side * size, side * size)
    videos.append(torch.from_numpy(np.ascontiguousarray(pixels)))
  return {"input_ids": torch.from_numpy(encoded.tokens).long()[None], "videos": videos}


def reference_reply(model: Any, inputs: dict[str, Any]) -> tuple[list[int], float]:
  """Tokens of the greedy reply, and the least margin of a token to the next best one."""
  import torch

  with torch.no_grad():
    embedded = model.embed(**inputs)
    found = model.language_model.generate(
      inputs_embeds=embedded,
      attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
      output_scores=True,
      return_dict_in_generate=True,
    )
  best = [scores[0].topk(2).values for scores in found.scores]
  return found.sequences[0].tolist(), min(float(first - second) for first, second in best)


def main() -> None:
  import torch
  import transformers

  from tests.train import exported_cases

  golden = {"transformers": transformers.__version__, "torch": torch.__version__}
  for case in CASES:
    with tempfile.TemporaryDirectory() as directory:
      made = exported_cases.export(case, pathlib.Path(directory))
      encoded = exported_cases.encode(made, case)
      model = reference_model(made.path)
      tokens, margin = reference_reply(model, reference_inputs(encoded, model))
    golden[case.name] = {
      "prompt": encoded.tokens.tolist(),
      "tokens": tokens,
      "margin": round(margin, 4),
    }
  FILE.write_text(json.dumps(golden, indent=1) + "\n")
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
