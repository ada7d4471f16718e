"""Makes the prompt of a benchmark's item, as its protocol or the policy's recipe asks."""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path

from jaxtyping import UInt8
import numpy as np

from vr_jax import records
from vr_jax.data import batches, benchmark_item, sampling, subtitles
from vr_jax.data.benchmark_sets import registry
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import (
  frame_cache,
  frame_choice,
  prompts,
  protocol_table,
  protocols,
  recipe_question,
)
from vr_jax.models import interface
from vr_jax.models.common import conversation
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.train import batching, paths, run_context

_Part = str | conversation.Image | conversation.VideoFrames


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemAsker:
  """Makes the elements of batches for the items of one protocol.

  root: the benchmark's directory.
  """

  context: run_context.RunContext
  protocol: protocols.Protocol
  cache: frame_cache.FrameCache
  root: Path

  def ask(self, item: benchmark_item.Item) -> batching.BatchItem:
    """Makes the prompt of an item.

    Raises InputError if its video or subtitles can't be read, or the prompt doesn't fit.
    """
    if self.protocol.prompt is None:
      return self._ask_as_recipe(item)
    clip, lines = self._clip(item), self._subtitles(item)
    times = clip.timestamps.tolist()
    # `clip.frames` would stay with the clip, until the whole batch is sampled.
    frames = clip.read(range(len(clip)))
    if self.protocol.interleaves:
      shown = _pictures_and_lines(frames, subtitles.between_frames(lines, times))
      asked = self.protocol.render(item)
    else:
      shown = [conversation.VideoFrames(frames=frames, timestamps=clip.timestamps)]
      asked = self.protocol.render(item, subtitles.at_times(lines, times))
    encoded = self._encode(item, shown, asked, frames=len(frames))
    return batching.BatchItem(example=clip.example, encoded=encoded, reply=(), clip=clip)

  def _ask_as_recipe(self, item: benchmark_item.Item) -> batching.BatchItem:
    data = self.context.config.data
    store = self.cache.open(
      item.video,
      # Of the frames that a set lists, the recipe chooses among all.
      fps=max(data.fps, item.frames_fps or 0.0) if item.frames else data.fps,
      quality=data.quality,
      max_side=data.max_side,
      frame_rate=item.frames_fps,
      frames=item.frames,
    )
    example = _example(item, self._part(item), store.duration(item.video))
    clip = batches.select_clip(example, store, paths.sampling_rule(data))
    return self.context.builder.item(clip)

  def _clip(self, item: benchmark_item.Item) -> batches.Clip:
    """The frames that the protocol shows of the item's video."""
    choice, limits, part = self.protocol.frames, self.protocol.pixels, self._part(item)
    if choice is None or limits is None:
      raise InputError(f"{self.protocol.name}: says no frames or no pixels")
    store = self.cache.open_chosen(
      item.video, choice, pixels=limits.most, clip=part, frame_rate=item.frames_fps
    )
    example = _example(item, part, store.duration(item.video))
    timestamps = store.timestamps(item.video)
    indices = np.arange(len(timestamps))
    return batches.Clip(
      example=example,
      store=store,
      timestamps=sampling.shown_times(timestamps, indices, example.shown),
      frame_indices=indices,
    )

  def _part(self, item: benchmark_item.Item) -> records.Span | None:
    """The clip that is shown of the item's video; None: all of it."""
    return item.clip if self.protocol.uses_clip else None

  def _subtitles(self, item: benchmark_item.Item) -> Sequence[subtitles.Subtitle]:
    return registry.read_subtitles(item, self.root) if self.protocol.uses_subtitles else ()

  def _encode(
    self,
    item: benchmark_item.Item,
    shown: Sequence[_Part],
    asked: prompts.BenchmarkPrompt,
    *,
    frames: int,
  ) -> prompts_lib.EncodedPrompt:
    """The prompt of what an item shows, then the text. frames: that it shows."""
    processor = self._processor(frames)
    turns = [conversation.Message(role="user", parts=(*shown, asked.user))]
    if asked.system:
      turns.insert(0, conversation.Message(role="system", parts=(asked.system,)))
    encoded = processor.encode_conversation(turns, name=item.id)
    if not asked.prefill:
      return encoded
    begun = processor.encode_tokens(processor.encode_reply(asked.prefill)[:-1], name=item.id)
    return prompts_lib.join([encoded, begun], name=item.id)

  def _processor(self, frames: int) -> interface.Processor:
    """The policy's processor with the protocol's limits of pixels for so many frames."""
    if frames not in self._processors:
      self._processors[frames] = make_processor(self.context, self.protocol.pixels, frames)
    return self._processors[frames]

  @functools.cached_property
  def _processors(self) -> dict[int, interface.Processor]:
    return {}


def _pictures_and_lines(
  frames: UInt8[np.ndarray, "frames height width 3"], order: Sequence[int | str]
) -> list[_Part]:
  """Frames as pictures, and texts, each on a line. order: numbers of frames, and texts."""
  parts: list[_Part] = []
  for each in order:
    parts += [each if isinstance(each, str) else conversation.Image(pixels=frames[each]), "\n"]
  return parts


def make_processor(
  context: run_context.RunContext, limits: protocol_table.PixelLimits | None, frames: int
) -> interface.Processor:
  """The processor of a policy with other limits of pixels. frames: of the video that it is for."""
  if limits is None:
    return context.processor
  most = limits.most if limits.total is None else min(limits.most, limits.total // frames)
  return context.processor_with_limits(min(limits.least, most), most, frames)


def _example(
  item: benchmark_item.Item, part: records.Span | None, duration: float
) -> records.Example:
  shown = frame_choice.shown_part(part, duration, where=f"{item.id}: {item.video}")
  return dataclasses.replace(recipe_question.to_example(item), shown=shown)
