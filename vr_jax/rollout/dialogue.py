"""The host's side of episodes about pools of frames: what an environment shows, as tokens and patches.

    environment.observe(example, pool, replies) -> texts, frames by number -> pixels, read now -> Encoded

Of a video only the frames that a turn shows are ever read.
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
  """The frames of a video that turns choose from. timestamps: of each, seconds."""

  @property
  def timestamps(self) -> Float[np.ndarray, "frames"]:
    """Of each frame, in seconds."""
    ...

  def __len__(self) -> int:
    """How many there are."""

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Some of them, RGB, by their number in the pool; called on threads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeScene:
  """What an episode is about."""

  example: records.Example
  pool: FramePool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
  """Implements `episodes.Turns` for a batch of scenes, a row each.

  question_first: whether the text of a turn that shows the whole clip stands before it.
  """

  environment: environment.Environment
  processor: interface.Processor
  scenes: Sequence[EpisodeScene]
  question_first: bool = False

  def prompt(self, row: int, replies: Sequence[str] = ()) -> prompts.EncodedPrompt:
    """The prompt that an episode begins with, or, behind replies that do not end it, that of its next turn."""
    parts = [self._opening(self.scenes[row])]
    said = tuple(tuple(self.processor.encode_reply(reply)) for reply in replies)
    for count, reply in enumerate(said, start=1):
      parts.append(self.processor.encode_tokens(reply))
      parts.append(self.observe(row, 0, said[:count]))
    return prompts.join(parts, name=parts[0].name) if said else parts[0]

  def _opening(self, scene: EpisodeScene) -> prompts.EncodedPrompt:
    shown = self.environment.observe(scene.example, len(scene.pool), ())
    if not shown.shows_clip:
      turn = self._turn(scene, ())
      return self.processor.encode_conversation([turn], name=scene.example.id)
    return self.processor.encode(
      *shown.texts,
      scene.pool.read(range(len(scene.pool))),
      scene.pool.timestamps,
      question_first=self.question_first,
      name=scene.example.id,
    )

  def observe(
    self, row: int, group_index: int, replies: episodes.ReplyTokens
  ) -> prompts.EncodedPrompt | None:
    """What comes after these replies (token ids); None where the episode has ended."""
    scene = self.scenes[row]
    turn = self._turn(scene, [self.processor.decode(reply) for reply in replies])
    if turn is None:
      return None
    name = f"{scene.example.id}, turn {len(replies) + 1}"
    return self.processor.continue_conversation([turn], after=replies[-1], name=name)

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """As the model takes them."""
    return self.processor.pad(encoded, sizes)

  @property
  def axes(self) -> int:
    """Of positions."""
    return self.processor.axes

  def _turn(self, scene: EpisodeScene, replies: Sequence[str]) -> conversation.Message | None:
    shown = self.environment.observe(scene.example, len(scene.pool), replies)
    if shown is None:
      return None
    pixels = iter(scene.pool.read(shown.frames) if shown.frames else ())
    parts = (
      part if isinstance(part, str) else conversation.Image(pixels=next(pixels))
      for part in shown.parts
    )
    return conversation.Message(role="user", parts=tuple(parts))
