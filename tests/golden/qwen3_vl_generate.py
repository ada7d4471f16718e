"""Golden replies of transformers to videos, with an exported directory of Qwen3-VL's tiny size.

Form and random weights are those of qwen2_5_vl_generate.py. To write qwen3_vl_generate.json (needs
torch and transformers; without torchvision, prompts and pixels are ours, positions are not):

    PYTHONPATH=.:tests python tests/golden/qwen3_vl_generate.py
"""

import dataclasses
import itertools
import json
import pathlib
import tempfile
from typing import Any

from golden import qwen2_5_vl as shared_models
from golden import qwen2_5_vl_generate as shared
from golden import qwen2_5_vl_processor as processors
from golden import qwen3_vl as models
import numpy as np

from vr_jax import recipe_config, records
from vr_jax.models.common import conversation, prompts

FILE = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCase(shared.GenerateCase):
  """See qwen2_5_vl_generate.GenerateCase.

  numbers: those of the video's frames in their file.
  before: shape and numbers of what is shown before the video; an image has no numbers.
  """

  numbers: tuple[int, ...]
  before: tuple[tuple[tuple[int, int, int], tuple[int, ...]], ...] = ()

  def model_fields(self) -> dict[str, Any]:
    """The config.json of the model."""
    fields = recipe_config.load(f"{shared.ROOT / self.recipe}").model.architecture.to_dict()
    fields["text_config"]["vocab_size"] = shared_models.VOCAB
    return {**fields, **shared_models.SPECIAL}

  def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by their released names."""
    shapes = models.tensor_shapes(self.model_fields())
    return {
      f"model.{name}" if name.startswith("visual.") else f"model.language_model.{name}": shape
      for name, shape in shapes.items()
    }

  @property
  def times(self) -> np.ndarray:
    """Seconds of each frame."""
    return self._times(self.numbers)

  def _times(self, numbers: tuple[int, ...]) -> np.ndarray:
    return np.array(numbers) / (1 / self.seconds)

  @property
  def metadata(self) -> list[dict[str, Any]]:
    """What transformers is told about each video."""
    videos = [*(numbers for _, numbers in self.before if numbers), self.numbers]
    return [
      {"fps": 1 / self.seconds, "total_num_frames": n[-1] + 1, "frames_indices": list(n)}
      for n in videos
    ]

  def question(self, *, question_first: bool) -> conversation.Message:
    """The question, behind all that is shown before its video."""
    parts = []
    for index, (shape, numbers) in enumerate(self.before):
      frames = shared.draw_frames(f"{self.name}.{index}", shape)
      video = conversation.VideoFrames(frames=frames, timestamps=self._times(numbers))
      parts += [video if numbers else conversation.Image(pixels=frames[0]), f"That was {index}. "]
    asked = super().question(question_first=question_first)
    return dataclasses.replace(asked, parts=(*parts, *asked.parts))


TINY = {"recipe": "configs/moss_chatv.py:tiny_qwen3vl", "layers": None, "new_tokens": 24}
CASES = (
  GenerateCase(
    name="uneven",
    shape=(8, 112, 112),
    seconds=0.5,
    numbers=(0, 1, 2, 9, 30, 31, 47, 90),
    **TINY,
  ),
  GenerateCase(
    name="odd_adapters",
    shape=(7, 90, 130),
    seconds=0.04,
    numbers=tuple(range(500, 535, 5)),
    fields={
      "model.question_first": False,
      "model.system": 'Say "yes".\n{{No}} tools, ü.',
      "model.max_video_pixels": 20 * 64 * 64,
      "model.lora.rank": 3,
      "model.lora.text": ("query", "value", "down"),
      "model.lora.vision": ("qkv", "up"),
    },
    **TINY,
  ),
  GenerateCase(
    name="all_media",
    shape=(4, 70, 112),
    seconds=0.25,
    numbers=(3, 4, 60, 61),
    before=(
      ((1, 90, 60), ()),
      ((5, 64, 64), (0, 7, 9, 10, 400)),
      ((2, 120, 50), (8, 9)),
    ),
    **TINY,
  ),
)


def case_inputs(processor: Any, case: GenerateCase, *, question_first: bool) -> Any:
  """Encodes a case with transformers; all frames of the videos are shown."""
  turns = shared.messages(case, question_first=question_first)
  return shared.reference_inputs(processor, [turns], case.metadata, do_sample_frames=False)


def reference_model(directory: pathlib.Path) -> Any:
  """Loads transformers' model from a directory, in float32; it needs no code of ours."""
  return shared.reference_model(directory, trust_remote_code=False)


def reference_reply(model: Any, inputs: Any) -> tuple[list[int], float]:
  """See qwen2_5_vl_generate.reference_reply."""
  return shared.reference_reply(model, inputs)


def reference_inputs(encoded: prompts.EncodedPrompt, model: Any) -> Any:
  """What transformers' model takes for a prompt, from our encoding of it."""
  del model
  patches = iter(frame.vision.patches for frame in encoded.frames if frame.vision is not None)
  media = []
  for grid in encoded.grids:
    kind = "image" if grid.kind == records.Kind.IMAGE else "video"
    part = (kind, grid.frames, grid.height, grid.width)
    media.append((part, np.stack(list(itertools.islice(patches, grid.frames)))))
  return shared_models.media_inputs(encoded.tokens, media, models.normalised)


def main() -> None:
  import torch
  import transformers

  from tests.train import exported_cases

  golden = {"transformers": transformers.__version__, "torch": torch.__version__}
  for case in CASES:
    with tempfile.TemporaryDirectory() as directory:
      made = exported_cases.export(case, pathlib.Path(directory))
      model = reference_model(made.path)
      if processors.has_torchvision():
        first = made.context.config.model.question_first
        processor = transformers.AutoProcessor.from_pretrained(made.path)
        inputs = case_inputs(processor, case, question_first=first)
      else:
        inputs = reference_inputs(exported_cases.encode(made, case), model)
      tokens, margin = reference_reply(model, inputs)
    golden[case.name] = {
      "prompt": inputs["input_ids"][0].tolist(),
      "tokens": tokens,
      "margin": round(margin, 4),
    }
  FILE.write_text(json.dumps(golden, indent=1) + "\n")
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
