"""The PyTorch side of the comparison of trackers: transformers' Sam2VideoModel, on the CPU."""

from collections.abc import Sequence
import pathlib

from jaxtyping import Float, UInt8
import numpy as np
import torch
import transformers
from transformers.models.sam2_video import modeling_sam2_video as modeling

from vr_jax.models.sam2 import image_encoder
from vr_jax.models.sam2 import prompts as prompts_lib


def load(directory: pathlib.Path) -> transformers.Sam2VideoModel:
  """Loads a model that `sam2.save` wrote, with transformers' default attention."""
  return transformers.Sam2VideoModel.from_pretrained(directory).eval()


def track(
  model: transformers.Sam2VideoModel,
  frames: UInt8[np.ndarray, "frames side side 3"],
  boxes: Sequence[tuple[float, float, float, float]],
) -> Float[np.ndarray, "objects frames mask_side mask_side"]:
  """Mask logits of objects, given their boxes on the first frame. frames: of the model's size."""
  mean = torch.tensor(image_encoder.MEAN)[:, None, None]
  std = torch.tensor(image_encoder.STD)[:, None, None]
  pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - mean) / std
  height, width = frames.shape[1:3]
  session = modeling.Sam2VideoInferenceSession(
    video=pixels, video_height=height, video_width=width, dtype=torch.float32
  )
  for index, box in enumerate(boxes):
    session.obj_id_to_idx(index)
    corners = torch.tensor(box, dtype=torch.float32).reshape(1, 1, 2, 2)
    labels = torch.tensor([[[prompts_lib.TOP_LEFT, prompts_lib.BOTTOM_RIGHT]]], dtype=torch.int32)
    session.add_point_inputs(index, 0, {"point_coords": corners, "point_labels": labels})
  session.obj_with_new_inputs = list(range(len(boxes)))
  model(session, frame_idx=0)
  found = []
  for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
    assert output.pred_masks is not None
    found.append(output.pred_masks[:, 0].numpy())
  return np.stack(found, axis=1)
