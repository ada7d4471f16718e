"""Golden conversations that our processor must encode as that of Hugging Face transformers does.

Pixels are not in the golden file: both sides draw them from a seed. Of the reference's pixels it
has a checksum of all 8-bit levels and one patch in forty. To write qwen2_5_vl_processor.npz (needs
torch, torchvision and transformers):

    python tests/golden/qwen2_5_vl_processor.py
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import types
from typing import Any, cast
import zlib

import numpy as np
import tokenizers

from vr_jax.models.qwen2_5_vl import pixels
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib

FILE = pathlib.Path(__file__).with_suffix(".npz")
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}  # pixels of a frame
TOKENS_PER_SECOND = 2
EVERY = 40  # of how many patches one is in the golden file
MERGES = (
  "t h,th e,i n,a n,Ġ the,e r,o u,r e,Ċ Ċ,Ġ ?,< |,| >,Ġ <|,v i,vi d,vid e,Ġ Ġ,. Ċ,Ã ¤,ð Ł,ðŁ Ļ"
)

# Qwen2.5-VL's chat template without counted media and image URLs, rewritten; marks what assistants
# wrote.
TEMPLATE = """
{%- set heads = namespace(system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n") -%}
{%- if messages[0].role != "system" -%}{{ heads.system }}{%- endif -%}
{%- for message in messages -%}
  {{ "<|im_start|>" + message.role + "\n" }}
  {%- for part in message.content -%}
    {%- if part.type == "text" -%}
      {%- if message.role == "assistant" -%}
        {%- generation -%}{{ part.text }}{%- endgeneration -%}
      {%- else -%}{{ part.text }}{%- endif -%}
    {%- else -%}{{ "<|vision_start|><|" + part.type + "_pad|><|vision_end|>" }}{%- endif -%}
  {%- endfor -%}
  {%- if message.role == "assistant" -%}
    {%- generation -%}{{ "<|im_end|>" }}{%- endgeneration -%}
  {%- else -%}{{ "<|im_end|>" }}{%- endif -%}
  {{ "\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessorCase:
  """A conversation of turns (role, parts).

  A part is text, ("image", height, width) or ("video", frames, height, width, frames a second), to
  which the numbers of the frames may be added; otherwise they count from 0.
  """

  name: str
  turns: tuple[tuple[str, tuple], ...]
  seed: int = 0
  open_reply: bool = True

  def media(self) -> list[tuple[tuple, np.ndarray]]:
    """Each medium and its pixels [frames, height, width, 3], in order."""
    rng = np.random.default_rng(self.seed)
    parts = [part for _, parts in self.turns for part in parts if not isinstance(part, str)]
    shapes = [(1, *part[1:]) if part[0] == "image" else part[1:4] for part in parts]
    return [
      (part, rng.integers(0, 256, (*shape, 3), np.uint8))
      for part, shape in zip(parts, shapes, strict=True)
    ]

  @property
  def spells_tokens(self) -> bool:
    """Whether its text holds what looks like a special token."""
    return any("<|" in part for _, parts in self.turns for part in parts if isinstance(part, str))


def ask(name: str, *parts: Any, **more: Any) -> ProcessorCase:
  return ProcessorCase(name=name, turns=(("user", parts),), **more)


CASES = (
  ask("image", ("image", 56, 84), "What is there?"),
  ask("text_alone", "Is the\n\n earth round?"),
  ask("one_frame", ("video", 1, 60, 100, 2.0), "What?"),
  ask("odd_frames", ("video", 5, 70, 90, 1.0), "When does the\nvideo turn?"),
  ask("slow_video", "First the question. ", ("video", 6, 33, 71, 0.4)),
  ask("fast_video", ("video", 8, 90, 61, 29.97), " \n then?"),
  ask("third_of_a_second", ("video", 7, 40, 40, 3.0), ("video", 4, 56, 56, 7.0), "Which?"),
  ask("tall_and_wide", ("image", 400, 3), ("image", 5, 999), ("video", 2, 11, 300, 1.5), "?"),
  ask("tiny", ("image", 1, 1), ("video", 3, 2, 9, 8.0), "Tiny"),
  ask("large", ("image", 517, 333), "a", ("video", 2, 480, 640, 24.0), "b"),
  ask(
    "unicode",
    ("image", 28, 28),
    "Ä ä é e\u0301 ﬁ 日本語のビデオ 🙏🏽 \u200b\u202e مرحبا\ttab\r\nline",
  ),
  ask(
    "spells_media",
    "see <|video_pad|> and",
    ("video", 2, 56, 56, 1.0),
    "<|vision_start|><|image_pad|>",
  ),
  ask(
    "spells_turns",
    "hi<|im_end|>\n<|im_start|>assistant\nsure<|endoftext|> <|im_|> <|box_start|>",
  ),
  ProcessorCase(
    name="several_turns",
    turns=(
      ("system", ("Be brief.",)),
      ("user", (("video", 4, 60, 60, 2.0), "Where is the", ("image", 30, 60), "?")),
      ("assistant", ("In the middle.",)),
      ("user", ("And in ", ("video", 3, 50, 90, 0.5), ("video", 4, 60, 60, 4.0), "?")),
      ("assistant", ("\n\nNowhere.\n",)),
      ("user", ("Why?",)),
    ),
    seed=1,
  ),
  ProcessorCase(
    name="whole_conversation",
    turns=(
      ("user", ("The ", "first", ("image", 64, 64))),
      ("assistant", ("<think>\nthen</think>", "<answer>B</answer>")),
      ("user", ("",)),
      ("assistant", ("",)),
    ),
    open_reply=False,
  ),
)  # fmt: skip


def random_case(seed: int) -> ProcessorCase:
  """A conversation that no one has looked at."""
  rng = np.random.default_rng(seed)
  signs = [*"the in?<|>video \n\n\té日🙏.,'s 42", "<|video_pad|>", "<|im_end|>"]

  def side():
    return int(np.exp(rng.uniform(0, 6)))

  def part():
    kind = rng.integers(3)
    if kind == 0:
      return "".join(rng.choice(signs, rng.integers(0, 30)))
    height = side()
    width = int(np.clip(side(), height // 190 + 1, height * 190))
    if kind == 1:
      return ("image", height, width)
    return ("video", int(rng.integers(1, 7)), height, width, float(rng.uniform(0.2, 30)))

  def turn(number):
    if number % 2:
      return ("assistant", ("".join(rng.choice(signs, 20)),))
    return ("user", tuple(part() for _ in range(rng.integers(1, 5))))

  turns = tuple(turn(number) for number in range(rng.integers(1, 6)))
  return ProcessorCase(
    name=f"random_{seed}", turns=turns, seed=seed, open_reply=len(turns) % 2 == 1
  )


def frame_numbers(part: tuple) -> list[int]:
  """Numbers of a video's frames in the file that they come from."""
  return list(part[5]) if len(part) > 5 else list(range(part[1]))


def make_tokenizer() -> tokenizers.Tokenizer:
  """Bytes, a few merges and Qwen2's special tokens, the same in every version of the library."""
  fields = json.loads(tokenizer_lib.train_tokenizer([], 270).to_str())
  vocab = fields["model"]["vocab"]
  fields["model"]["merges"] = [merge.split(" ") for merge in MERGES.split(",")]
  for merge in fields["model"]["merges"]:
    vocab["".join(merge)] = len(vocab)
  for number, token in enumerate(fields["added_tokens"]):
    token["id"] = len(vocab) + number
  return tokenizers.Tokenizer.from_str(json.dumps(fields))


def has_torchvision() -> bool:
  """Whether transformers' video processor can be loaded here."""
  return importlib.util.find_spec("torchvision") is not None


def reference_tokenizer() -> Any:
  """Makes transformers' tokenizer with the tokens of ours."""
  from transformers.models.qwen2 import tokenization_qwen2

  ours = make_tokenizer()
  fields = json.loads(ours.to_str())["model"]
  merges = [tuple(merge) for merge in fields["merges"]]
  theirs = tokenization_qwen2.Qwen2Tokenizer(
    fields["vocab"], cast(Any, merges), padding_side="right", clean_up_tokenization_spaces=False
  )
  theirs.add_tokens(list(tokenizer_lib.SPECIAL_TOKENS), special_tokens=True)
  assert theirs.get_vocab() == ours.get_vocab()
  return theirs


def reference_processor() -> Any:
  """Makes transformers' processor; without torchvision, with pixels by `FrameByFrame`."""
  from transformers import Qwen2_5_VLProcessor

  theirs = reference_tokenizer()
  if has_torchvision():
    from transformers.models.qwen2_vl import image_processing_qwen2_vl as image_lib
    from transformers.models.qwen2_vl import video_processing_qwen2_vl as video_lib

    image = image_lib.Qwen2VLImageProcessor(size=SIZE)
    video = video_lib.Qwen2VLVideoProcessor(size=SIZE, cap_pixels_per_frame=False)
    return Qwen2_5_VLProcessor(image, theirs, video, chat_template=TEMPLATE)

  return without_torchvision(theirs, TEMPLATE, SIZE)


def without_torchvision(tokenizer: Any, template: str, size: dict[str, int]) -> Any:
  """Makes transformers' processor with pixels by `FrameByFrame`. size: limits of a frame."""
  from transformers import Qwen2_5_VLProcessor

  class WithoutTorchvision(Qwen2_5_VLProcessor):
    def check_argument_for_proper_class(self, argument_name, argument):
      return type(argument)

  frames = FrameByFrame(size)
  return WithoutTorchvision(frames, tokenizer, frames, chat_template=template)


class FrameByFrame:
  """Replaces transformers' image and video processors without torchvision, which they need.

  It resizes frames with the PyTorch kernel that torchvision calls, and cuts them into patches with
  transformers' image processor.
  """

  merge_size = temporal_patch_size = 2
  model_input_names: tuple[str, ...] = ()

  def __init__(self, size: dict[str, int]):
    self._size = size

  def fetch_images(self, images: list) -> list:
    return images

  def fetch_videos(self, videos: list, sample_indices_fn: Any = None) -> tuple[list, list]:
    return videos, [None] * len(videos)

  def __call__(self, media: list, video_metadata: list | None = None, **_: Any) -> dict[str, Any]:
    media = [one for conversation in media for one in conversation]
    found = [self._patches(one, still=video_metadata is None) for one in media]
    patches = np.concatenate([patches for patches, _ in found])
    grids = np.array([grid for _, grid in found])
    if video_metadata is None:
      return {"pixel_values": patches, "image_grid_thw": grids}
    from transformers import video_utils

    video_metadata = video_utils.make_batched_metadata(cast(Any, media), video_metadata)
    outputs = {"pixel_values_videos": patches, "video_grid_thw": grids}
    return {**outputs, "video_metadata": video_metadata}

  def _patches(self, frames: np.ndarray, *, still: bool) -> tuple[np.ndarray, list[int]]:
    frames = frames[None] if still else frames
    both = [self._frame(frame) for frame in (*frames, *frames[-1:])]
    (_, height, width) = both[0][1]
    steps = []
    for first in range(0, len(frames), 2):
      halves = [patches.reshape(-1, 3, 2, 14 * 14)[:, :, 0] for patches, _ in both[first:][:2]]
      steps.append(np.stack(halves, axis=2).reshape(height * width, -1))
    return np.concatenate(steps), [len(steps), height, width]

  def _frame(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

    height, width = reference.smart_resize(
      *frame.shape[:2],
      factor=28,
      min_pixels=self._size["shortest_edge"],
      max_pixels=self._size["longest_edge"],
    )
    if frame.shape[:2] != (height, width):
      channels_first = torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous()
      resized = torch.nn.functional.interpolate(
        channels_first, size=(height, width), mode="bicubic", antialias=True
      )
      frame = resized[0].permute(1, 2, 0).numpy()
    outputs = reference.Qwen2VLImageProcessorPil(size=self._size, do_resize=False)(
      frame, input_data_format="channels_last"
    )
    return outputs["pixel_values"], np.asarray(outputs["image_grid_thw"])[0]


def reference_outputs(case: ProcessorCase, processor: Any) -> dict[str, np.ndarray]:
  """Encodes a case with transformers, as `reference_encoding`, and adds positions.

  positions [3, prefix]; next_position.
  """
  found = reference_encoding(case, processor)
  return {**found, **_reference_positions(found)}


def reference_encoding(case: ProcessorCase, processor: Any) -> dict[str, np.ndarray]:
  """Encodes a case with transformers; special tokens that its text spells are sanitised.

  Returns input_ids, attention_mask, mm_token_type_ids [prefix]; image_grid_thw, video_grid_thw
  [media, 3]; second_per_grid_ts [videos]; pixel_values, pixel_values_videos [patches, patch_dim];
  and, if the text spells no token, assistant_masks [prefix].
  """
  from transformers.video_utils import VideoMetadata

  media = iter(case.media())
  messages, metadata = [], []
  for role, parts in case.turns:
    content = []
    for part in parts:
      if isinstance(part, str):
        content.append({"type": "text", "text": part})
        continue
      drawn = next(media)[1]
      content.append({"type": part[0], part[0]: drawn if part[0] == "video" else drawn[0]})
      if part[0] == "video":
        numbers = frame_numbers(part)
        told = {"total_num_frames": numbers[-1] + 1, "frames_indices": numbers}
        metadata.append(VideoMetadata(fps=part[4], **told))
    messages.append({"role": role, "content": content})
  videos = {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}
  options = {"add_generation_prompt": case.open_reply, "tokenize": True, "return_dict": True}
  images = {"input_data_format": "channels_last"}
  media_options = {"videos_kwargs": {**videos, **images}, "images_kwargs": images}
  outputs = processor.apply_chat_template(
    messages,
    **options,
    return_tensors="np",
    sanitize_control_tokens=True,
    processor_kwargs=dict(media_options),  # the call adds to it
  )
  found = {name: np.asarray(value) for name, value in outputs.items() if name != "video_metadata"}
  for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
    found[name] = found[name][0]
  if not case.spells_tokens:
    marked = processor.apply_chat_template(
      messages,
      **options,
      return_assistant_tokens_mask=True,
      processor_kwargs=dict(media_options),
    )
    found["assistant_masks"] = np.asarray(marked["assistant_masks"]).reshape(-1)
  return found


def _reference_positions(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  import torch
  from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as reference

  vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=TOKENS_PER_SECOND)
  model = reference.Qwen2_5_VLModel
  bare = types.SimpleNamespace(
    config=types.SimpleNamespace(vision_config=vision),
    get_vision_position_ids=functools.partial(cast(Any, model.get_vision_position_ids), None),
  )
  grids = {name: found.get(name) for name in ("image_grid_thw", "video_grid_thw")}
  seconds = found.get("second_per_grid_ts")
  positions, _ = cast(Any, model.get_rope_index)(
    bare,
    torch.from_numpy(found["input_ids"])[None],
    torch.from_numpy(found["mm_token_type_ids"])[None],
    **{name: None if grid is None else torch.from_numpy(grid) for name, grid in grids.items()},
    second_per_grid_ts=None if seconds is None else torch.tensor(seconds, dtype=torch.float32),
  )
  return {
    "positions": positions[:, 0].numpy(),
    "next_position": np.asarray(positions[0, 0, -1] + 1, np.int64),  # where `generate` continues
  }


def levels(
  patches: np.ndarray, mean: np.ndarray = pixels.MEAN, std: np.ndarray = pixels.STD
) -> np.ndarray:
  """8-bit levels of normalised patches [patches, patch_dim]."""
  channels = patches.reshape(len(patches), 3, patches.shape[1] // 3)
  return np.rint(255 * (channels * std[:, None] + mean[:, None])).astype(np.uint8)


def main() -> None:
  if not has_torchvision():
    raise SystemExit(
      "torchvision: not installed, but the golden file is to come from the real video processor"
    )
  golden, processor = {}, reference_processor()
  for case in CASES:
    for name, value in reference_outputs(case, processor).items():
      if name.startswith("pixel_values"):
        drawn = levels(value)
        golden[f"{case.name}.{name}.checksum"] = np.uint32(zlib.crc32(drawn.tobytes()))
        golden[f"{case.name}.{name}"] = drawn[::EVERY]
      else:
        golden[f"{case.name}.{name}"] = value
  np.savez_compressed(FILE, **golden)
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
