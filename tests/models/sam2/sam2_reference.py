"""transformers' Sam2VideoModel with random weights, and what it says at every stage of tracking."""

from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.sam2_video import modeling_sam2_video as modeling

from vr_jax.models.sam2 import config as config_lib

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def make(
  config: config_lib.Sam2Config, *, seed: int, object_score: float, spread: float, clear: float
) -> transformers.Sam2VideoModel:
  """A model all of whose parameters are noise; its own first values are zero where faults hide.

  object_score: bias of the logit that an object is in sight; spread: factor of its weights.
  clear: factor of the logits of the mask for clear prompts.
  """
  fields = config_lib.to_dict(config)
  model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**fields)).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
      if "inv_freq" in name or "position_ids" in name:
        continue
      noise = torch.randn(value.shape, generator=generator)
      if "positional_embedding" in name:
        value.copy_(noise)
      elif value.ndim >= 2 and name.endswith(".weight"):
        value.copy_(noise / (value[0].numel() ** 0.5))
      elif name.endswith(".weight") or name.endswith(".scale"):
        value.copy_(1 + 0.2 * noise)
      else:
        value.copy_(0.2 * noise)
    head = model.mask_decoder.pred_obj_score_head.proj_out
    head.weight.mul_(spread)
    head.bias.fill_(object_score)
    for value in model.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters():
      value.mul_(clear)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(
      model.shared_image_embedding.positional_embedding
    )
  return model


def pixel_values(frames: np.ndarray) -> torch.Tensor:
  """Frames of the model's size as its processor hands them on."""
  values = (frames.astype(np.float32) / 255 - MEAN.astype(np.float32)) / STD.astype(np.float32)
  return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32))


class Session:
  """A video in the reference, with objects 0, 1, …"""

  def __init__(self, model: transformers.Sam2VideoModel, frames: np.ndarray):
    self.model = model
    height, width = frames.shape[1:3]
    self.state = modeling.Sam2VideoInferenceSession(
      video=pixel_values(frames), video_height=height, video_width=width, dtype=torch.float32
    )

  def prompt(self, frame: int, points: dict[int, Any], masks: dict[int, np.ndarray] | None = None):
    """Gives points [n, 2] with labels, or masks, of objects on one frame, and looks at it."""
    for number, (place, labels) in points.items():
      index = self.state.obj_id_to_idx(number)
      inputs = {
        "point_coords": torch.tensor(place, dtype=torch.float32)[None, None],
        "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
      }
      self.state.add_point_inputs(index, frame, inputs)
    for number, mask in (masks or {}).items():
      index = self.state.obj_id_to_idx(number)
      self.state.add_mask_inputs(index, frame, torch.tensor(mask, dtype=torch.float32)[None, None])
    self.state.obj_with_new_inputs = [*points, *(masks or {})]
    self.model(self.state, frame_idx=frame)

  def run(self, start: int, *, reverse: bool) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Propagates; returns the mask logits and scores of each frame."""
    found = {}
    for out in self.model.propagate_in_video_iterator(
      self.state, start_frame_idx=start, reverse=reverse
    ):
      masks, scores = out.pred_masks, out.object_score_logits
      assert masks is not None and scores is not None
      found[out.frame_idx] = masks[:, 0].numpy().copy(), scores[:, 0].numpy().copy()
    return found

  def kept(self) -> dict[int, dict[str, dict[int, dict[str, np.ndarray]]]]:
    """A copy of all that the reference keeps: by object, kind of frame, frame and name."""
    return {
      number: {
        kind: {
          frame: {name: value.float().numpy().copy() for name, value in output.items()}
          for frame, output in frames.items()
        }
        for kind, frames in outputs.items()
      }
      for number, outputs in self.state.output_dict_per_obj.items()
    }
