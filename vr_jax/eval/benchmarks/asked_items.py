"""Makes the prompt of a benchmark's item, as its protocol or the policy's recipe asks.

Frames are chosen by time: a protocol's rule for indices is applied to a video of 30 frames a
second. For each of these times the frame on the screen is shown if it is kept, else the nearest
kept one. At least four are kept for each that is shown (as many as 20,000 of a video allow), so a
frame is off by an eighth of the distance between two of them at most. Where several times have the
same frame, it is shown once.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path

from jaxtyping import Float, Int
import numpy as np
import simplejpeg

from vr_jax import frame_times, records
from vr_jax.data import batches, benchmark_item, frame_store, picture_file, sampling, subtitles
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

_FPS = 30.0  # of the video that rules for indices are applied to
_SIDE = 1 << 15  # pixels of a picture that is not scaled down here
_QUALITY = 95


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

    Raises InputError if its video, pictures or subtitles can't be read, or the prompt doesn't fit.
    """
    if self.protocol.prompt is None:
      return self._ask_as_recipe(item)
    clip = self._clip(item)
    asked = self.protocol.render(item, self._subtitles(item, clip.timestamps))
    return batching.BatchItem(
      example=clip.example, encoded=self._encode(item, clip, asked), reply=(), clip=clip
    )

  def _ask_as_recipe(self, item: benchmark_item.Item) -> batching.BatchItem:
    data = self.context.config.data
    store = self._open(item, data.fps)
    example = _example(item, _shown(item, store, self.protocol))
    clip = batches.select_clip(example, store, paths.sampling_rule(data))
    return self.context.builder.item(clip)

  def _clip(self, item: benchmark_item.Item) -> batches.Clip:
    """The frames that the protocol shows of the item's video."""
    choice = self.protocol.frames
    if choice is None:
      raise InputError(f"{self.protocol.name}: says no frames")
    store = self._open(item, frame_cache.LOWEST_FPS)
    shown = _shown(item, store, self.protocol)
    seconds = shown.end - shown.start
    frames = choice.count if choice.fps is None else min(choice.count, choice.fps * seconds)
    needed = frame_cache.needed_fps(frames, seconds)
    most = frame_cache.MOST_FRAMES / max(store.duration(item.video), 1.0)
    if needed > frame_cache.LOWEST_FPS and item.media != "image":
      store = self._open(item, max(frame_cache.LOWEST_FPS, min(needed, most)))
    indices = choose_frames(choice, store, item, shown)
    return batches.Clip(
      example=_example(item, shown),
      store=store,
      timestamps=sampling.shown_times(store.timestamps(item.video), indices, shown),
      frame_indices=indices,
    )

  def _open(self, item: benchmark_item.Item, fps: float) -> frame_store.FrameStore:
    return self.cache.open(item.video, fps=fps, frame_rate=item.frames_fps)

  def _subtitles(
    self, item: benchmark_item.Item, times: Float[np.ndarray, "frames"]
  ) -> Sequence[str]:
    if not (self.protocol.uses_subtitles and item.subtitles):
      return ()
    lines = registry.read_subtitles(item, self.root)
    return subtitles.at_times(lines, times.tolist())

  def _encode(
    self, item: benchmark_item.Item, clip: batches.Clip, asked: prompts.BenchmarkPrompt
  ) -> prompts_lib.EncodedPrompt:
    processor = self._processor(len(clip))
    video = conversation.VideoFrames(frames=clip.frames, timestamps=clip.timestamps)
    pictures = [conversation.Image(pixels=_read_picture(self.root / name)) for name in item.images]
    turns = [conversation.Message(role="user", parts=(video, *pictures, asked.user))]
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


def make_processor(
  context: run_context.RunContext, limits: protocol_table.PixelLimits | None, frames: int
) -> interface.Processor:
  """The processor of a policy with other limits of pixels. frames: of the video that it is for."""
  if limits is None:
    return context.processor
  most = limits.most if limits.total is None else min(limits.most, limits.total // frames)
  return context.processor_with_limits(min(limits.least, most), most, frames)


def choose_frames(
  choice: frame_choice.FrameChoice,
  store: frame_store.FrameStore,
  item: benchmark_item.Item,
  shown: records.Span,
) -> Int[np.ndarray, "frames"]:
  """Indices of the stored frames on the screen when the rule's frames are, or nearest to them."""
  timestamps, ends = store.timestamps(item.video), store.ends(item.video)
  if len(timestamps) == 1:
    return np.zeros(1, np.int64)
  frames = max(1, round(store.duration(item.video) * _FPS))
  # The video's last frame begins before its end.
  end = min(shown.end, (frames - 1) / _FPS)
  clip = records.Span(start=shown.start, end=max(end, shown.start))
  times = frame_choice.choose(choice, frames, _FPS, clip) / _FPS
  before = np.searchsorted(timestamps, times + frame_times.TOLERANCE, side="right") - 1
  before = np.clip(before, 0, len(timestamps) - 1)
  after = np.minimum(before + 1, len(timestamps) - 1)
  is_gone = ends[before] + frame_times.TOLERANCE < times
  is_nearer = timestamps[after] - times < times - ends[before]
  indices = np.where(is_gone & is_nearer, after, before)
  first, stop = sampling.shown_range(timestamps, ends, shown)
  if stop <= first:
    raise InputError(f"{item.id}: {shown.start:g} to {shown.end:g} s show no frame of {item.video}")
  return np.unique(np.clip(indices, first, stop - 1))


def _example(item: benchmark_item.Item, shown: records.Span) -> records.Example:
  return dataclasses.replace(recipe_question.to_example(item), shown=shown)


def _shown(
  item: benchmark_item.Item, store: frame_store.FrameStore, protocol: protocols.Protocol
) -> records.Span:
  """The part of the video to show. Raises InputError if the clip begins behind the video's end."""
  duration = store.duration(item.video)
  if item.clip is None or not protocol.uses_clip:
    return records.Span(start=0.0, end=duration)
  if item.clip.start >= duration:
    raise InputError(
      f"{item.id}: its clip begins at {item.clip.start:g} s, {item.video} ends at {duration:g} s"
    )
  return records.Span(start=item.clip.start, end=min(item.clip.end, duration))


def _read_picture(path: Path) -> np.ndarray:
  extracted = picture_file.extract(path, quality=_QUALITY, max_side=_SIDE)
  return simplejpeg.decode_jpeg(extracted.jpegs[0], colorspace="RGB")
