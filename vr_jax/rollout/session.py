"""One video, one question: the turns of an episode as they come.

    session = rollout.Session(pool=pool, …)
    *turns, outcome = session.ask("Who falls?", ["A. the thief", "B. the guard"])

The episode is one of `play.play`, with a group of one: its prompt is read once, and each turn appended.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import queue

from flax import nnx
import jax
from jaxtyping import Array, Bool, Float, PyTree, UInt8
import numpy as np

from vr_jax import records
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import retrieval_actions as retrieval_actions
from vr_jax.models import interface
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import dialogue, episodes, sampler
from vr_jax.rollout import play as play_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionTurn:
  """What the model was shown, and what it replied. number: from 1; frames: of the pool; pixels: of these, RGB."""

  number: int
  frames: tuple[int, ...]
  pixels: tuple[UInt8[np.ndarray, "height width 3"], ...]
  reply: str
  action: retrieval_actions.Action


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOutcome:
  """How an episode ended, after so many turns. answer: None where the last turn gave none."""

  answer: str | None
  turns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """A policy and a video that it is asked about.

  allowed_tokens: tokens that a reply may hold. decoding: its group and rungs do not count. prefix_buckets: lengths that the first turn
  is padded to. pool: the frames that turns choose from, or that the first turn shows. question_first: as of a `Dialogue`.
  """

  graphdef: nnx.GraphDef
  params: PyTree
  allowed_tokens: Bool[Array, "vocab"]
  processor: interface.Processor
  environment: environment_lib.Environment
  decoding: sampler.Decoding
  schedule: episodes.Schedule
  prefix_buckets: Sequence[int]
  pool: dialogue.FramePool
  question_first: bool = False

  def ask(
    self,
    question: str,
    options: Sequence[str] = (),
    *,
    problem_type: str | None = None,
    seed: int = 0,
  ) -> Iterator[SessionTurn | SessionOutcome]:
    """Each turn when its reply has ended, then the outcome. Whoever stops reading ends the episode after the reply under way.

    Args:
      question: without instruction, which the environment adds.
      options: of a multiple choice, with their letters.
      problem_type: one of `records.PROBLEM_TYPES`; None: multiple choice where there are options, else free-form.
      seed: of what is drawn.

    Raises:
      InputError: from the iterator, where frames can't be read, or the episode outgrows its buckets.
    """
    example = records.Example(
      id="question",
      video="",
      question=question,
      options=tuple(options),
      answer="",
      problem_type=problem_type or ("multiple choice" if options else "free-form"),
      shown=records.Span(start=0.0, end=0.0),
    )
    told: queue.SimpleQueue[SessionTurn | None] = queue.SimpleQueue()
    host = _Host(self, example, told.put)
    last = None
    with futures.ThreadPoolExecutor(1) as thread:
      playing = thread.submit(self._play, host, seed)
      playing.add_done_callback(lambda _: told.put(None))
      try:
        while (turn := told.get()) is not None:
          last = turn
          yield turn
      finally:
        host.cancelled = True
    playing.result()
    answer = last.action.answer if last.action.kind == "answer" else None
    yield SessionOutcome(answer=answer, turns=last.number)

  def _play(self, host: "_Host", seed: int) -> None:
    played = play_lib.play(
      self.graphdef,
      self.params,
      self._prompt(host),
      self.allowed_tokens,
      jax.random.key(seed),
      host,
      decoding=dataclasses.replace(self.decoding, group=1, slot_fractions=()),
      schedule=self.schedule,
      threads=1,
    )
    host.publish_turn(played.replies[0][0])

  def _prompt(self, host: "_Host") -> records.Prompt:
    encoded = host.opening()
    name = encoded.name
    prompts_lib.smallest_bucket(
      [(name, encoded.patches)], (self.schedule.patches,), "patches a frame"
    )
    sizes = prompts_lib.PromptSizes(
      prefix=prompts_lib.smallest_bucket(
        [(name, len(encoded.tokens))], self.prefix_buckets, "tokens"
      ),
      frames=len(encoded.frames),
      patches=self.schedule.patches,
    )
    return host.pad([encoded], sizes)


class _Host:
  """The host's side of the episode (`episodes.Turns`), which tells each turn once its reply has ended.

  cancelled: nobody reads any more, and the episode is to end.
  """

  def __init__(
    self, session: Session, example: records.Example, put: Callable[[SessionTurn], None]
  ):
    self.cancelled = False
    self._example, self._put, self._published = example, put, 0
    self._processor, self._environment = session.processor, session.environment
    self._pool = _RecordingPool(session.pool)
    self._dialogue = dialogue.Dialogue(
      environment=session.environment,
      processor=session.processor,
      scenes=(dialogue.EpisodeScene(example=example, pool=self._pool),),
      question_first=session.question_first,
    )

  def opening(self) -> prompts_lib.EncodedPrompt:
    """The first turn."""
    return self._dialogue.prompt(0)

  def observe(
    self, row: int, group_index: int, replies: episodes.ReplyTokens
  ) -> prompts_lib.EncodedPrompt | None:
    """What comes after these replies; None where the episode has ended, or is left."""
    self.publish_turn(replies)
    return None if self.cancelled else self._dialogue.observe(row, group_index, replies)

  def pad(
    self, encoded: Sequence[prompts_lib.EncodedPrompt], sizes: prompts_lib.PromptSizes
  ) -> records.Prompt:
    """As the model takes them."""
    return self._dialogue.pad(encoded, sizes)

  @property
  def axes(self) -> int:
    """Of positions."""
    return self._processor.axes

  def publish_turn(self, replies: episodes.ReplyTokens) -> None:
    """Tells the turn of the last reply, unless it was told."""
    if len(replies) == self._published:
      return
    self._published = len(replies)
    reply, example = self._processor.decode(replies[-1]), self._example
    frames, pixels = self._pool.pop_frames()
    action = self._environment.parse_action(example, len(self._pool), reply)
    self._put(
      SessionTurn(number=self._published, frames=frames, pixels=pixels, reply=reply, action=action)
    )


class _RecordingPool:
  """A pool that remembers what was read of it."""

  def __init__(self, pool: dialogue.FramePool):
    self._pool, self._frames, self._pixels = pool, (), ()

  @property
  def timestamps(self) -> Float[np.ndarray, "frames"]:
    """Those of the pool."""
    return self._pool.timestamps

  def __len__(self) -> int:
    return len(self._pool)

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """As that of the pool."""
    pixels = self._pool.read(frames)
    self._frames, self._pixels = tuple(frames), tuple(pixels)
    return pixels

  def pop_frames(self) -> tuple[tuple[int, ...], tuple[UInt8[np.ndarray, "height width 3"], ...]]:
    """Numbers and pixels of what was read since this was last asked."""
    found = self._frames, self._pixels
    self._frames, self._pixels = (), ()
    return found
