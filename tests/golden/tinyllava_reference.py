"""TinyLLaVA-Video in PyTorch: transformers' SigLIP and Phi, and the resamplers from the paper.

Written from the description of the architecture (arXiv 2501.15513): a projection, learned queries,
and layers in which they attend to the projected features and to themselves.
"""

import math
from typing import Any

from golden import tinyllava as golden
import torch
from torch import nn
import torch.nn.functional as F
import transformers
from transformers.models.siglip import modeling_siglip


def table(length: int, width: int, dtype: torch.dtype) -> torch.Tensor:
  """Sines at even and cosines at odd features, as they are when stored in `dtype`."""
  angles = torch.arange(length, dtype=torch.float32).unsqueeze(1) * torch.exp(
    torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width)
  )
  return torch.stack((angles.sin(), angles.cos()), dim=2).reshape(length, width).to(dtype).float()


class CrossAttention(nn.Module):
  """Queries read media and themselves."""

  def __init__(self, width: int):
    super().__init__()
    inner = golden.HEADS * golden.HEAD_DIM
    self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
    self.to_q = nn.Linear(width, inner, bias=False)
    self.to_kv = nn.Linear(width, 2 * inner, bias=False)
    self.to_out = nn.Linear(inner, width, bias=False)

  def forward(self, media: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """media [tokens, width], latents [queries, width] -> [queries, width]."""
    latents = self.norm_latents(latents)
    read = torch.cat([self.norm_media(media), latents])
    query, key, value = (
      x.unflatten(1, (golden.HEADS, -1)).transpose(0, 1)
      for x in (self.to_q(latents), *self.to_kv(read).chunk(2, dim=1))
    )
    weights = (query @ key.transpose(1, 2) / golden.HEAD_DIM**0.5).softmax(dim=2)
    return self.to_out((weights @ value).transpose(0, 1).flatten(1))


def feed_forward(width: int) -> nn.Sequential:
  wide = golden.WIDENING * width
  return nn.Sequential(
    nn.LayerNorm(width),
    nn.Linear(width, wide, bias=False),
    nn.GELU(),
    nn.Linear(wide, width, bias=False),
  )


class Resampler(nn.Module):
  """Both kinds; `group` is 1 in the naive one, which adds positions to what is read."""

  def __init__(self, config: dict[str, Any]):
    super().__init__()
    self.kind, self.group = config["connector_type"], golden.groups(config)
    width = config["text_config"]["hidden_size"]
    self.latents = nn.Parameter(torch.zeros(config["num_queries"] // self.group, width))
    self.linear = nn.Linear(config["vision_config"]["hidden_size"], width)
    pairs = (
      [CrossAttention(width), feed_forward(width)] for _ in range(config["num_resampler_layers"])
    )
    self.layers = nn.ModuleList(map(nn.ModuleList, pairs))
    self.norm = nn.LayerNorm(width)

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    """Features [tokens, vision width] -> [queries, width]."""
    media = self.linear(features)
    rounded = torch.float32 if self.kind == "resamplerwithpe" else torch.float16
    if self.kind != "groupresampler":
      media = media + table(*media.shape, rounded)
    results = []
    for part in torch.tensor_split(media, self.group):
      latents = self.latents
      for attend, forward in self.layers:
        latents = latents + attend(part, latents)
        latents = latents + forward(latents)
      results.append(self.norm(latents))
    result = torch.cat(results)
    return result + table(*result.shape, rounded) if self.kind == "groupresampler" else result


class Model(nn.Module):
  """Names of parameters are those of released files."""

  def __init__(self, config: dict[str, Any]):
    super().__init__()
    text = {k: v for k, v in config["text_config"].items() if not k.endswith("_token_id")}
    tokens = {"bos_token_id": None, "eos_token_id": config["eos_token_id"]}
    phi = transformers.PhiConfig(**text, **tokens, pad_token_id=config["eos_token_id"])
    siglip = transformers.SiglipVisionConfig(**config["vision_config"])
    phi._attn_implementation = siglip._attn_implementation = "eager"
    self.language_model = transformers.PhiForCausalLM(phi)
    self.vision_tower = nn.Module()
    self.vision_tower._vision_tower = nn.Module()
    self.vision_tower._vision_tower.vision_model = modeling_siglip.SiglipVisionModel(siglip)
    self.connector = nn.Module()
    self.connector._connector = Resampler(config)
    self.media = config["text_config"]["vocab_size"] - 1  # the id where features of a video stand
    self.layer = config.get("vision_feature_layer", -2)
    self.first = int(config.get("vision_feature_select_strategy", "patch") == "patch")

  def tower_states(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All hidden states of the tower: images [images, 3, height, width]."""
    tower = self.vision_tower._vision_tower.vision_model
    size = tower.config.image_size
    # Pixels beyond the last whole patch are read by no patch.
    missing = [0, size - images.shape[3], 0, size - images.shape[2]]
    return tower(F.pad(images, missing), output_hidden_states=True).hidden_states

  def embed(self, input_ids: torch.Tensor, videos: list[torch.Tensor]) -> torch.Tensor:
    """Input embeddings [1, prefix, width], with the features of each video in its place."""
    embedded = self.language_model.get_input_embeddings()(input_ids)
    if not videos:
      return embedded
    states = (self.tower_states(video)[self.layer][:, self.first :] for video in videos)
    features = torch.cat([self.connector._connector(state.flatten(0, 1)) for state in states])
    place = (input_ids == self.media).unsqueeze(2).expand_as(embedded)
    return embedded.masked_scatter(place, features)

  def forward(
    self,
    input_ids: torch.Tensor,
    videos: list[torch.Tensor],
    position_ids: torch.Tensor | None = None,
  ) -> Any:
    """Logits [1, prefix, vocab], in an output of transformers."""
    if position_ids is not None:
      position_ids = position_ids[0]
    embedded = self.embed(input_ids, videos)
    return self.language_model(inputs_embeds=embedded, position_ids=position_ids)
