"""The PyTorch side of comparisons: transformers' Qwen2.5-VL, with a copy of the prompt in each row.

TRL, Video-R1 and EasyR1 lay out their batches in this way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Int, PyTree, UInt8
import numpy as np
import torch
import transformers

from benchmarks import workload
from vr_jax import records
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import prompts, weight_mapping
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels

Inputs = dict[str, torch.Tensor]


def device() -> torch.device:
  """The accelerator, where JAX has one too; else the CPU."""
  accelerated = jax.default_backend() != "cpu" and torch.cuda.is_available()
  return torch.device("cuda" if accelerated else "cpu")


def load(directory: Path) -> transformers.PreTrainedModel:
  """Loads a model that `Work.save` wrote, in the dtype of its file, with sdpa attention."""
  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    directory, attn_implementation="sdpa"
  )
  return model.to(device()).train()


def inputs(
  work: workload.Work, tokens: Int[Array, "prompts group time"] | None, group: int = 0
) -> Inputs:
  """The model's inputs: a row for each reply, its prompt and then the reply.

  tokens: of the replies; None for prompts alone, `group` rows each.
  """
  group = tokens.shape[1] if tokens is not None else group
  words = np.repeat(np.asarray(work.prompt.tokens), group, axis=0)
  if tokens is not None:
    words = np.concatenate([words, np.asarray(tokens).reshape(-1, tokens.shape[2])], axis=1)
  ids = torch.from_numpy(words).long()
  media = [np.concatenate([frame.vision.patches for frame in one.frames]) for one in work.encoded]
  grids = [[one.grids[0].frames, one.grids[0].height, one.grids[0].width] for one in work.encoded]
  fields = {
    "input_ids": ids,
    "attention_mask": torch.ones_like(ids),
    "mm_token_type_ids": 2 * (ids == work.config.video_token_id).int(),
    "pixel_values_videos": _normalised(np.concatenate(np.repeat(media, group, axis=0))),
    "video_grid_thw": torch.tensor(np.repeat(grids, group, axis=0)),
    "second_per_grid_ts": torch.full((len(words),), workload.SECONDS),
  }
  return {name: values.to(device()) for name, values in fields.items()}


def _normalised(patches: UInt8[np.ndarray, "patches patch_dim"]) -> torch.Tensor:
  """The pixels of patches as transformers' processor gives them."""
  return torch.from_numpy(np.array(pixels.normalise(patches, np.float32)))


def pictures(encoded: Sequence[prompts.EncodedPrompt]) -> Inputs:
  """The model's inputs for conversations of equal length whose media are images."""
  ids = torch.from_numpy(np.stack([one.tokens for one in encoded])).long()
  kinds = torch.from_numpy(np.stack([one.kind for one in encoded]))
  frames = [frame.vision.patches for one in encoded for frame in one.frames]
  grids = [[grid.frames, grid.height, grid.width] for one in encoded for grid in one.grids]
  fields = {
    "input_ids": ids,
    "attention_mask": torch.ones_like(ids),
    "mm_token_type_ids": (kinds == int(records.Kind.IMAGE)).int(),
    "pixel_values": _normalised(np.concatenate(frames)),
    "image_grid_thw": torch.tensor(grids),
  }
  return {name: values.to(device()) for name, values in fields.items()}


class TorchUpdate:
  """One GRPO update: clipped ratio to initial log-probs, mean over tokens, then over replies."""

  def __init__(
    self,
    model: transformers.PreTrainedModel,
    batch: Inputs,
    advantages: Array,
    *,
    optimizer: Mapping[str, Any],
    gradient_norm: float,
    clip: tuple[float, float],
    forbidden: Sequence[int],
  ):
    self._model, self._batch = model, batch
    self._advantages = torch.tensor(np.asarray(advantages), device=model.device).flatten(0, 1)
    self._optimizer = torch.optim.AdamW(model.parameters(), **optimizer)
    self._gradient_norm, self._clip = gradient_norm, clip
    self._forbidden = torch.tensor(forbidden, device=model.device)

  def __call__(self) -> float:
    """Runs one update."""
    loss = self._backward()
    self._apply()
    return loss.item()

  def loss_and_gradients(self) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and unclipped gradients of one update, by the bare names of their tensors."""
    loss = self._backward()
    named = self._model.named_parameters()
    gradients = {
      qwen2_5_vl.FAMILY.weights.bare(name): parameter.grad.float().numpy(force=True).copy()
      for name, parameter in named
    }
    self._apply()
    return loss.item(), gradients

  def _apply(self) -> None:
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._gradient_norm)
    self._optimizer.step()

  def _backward(self) -> torch.Tensor:
    self._model.zero_grad(set_to_none=True)
    log_probs = reply_log_probs(
      self._model, self._batch, self._advantages.shape[1], self._forbidden
    )
    ratio = torch.exp(log_probs - log_probs.detach())
    clipped = torch.clamp(ratio, 1 - self._clip[0], 1 + self._clip[1])
    tokens = -torch.minimum(ratio * self._advantages, clipped * self._advantages)
    loss = tokens.mean(dim=1).mean()
    loss.backward()
    return loss.detach()


def reply_log_probs(
  model: transformers.PreTrainedModel, batch: Inputs, time: int, forbidden: torch.Tensor
) -> torch.Tensor:
  """Log-probs of the last `time` tokens of each row, float32 [rows, time].

  No logits of prompts are computed.
  """
  logits = model(**batch, logits_to_keep=time + 1, use_cache=False).logits[:, :-1].float()
  logits = logits.index_fill(2, forbidden, -1e9)
  chosen = batch["input_ids"][:, -time:, None]
  return logits.gather(2, chosen)[..., 0] - logits.logsumexp(dim=-1)


def by_name(tree: PyTree, config: config_lib.Qwen2_5_VLConfig) -> dict[str, np.ndarray]:
  """A tree shaped as our parameters, by the bare names and in the shapes of a checkpoint."""
  flat, found = weight_mapping.flat(tree), {}
  for key, slot in qwen2_5_vl.FAMILY.weights.slots(config, flat).items():
    values = np.asarray(flat[key].get_value())
    pieces = values if slot.stacked else (values,)
    found |= {name: slot.to_file(piece) for name, piece in zip(slot.names, pieces, strict=True)}
  return found


@torch.no_grad()
def generate(
  model: transformers.PreTrainedModel,
  batch: Inputs,
  time: int,
  *,
  temperature: float,
  suppressed: Sequence[int],
) -> Int[np.ndarray, "rows time"]:
  """Replies of `time` tokens, none of them suppressed; temperature 0 is greedy."""
  drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
  model.eval()
  tokens = model.generate(
    **batch,
    max_new_tokens=time,
    min_new_tokens=time,
    suppress_tokens=list(suppressed),
    **(drawn if temperature else {"do_sample": False}),
  )
  return tokens[:, batch["input_ids"].shape[1] :].numpy(force=True)
