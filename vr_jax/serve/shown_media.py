"""What is shown of the images and videos of a request: which frames, at which times.

Frames of a video are sampled by the run's rule, or by the client's number or rate of frames. How
many fit into a prompt is checked before anything is decoded.
"""

import dataclasses
import hashlib
import json
from typing import Any

import ml_collections
import numpy as np

from vr_jax import errors, records
from vr_jax.data import sampling, video_clip
from vr_jax.models.common import conversation
from vr_jax.serve import chat_request, media, request_error
from vr_jax.train import paths, run_context, step_shapes

_TOLERANCE = 0.05  # seconds that video_end may lie after the video's end


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownClip:
  """What is shown of a medium: frames of a video, or one picture.

  digest: of all that it shows.
  """

  kind: str
  frames: video_clip.VideoClip
  height: int
  width: int
  digest: str


class MediaOpener:
  """Opens the media of requests. Several threads may use it."""

  def __init__(self, context: run_context.RunContext, library: media.MediaLibrary):
    self._context, self._library = context, library

  def open_all(self, request: chat_request.ChatRequest) -> list[ShownClip]:
    """What is shown of each image and video, in order. Raises RequestError naming the field."""
    parts = [
      (f"messages[{turn}].content[{place}]", part)
      for turn, message in enumerate(request.messages)
      for place, part in enumerate(message.parts)
      if isinstance(part, chat_request.MediumPart)
    ]
    if len(parts) > (most := self._most_frames()):
      raise request_error.RequestError(
        400, f"messages: {len(parts)} images and videos; the model's prompts hold {most} at most"
      )
    videos = [part for _, part in parts if part.kind == "video"]
    for field, value in (
      ("media_io_kwargs", request.num_frames or request.fps),
      ("video_start", request.video_start),
      ("video_end", request.video_end),
    ):
      if value is not None and not videos:
        raise chat_request.wrong(field, "there is no video in the messages")
    rule = self._rule(request) if videos else sampling.LEAST
    return [self._open(part, name, request, rule) for name, part in parts]

  def _most_frames(self) -> int:
    """The most frames of a video that the largest buckets hold, or that turns choose from."""
    section, shapes = self._context.config.model, self._context.model.vision_shapes
    if self._context.environment.chooses_frames:
      return self._context.config.data.frames
    if shapes.images_per_frame:
      return max(section.frame_buckets) * shapes.images_per_frame
    return max(section.patch_buckets) // max(shapes.patches_per_image, 1)

  def _rule(self, request: chat_request.ChatRequest) -> sampling.Rule:
    """The rule by which frames of a video are sampled: that of the run, or the client's."""
    data = self._context.config.data
    usual, most = paths.sampling_rule(data), self._most_frames()
    try:
      if request.num_frames is not None:
        if request.num_frames > most:
          raise chat_request.wrong(
            "media_io_kwargs.video.num_frames",
            f"is {request.num_frames}; the model's prompts hold {most} frames at most",
          )
        make = sampling.PoolRule if isinstance(usual, sampling.PoolRule) else sampling.UniformRule
        return make(frames=request.num_frames)
      if request.fps is not None:
        if isinstance(usual, sampling.PoolRule):
          raise chat_request.wrong(
            "media_io_kwargs.video.fps", "this recipe chooses frames itself; give num_frames"
          )
        most = max(sampling.TEMPORAL_PATCH, min(most, data.max_frames))
        return sampling.RateRule(
          fps=request.fps, min_frames=min(data.min_frames, most), max_frames=most
        )
    except errors.InputError as error:
      raise chat_request.wrong("media_io_kwargs.video", str(error)) from None
    return usual

  def _open(
    self,
    part: chat_request.MediumPart,
    name: str,
    request: chat_request.ChatRequest,
    rule: sampling.Rule,
  ) -> ShownClip:
    pixels = None  # as the run's data
    if request.min_pixels or request.max_pixels:
      section = self._context.config.model
      pixels = most_pixels(section, request.min_pixels, request.max_pixels)
    found = self._library.open(part.url, part.kind, name, fps=request.fps, pixels=pixels)
    video = found.extracted
    identity = [found.digest, part.kind, video.height, video.width]
    if part.kind == "image":
      if len(video.jpegs) > 1:
        raise request_error.RequestError(
          400, f"{name}: is a video; send it as video_url", param=name
        )
      clip = video_clip.VideoClip(jpegs=video.jpegs[:1], timestamps=np.zeros(1))
    else:
      span = self._span(request, video.duration)
      try:
        clip = video_clip.take(video, span, rule, where=name)
      except errors.InputError as error:
        raise request_error.RequestError(400, error, param=name) from None
      identity += [span.start, span.end, request.fps, clip.timestamps.tolist()]
    return ShownClip(
      kind=part.kind,
      frames=clip,
      height=video.height,
      width=video.width,
      digest=hash_json(identity),
    )

  def _span(self, request: chat_request.ChatRequest, duration: float) -> records.Span:
    start, end = request.video_start or 0.0, request.video_end
    if end is None:
      end = duration
    if end > duration + _TOLERANCE or (start and start >= end):
      raise chat_request.wrong(
        "video_start" if request.video_end is None else "video_end",
        f"{start:g} to {end:g} s is no part of the video, which has {duration:g} s",
      )
    return records.Span(start=start, end=end)


def most_pixels(
  section: ml_collections.ConfigDict, least: int | None, most: int | None, frames: int = 1
) -> int:
  """The most pixels that an image, or a frame of a video of so many, is shown with.

  section: the recipe's `model`. least, most: the client's limits; the run's hold for a `most` that
    it leaves out.
  """
  return most or max(step_shapes.frame_pixels(section, frames), least or 0)


def decode(clip: ShownClip) -> conversation.Image | conversation.VideoFrames:
  """A part of a conversation with the frames of a clip."""
  pixels = clip.frames.read(range(len(clip.frames)))
  if clip.kind == "image":
    return conversation.Image(pixels=pixels[0])
  return conversation.VideoFrames(frames=pixels, timestamps=clip.frames.timestamps)


def hash_json(value: Any) -> str:
  """The SHA-256 of a JSON value, hexadecimal."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
