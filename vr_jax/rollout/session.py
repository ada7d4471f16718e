"""Asks one question about one video and yields the turns of the episode as they are sampled.

    session = rollout.Session(pool=pool, …)
    *turns, outcome = session.ask("Who falls?", ["A. the thief", "B. the guard"])

The episode is played by `play.play` with a group of one: the prompt is read once, and each turn is
appended.
"""

from collections.abc import Callable, Generator, Sequence
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
  """One turn: what the model was shown, and its reply.

  number: from 1.
  frames: indices in the pool.
  pixels: of these frames, RGB.
  """

  number: int
  frames: tuple[int, ...]
  pixels: tuple[UInt8[np.ndarray, "height width 3"], ...]
  reply: str
  action: retrieval_actions.Action


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOutcome:
  """The end of an episode.

  answer: None if the last turn gave no answer.
  """

  answer: str | None
  num_turns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """A policy, and a video to ask it about. Calls of `ask` are independent.

  allowed_tokens: tokens that a reply may contain.
  decoding: its group and slot_fractions are ignored.
  prefix_buckets, patch_buckets: tokens, and patches a frame, that the first turn is padded to.
  pool: the frames that turns choose from, or that the first turn shows.
  question_first: as in a `Dialogue`.
  """

  graphdef: nnx.GraphDef
  params: PyTree
  allowed_tokens: Bool[Array, "vocab"]
  processor: interface.Processor
  environment: environment_lib.Environment
  decoding: sampler.Decoding
  schedule: episodes.Schedule
  prefix_buckets: Sequence[int]
  patch_buckets: Sequence[int]
  pool: dialogue.FramePool
  question_first: bool = False

  def ask(
    self,
    question: str,
    options: Sequence[str] = (),
    *,
    problem_type: str | None = None,
    seed: int = 0,
  ) -> Generator[SessionTurn | SessionOutcome, None, None]:
    """Plays an episode about a new question, as `play` does.

    question: without the instruction, which the environment adds.
    options: of a multiple-choice question, with their letters.
    problem_type: one of `records.PROBLEM_TYPES`; None: "multiple choice" if there are options,
      otherwise "free-form".
    seed: of the sampler.
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
    yield from self.play(example, seed=seed)

  def play(
    self, example: records.Example, *, seed: int = 0
  ) -> Generator[SessionTurn | SessionOutcome, None, None]:
    """Yields each turn when its reply has ended, then the outcome.

    The prompts are those that evaluation makes of this example with these frames. Closing the
    iterator early blocks until the reply that is being sampled has ended; then the episode ends.

    Raises:
      InputError: from the iterator, if frames can't be read or the episode outgrows its buckets.
    """
    turns: queue.SimpleQueue[SessionTurn | None] = queue.SimpleQueue()
    streaming = _StreamingTurns(self, example, turns.put)
    last = None
    with futures.ThreadPoolExecutor(1) as thread:
      playing = thread.submit(self._play, streaming, seed)
      playing.add_done_callback(lambda _: turns.put(None))
      try:
        while (turn := turns.get()) is not None:
          last = turn
          yield turn
      finally:
        streaming.cancelled = True
    playing.result()
    assert last is not None  # an episode that was played has a turn
    answer = last.action.answer if last.action.kind == "answer" else None
    yield SessionOutcome(answer=answer, num_turns=last.number)

  def _play(self, turns: "_StreamingTurns", seed: int) -> None:
    played = play_lib.play(
      self.graphdef,
      self.params,
      self._prompt(turns),
      self.allowed_tokens,
      jax.random.key(seed),
      turns,
      decoding=dataclasses.replace(self.decoding, group=1, slot_fractions=()),
      schedule=self.schedule,
      threads=1,
    )
    turns.publish_turn(played.replies[0][0])

  def _prompt(self, turns: "_StreamingTurns") -> records.Prompt:
    encoded = turns.first_observation()
    name = encoded.name
    patches = max(self.patch_buckets)
    prompts_lib.smallest_bucket([(name, encoded.patches)], (patches,), "patches a frame")
    sizes = prompts_lib.PromptSizes(
      prefix=prompts_lib.smallest_bucket(
        [(name, len(encoded.tokens))], self.prefix_buckets, "tokens"
      ),
      frames=len(encoded.frames),
      patches=patches,
    )
    return turns.pad([encoded], sizes)


class _StreamingTurns:
  """Encodes the turns of the episode (`episodes.Turns`), and passes on each when it is complete.

  cancelled: set to True to end the episode.
  """

  def __init__(
    self, session: Session, example: records.Example, on_turn: Callable[[SessionTurn], None]
  ):
    self.cancelled = False
    self._example, self._on_turn, self._published = example, on_turn, 0
    self._processor, self._environment = session.processor, session.environment
    self._pool = _RecordingPool(session.pool)
    self._dialogue = dialogue.Dialogue(
      environment=session.environment,
      processor=session.processor,
      scenes=(dialogue.EpisodeScene(example=example, pool=self._pool),),
      question_first=session.question_first,
    )

  def first_observation(self) -> prompts_lib.EncodedPrompt:
    """Encodes the first observation, the prompt."""
    return self._dialogue.prompt(0)

  def observe(
    self, row: int, group_index: int, replies: episodes.ReplyTokens
  ) -> prompts_lib.EncodedPrompt | None:
    """Encodes the turn after these replies; None if the episode has ended or is cancelled."""
    self.publish_turn(replies)
    return None if self.cancelled else self._dialogue.observe(row, group_index, replies)

  def pad(
    self, encoded: Sequence[prompts_lib.EncodedPrompt], sizes: prompts_lib.PromptSizes
  ) -> records.Prompt:
    """Pads and stacks them into a batch for the model."""
    return self._dialogue.pad(encoded, sizes)

  @property
  def position_axes(self) -> int:
    """Number of components of a position."""
    return self._processor.position_axes

  def publish_turn(self, replies: episodes.ReplyTokens) -> None:
    """Passes on the turn of the last reply, unless that has been done."""
    if len(replies) == self._published:
      return
    self._published = len(replies)
    reply, example = self._processor.decode(replies[-1]), self._example
    frames, pixels = self._pool.pop_frames()
    turn = self._published - 1
    action = self._environment.parse_action(example, len(self._pool), reply, turn)
    self._on_turn(
      SessionTurn(number=self._published, frames=frames, pixels=pixels, reply=reply, action=action)
    )


class _RecordingPool:
  """A pool that records the frames read from it."""

  def __init__(self, pool: dialogue.FramePool):
    self._pool, self._frames, self._pixels = pool, (), ()

  @property
  def timestamps(self) -> Float[np.ndarray, "frames"]:
    """Time of each frame, seconds."""
    return self._pool.timestamps

  def __len__(self) -> int:
    return len(self._pool)

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Reads frames from the pool and records them."""
    pixels = self._pool.read(frames)
    self._frames, self._pixels = tuple(frames), tuple(pixels)
    return pixels

  def pop_frames(self) -> tuple[tuple[int, ...], tuple[UInt8[np.ndarray, "height width 3"], ...]]:
    """Indices and pixels of the last frames read since the last call."""
    last = self._frames, self._pixels
    self._frames, self._pixels = (), ()
    return last
