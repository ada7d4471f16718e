"""Golden replies: what transformers says about a video with an exported directory, greedily.

Our sampler must say the same, token for token. Weights and pixels are drawn from a seed on both
sides. To write qwen2_5_vl_generate.json (needs torch, torchvision and transformers):

    PYTHONPATH=.:tests python tests/golden/qwen2_5_vl_generate.py
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import tempfile
from typing import Any
import zlib

from golden import qwen2_5_vl as models
from golden import qwen2_5_vl_processor as processors
import ml_collections
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

from vr_jax import recipe_config
from vr_jax.models.common import conversation
from vr_jax.models.qwen2_5_vl import presets
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib

FILE = pathlib.Path(__file__).with_suffix(".json")
ROOT = FILE.parents[2]
SCALE = 2.0  # of the deviation of matrices: replies are then varied, and ties rare
QUESTION = "Which colour has the lamp at 3 s?\nA. red\nB. blue"
WIDE = presets.RELEASES["Qwen2.5-VL-3B-Instruct"]
TOKENIZER = tokenizer_lib.train_tokenizer([], models.VOCAB - 2)  # two rows belong to no token


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCase:
  """A recipe's model with random weights, and a video of random pixels.

  layers: (text, vision), fewer than those of the recipe's model; None: as many.
  frames: number, height and width (pixels) of the video's frames; seconds: between two frames.
  """

  name: str
  recipe: str
  layers: tuple[int, int] | None
  shape: tuple[int, int, int]
  seconds: float
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  new_tokens: int = 16

  def config(self, directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The recipe's config. directory: holds the files that `write_source` writes."""
    config = recipe_config.load(f"{ROOT / self.recipe}").unlock()
    config.model.dtype = config.model.lora.base_dtype = "float32"
    config.model.resize_backend = "torchvision"
    config.model.tokenizer = str(directory / "tokenizer.json")
    # Merged adapters would be rounded in bfloat16; the weights read from a file are not.
    config.export.dtype = "bfloat16" if self.layers else "float32"
    config.rl.max_new_tokens = self.new_tokens
    if config.model.pretrained:
      config.model.pretrained = str(directory)
    else:
      config.model.architecture.text_config.vocab_size = models.VOCAB
    for name, value in self.fields.items():
      config.update_from_flattened_dict({name: value})
    return config

  def model_fields(self) -> dict[str, Any]:
    """The config.json of the model: that of the release, or nested, of the architecture."""
    config = recipe_config.load(f"{ROOT / self.recipe}")
    if not config.model.pretrained:
      fields = config.model.architecture.to_dict()
      fields["text_config"]["vocab_size"] = models.VOCAB
      return {**fields, **models.SPECIAL}
    assert self.layers
    text, vision = self.layers
    fields = {**WIDE, **models.SPECIAL, "vocab_size": models.VOCAB, "num_hidden_layers": text}
    blocks = {"depth": vision, "fullatt_block_indexes": [vision - 1]}
    return {**fields, "vision_config": {**WIDE["vision_config"], **blocks}}

  def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by their released names."""
    shapes = models.tensor_shapes(self.model_fields())
    return {
      name if name.startswith(("visual.", "lm_head.")) else f"model.{name}": shape
      for name, shape in shapes.items()
    }

  def write_source(self, directory: pathlib.Path) -> None:
    """Writes random weights, config.json and tokenizer as a release has them.

    Weights have one of 256 values, which are drawn fast and lose nothing in bfloat16.
    """
    fields, tensors = self.model_fields(), {}
    (directory / "config.json").write_text(json.dumps(fields))
    for full, shape in self.tensor_shapes().items():
      name = full.removeprefix("model.")
      rng = np.random.default_rng([zlib.crc32(self.name.encode()), zlib.crc32(name.encode())])
      deviation = SCALE / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.1
      levels = np.linspace(-1, 1, 256) * 3**0.5 * deviation + ("norm" in name or "ln_q" in name)
      tensors[full] = levels.astype(ml_dtypes.bfloat16)[rng.integers(0, 256, shape, np.uint8)]
    safetensors.save_file(tensors, directory / "model.safetensors")
    TOKENIZER.save(str(directory / "tokenizer.json"))

  def frames(self) -> np.ndarray:
    """Pixels [frames, height, width, 3] of the video."""
    return draw_frames(self.name, self.shape)

  @property
  def times(self) -> np.ndarray:
    """Seconds of each frame."""
    return self.seconds * np.arange(self.shape[0])

  def question(self, *, question_first: bool) -> conversation.Message:
    """The question about the video."""
    video = conversation.VideoFrames(frames=self.frames(), timestamps=self.times)
    return conversation.question(QUESTION, video, question_first)


def draw_frames(name: str, shape: tuple[int, int, int]) -> np.ndarray:
  """Draws pixels [frames, height, width, 3] in squares of 7, keyed by name."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  count, height, width = shape
  squares = rng.integers(0, 256, (count, -(-height // 7), -(-width // 7), 3), np.uint8)
  return squares.repeat(7, axis=1).repeat(7, axis=2)[:, :height, :width]


TINY = {"layers": None, "new_tokens": 24}
CASES = (
  GenerateCase(
    name="tiny", recipe="configs/grpo.py:tiny", shape=(8, 112, 112), seconds=2.5, **TINY
  ),
  GenerateCase(
    name="adapters",
    recipe="configs/moss_chatv.py:tiny",
    shape=(7, 90, 130),
    seconds=0.75,
    fields={
      "model.question_first": False,
      "model.system": 'Say "yes".\n{{No}} tools, ü.',
      "model.lora.rank": 3,
      "model.lora.text": ("query", "value", "down"),
      "model.lora.vision": ("qkv",),
    },
    **TINY,
  ),
  GenerateCase(
    name="long_time",
    recipe="configs/videop2r.py:tiny",
    shape=(4, 60, 60),
    seconds=20.3,
    fields={"model.rope_after_video": "largest"},
    **TINY,
  ),
  GenerateCase(
    name="wide_3b",
    recipe="configs/grpo.py:3b",
    layers=(2, 2),
    shape=(8, 100, 150),
    seconds=1.5,
    fields={"model.max_pixels": 12 * 28 * 28},
  ),
)


def messages(case: GenerateCase, *, question_first: bool) -> list[dict[str, Any]]:
  """The conversation, as users of transformers write it."""
  content = []
  for part in case.question(question_first=question_first).parts:
    if isinstance(part, str):
      content.append({"type": "text", "text": part})
    elif isinstance(part, conversation.Image):
      content.append({"type": "image", "image": part.pixels})
    else:
      content.append({"type": "video", "video": part.frames})
  return [{"role": "user", "content": content}]


def reference_processor(directory: pathlib.Path) -> Any:
  """Loads transformers' processor from a directory.

  Without torchvision, pixels are by `FrameByFrame`; all else is of the directory.
  """
  import transformers

  if processors.has_torchvision():
    return transformers.AutoProcessor.from_pretrained(directory)
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  fields = json.loads((directory / "video_preprocessor_config.json").read_text())
  template = (directory / "chat_template.jinja").read_text()
  return processors.without_torchvision(tokenizer, template, fields["size"])


def reference_model(directory: pathlib.Path, *, trust_remote_code: bool = True) -> Any:
  """Loads transformers' model from a directory, in float32."""
  import transformers

  return transformers.AutoModelForImageTextToText.from_pretrained(
    directory,
    dtype="float32",
    attn_implementation="eager",
    trust_remote_code=trust_remote_code,
  ).eval()


def reference_inputs(
  processor: Any, conversations: Sequence[Any], metadata: Sequence[dict[str, Any]], **options: Any
) -> Any:
  """Encodes a batch of conversations with transformers. metadata: of each video, in order."""
  from transformers import video_utils

  metadata = [video_utils.VideoMetadata(**one) for one in metadata]
  videos = {"video_metadata": metadata, "input_data_format": "channels_last", **options}
  return processor.apply_chat_template(
    conversations,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={
      "padding": True,
      "videos_kwargs": videos,
      "images_kwargs": {"input_data_format": "channels_last"},
    },
  )


def case_inputs(processor: Any, case: GenerateCase, *, question_first: bool) -> Any:
  """Encodes a case with transformers; all frames of the video are shown."""
  metadata = {"total_num_frames": case.shape[0], "fps": 1 / case.seconds}
  conversation = messages(case, question_first=question_first)
  return reference_inputs(processor, [conversation], [metadata], do_sample_frames=False)


def reference_reply(model: Any, inputs: Any) -> tuple[list[int], float]:
  """Tokens of the greedy reply, and the least margin of a token to the next best one."""
  found = model.generate(**inputs, output_scores=True, return_dict_in_generate=True)
  tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
  best = [scores[0].topk(2).values for scores in found.scores]
  return tokens, min(float(first - second) for first, second in best)


def main() -> None:
  import torch
  import transformers

  from tests.train import exported_cases

  if not processors.has_torchvision():
    raise SystemExit("torchvision: not installed, but AutoProcessor needs it")
  golden = {"transformers": transformers.__version__, "torch": torch.__version__}
  for case in CASES:
    with tempfile.TemporaryDirectory() as directory:
      made = exported_cases.export(case, pathlib.Path(directory))
      question_first = made.context.config.model.question_first
      inputs = case_inputs(reference_processor(made.path), case, question_first=question_first)
      tokens, margin = reference_reply(reference_model(made.path), inputs)
    golden[case.name] = {
      "prompt": inputs["input_ids"][0].tolist(),
      "tokens": tokens,
      "margin": round(margin, 4),
    }
  FILE.write_text(json.dumps(golden, indent=1) + "\n")
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
