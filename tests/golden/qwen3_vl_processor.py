"""Golden conversations that our processor must encode as transformers' Qwen3VLProcessor does.

Cases, tokenizer and form of the file are those of qwen2_5_vl_processor.py. To write
qwen3_vl_processor.npz (needs torch, torchvision and transformers):

    PYTHONPATH=.:tests python tests/golden/qwen3_vl_processor.py
"""

import dataclasses
import functools
import pathlib
import types
from typing import Any, cast
import zlib

from golden import qwen2_5_vl_processor as shared
import numpy as np

from vr_jax.models.qwen3_vl import pixels

FILE = pathlib.Path(__file__).with_suffix(".npz")
IMAGE_SIZE = {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 16}  # pixels of an image
VIDEO_SIZE = {"shortest_edge": 4 * 64 * 64, "longest_edge": 32 * 32 * 40}  # of all frames
# Only temporal patches stand between tokens that start and end vision: transformers 5 would leave
# those of the released template around the whole video, too.
TEMPLATE = shared.TEMPLATE.replace(
  '{{ "<|vision_start|><|" + part.type + "_pad|><|vision_end|>" }}',
  '{%- if part.type == "video" -%}{{ "<|video_pad|>" }}'
  '{%- else -%}{{ "<|vision_start|><|image_pad|><|vision_end|>" }}{%- endif -%}',
)

CASES = (
  *shared.CASES,
  shared.ask("uneven_times", ("video", 6, 90, 70, 10.0, (3, 4, 20, 80, 81, 1203)), "When?"),
  shared.ask(
    "later_spans",
    "First\n",
    ("video", 3, 64, 96, 29.97, (300, 331, 400)),
    "then",
    ("video", 1, 200, 40, 24.0, (719,)),
  ),
  shared.ask("long_video", ("video", 21, 60, 44, 2.0), "?"),
)
random_case = shared.random_case


def reference_processor() -> Any:
  """Makes transformers' processor."""
  from transformers import Qwen3VLProcessor
  from transformers.models.qwen2_vl import image_processing_qwen2_vl as image_lib
  from transformers.models.qwen3_vl import video_processing_qwen3_vl as video_lib

  assert TEMPLATE != shared.TEMPLATE
  half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
  image = image_lib.Qwen2VLImageProcessor(size=IMAGE_SIZE, patch_size=16, **half)
  video = video_lib.Qwen3VLVideoProcessor(size=VIDEO_SIZE, cap_pixels_per_frame=False)
  return Qwen3VLProcessor(image, shared.reference_tokenizer(), video, chat_template=TEMPLATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Doubled(shared.ProcessorCase):
  """A case whose single frames are shown twice, since transformers refuses videos of one frame."""

  def media(self) -> list[tuple[tuple, np.ndarray]]:
    return [
      (part, np.repeat(drawn, 2, axis=0) if part[0] == "video" and len(drawn) == 1 else drawn)
      for part, drawn in super().media()
    ]


def reference_outputs(case: shared.ProcessorCase, processor: Any) -> dict[str, np.ndarray]:
  """Encodes a case with transformers: see qwen2_5_vl_processor.reference_outputs."""
  found = shared.reference_encoding(_Doubled(**vars(case)), processor)
  return {**found, **_reference_positions(found)}


def _reference_positions(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  import torch
  from transformers.models.qwen3_vl import modeling_qwen3_vl as reference

  model = reference.Qwen3VLModel
  vision = types.SimpleNamespace(spatial_merge_size=2)
  bare = types.SimpleNamespace(
    config=types.SimpleNamespace(vision_config=vision),
    get_vision_position_ids=functools.partial(cast(Any, model.get_vision_position_ids), None),
  )
  grids = {name: found.get(name) for name in ("image_grid_thw", "video_grid_thw")}
  positions, _ = cast(Any, model.get_rope_index)(
    bare,
    torch.from_numpy(found["input_ids"])[None],
    torch.from_numpy(found["mm_token_type_ids"])[None],
    **{name: None if grid is None else torch.from_numpy(grid) for name, grid in grids.items()},
  )
  return {
    "positions": positions[:, 0].numpy(),
    "next_position": np.asarray(positions.max() + 1, np.int64),  # where `generate` continues
  }


def levels(patches: np.ndarray) -> np.ndarray:
  """8-bit levels of normalised patches [patches, patch_dim]."""
  return shared.levels(patches, pixels.MEAN, pixels.STD)


def main() -> None:
  golden, processor = {}, reference_processor()
  for case in CASES:
    for name, value in reference_outputs(case, processor).items():
      if name.startswith("pixel_values"):
        drawn = levels(value)
        golden[f"{case.name}.{name}.checksum"] = np.uint32(zlib.crc32(drawn.tobytes()))
        golden[f"{case.name}.{name}"] = drawn[:: shared.EVERY]
      else:
        golden[f"{case.name}.{name}"] = value
  np.savez_compressed(FILE, **golden)
  print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
  main()
