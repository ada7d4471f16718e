"""Encodes what an environment shows as tokens and patches, on the host.

    environment.observe(example, pool, replies) -> texts, frame indices -> pixels -> EncodedPrompt

Only the frames that a turn shows are read from the video.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
import numpy as np

from vr_jax import records
from vr_jax.envs import environment
from vr_jax.models import interface
from vr_jax.models.common import conversation, prompts
from vr_jax.rollout import episodes


@runtime_checkable
class FramePool(Protocol):
  """The frames of a video that turns choose from."""

  @property
  def timestamps(self) -> Float[np.ndarray, "frames"]:
    """Time of each frame, seconds."""
    ...

  def __len__(self) -> int:
    """Number of frames."""
    ...

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Reads frames by their index in the pool, as RGB; called on threads."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeScene:
  """The example of an episode, and the frames of its video."""

  example: records.Example
  pool: FramePool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
  """Implements `episodes.Turns` for a batch of scenes, one per row.

  question_first: whether the text comes before the clip in a turn that shows the whole clip.
  """

  environment: environment.Environment
  processor: interface.Processor
  scenes: Sequence[EpisodeScene]
  question_first: bool = False

  def prompt(self, row: int, replies: Sequence[str] = ()) -> prompts.EncodedPrompt:
    """The prompt of an episode's first turn, or of the turn after `replies` with all before it.

    Raises ValueError if the episode ends with one of the replies.
    """
    parts = [self._opening(self.scenes[row])]
    tokens = tuple(tuple(self.processor.encode_reply(reply)) for reply in replies)
    for count, reply in enumerate(tokens, start=1):
      observation = self.observe(row, 0, tokens[:count])
      if observation is None:
        raise ValueError(f"{parts[0].name}: the episode ends with reply {count}")
      parts += [self.processor.encode_tokens(reply), observation]
    return prompts.join(parts, name=parts[0].name) if tokens else parts[0]

  def _opening(self, scene: EpisodeScene) -> prompts.EncodedPrompt:
    shown = self.environment.observe(scene.example, len(scene.pool), ())
    if shown is None:
      raise ValueError(f"{scene.example.id}: the environment shows nothing in the first turn")
    if shown.clip is None:
      turn = _message(scene, shown)
      return self.processor.encode_conversation([turn], name=scene.example.id)
    (text,) = shown.texts
    return self.processor.encode(
      text,
      scene.pool.read(range(len(scene.pool))),
      scene.pool.timestamps,
      size=shown.clip.size,
      question_first=self.question_first,
      name=scene.example.id,
    )

  def observe(
    self, row: int, group_index: int, replies: episodes.ReplyTokens
  ) -> prompts.EncodedPrompt | None:
    """Encodes the turn after these replies (token ids); None if the episode has ended."""
    scene = self.scenes[row]
    texts = [self.processor.decode(reply) for reply in replies]
    shown = self.environment.observe(scene.example, len(scene.pool), texts)
    if shown is None:
      return None
    name = f"{scene.example.id}, turn {len(replies) + 1}"
    turn = _message(scene, shown)
    return self.processor.continue_conversation([turn], after=replies[-1], name=name)

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """Pads and stacks them into a batch for the model."""
    return self.processor.pad(encoded, sizes)

  @property
  def position_axes(self) -> int:
    """Number of components of a position."""
    return self.processor.position_axes


def _message(scene: EpisodeScene, shown: environment.Observation) -> conversation.Message:
  """A turn of texts and single frames, with the pixels of its frames."""
  chosen = list(shown.frames)
  pixels = iter(scene.pool.read(chosen) if chosen else ())
  times = scene.pool.timestamps
  parts = (
    conversation.Image(pixels=next(pixels), seconds=float(times[part.index]), size=part.size)
    if isinstance(part, environment.ShownFrame)
    else part
    for part in shown.parts
    if not isinstance(part, environment.WholeClip)
  )
  return conversation.Message(role="user", parts=tuple(parts))
