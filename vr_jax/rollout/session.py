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
from vr_jax.envs import turns as retrieval_actions
from vr_jax.models import interface
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import dialogue, episodes, sampler
from vr_jax.rollout import play as play_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
  """What the model was shown, and what it replied. number: from 1; frames: of the pool; pixels: of these, RGB."""

  number: int
  frames: tuple[int, ...]
  pixels: tuple[UInt8[np.ndarray, "height width 3"], ...]
  reply: str
  action: retrieval_actions.Action


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How an episode ended, after so many turns. answer: None where the last turn gave none."""

  answer: str | None
  turns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
  """A policy and a video that it is asked about.

  allowed: tokens that a reply may hold. decoding: its group and rungs do not count. prefix_buckets: lengths that the first turn
  is padded to. pool: the frames that turns choose from, or that the first turn shows. question_first: as of a `Dialogue`.
  """

  graph: nnx.GraphDef
  params: PyTree
  allowed: Bool[Array, "vocab"]
  processor: interface.Processor
  environment: environment_lib.Environment
  decoding: sampler.Decoding
  schedule: episodes.Schedule
  prefix_buckets: Sequence[int]
  pool: dialogue.Pool
  question_first: bool = False

  def ask(
    self,
    question: str,
    options: Sequence[str] = (),
    *,
    problem_type: str | None = None,
    seed: int = 0,
  ) -> Iterator[Turn | Outcome]:
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
    told: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
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
        host.left = True
    playing.result()
    answer = last.action.answer if last.action.kind == "answer" else None
    yield Outcome(answer=answer, turns=last.number)

  def _play(self, host: "_Host", seed: int) -> None:
    played = play_lib.play(
      self.graph,
      self.params,
      self._prompt(host),
      self.allowed,
      jax.random.key(seed),
      host,
      decoding=dataclasses.replace(self.decoding, group=1, rungs=()),
      schedule=self.schedule,
      threads=1,
    )
    host.tell(played.replies[0][0])

  def _prompt(self, host: "_Host") -> records.Prompt:
    encoded = host.opening()
    name = encoded.name
    prompts_lib.bucket([(name, encoded.patches)], (self.schedule.patches,), "patches a frame")
    sizes = prompts_lib.Sizes(
      prefix=prompts_lib.bucket([(name, len(encoded.tokens))], self.prefix_buckets, "tokens"),
      frames=len(encoded.frames),
      patches=self.schedule.patches,
    )
    return host.pad([encoded], sizes)


class _Host:
  """The host's side of the episode (`episodes.Turns`), which tells each turn once its reply has ended.

  left: nobody reads any more, and the episode is to end.
  """

  def __init__(self, session: Session, example: records.Example, put: Callable[[Turn], None]):
    self.left = False
    self._example, self._put, self._told = example, put, 0
    self._processor, self._environment = session.processor, session.environment
    self._pool = _Seen(session.pool)
    self._dialogue = dialogue.Dialogue(
      environment=session.environment,
      processor=session.processor,
      scenes=(dialogue.Scene(example=example, pool=self._pool),),
      question_first=session.question_first,
    )

  def opening(self) -> prompts_lib.Encoded:
    """The first turn."""
    return self._dialogue.prompt(0)

  def observe(self, row: int, member: int, replies: episodes.Replies) -> prompts_lib.Encoded | None:
    """What comes after these replies; None where the episode has ended, or is left."""
    self.tell(replies)
    return None if self.left else self._dialogue.observe(row, member, replies)

  def pad(self, encoded: Sequence[prompts_lib.Encoded], sizes: prompts_lib.Sizes) -> records.Prompt:
    """As the model takes them."""
    return self._dialogue.pad(encoded, sizes)

  @property
  def axes(self) -> int:
    """Of positions."""
    return self._processor.axes

  def tell(self, replies: episodes.Replies) -> None:
    """Tells the turn of the last reply, unless it was told."""
    if len(replies) == self._told:
      return
    self._told = len(replies)
    reply, example = self._processor.decode(replies[-1]), self._example
    frames, pixels = self._pool.taken()
    action = self._environment.parse_action(example, len(self._pool), reply)
    self._put(Turn(number=self._told, frames=frames, pixels=pixels, reply=reply, action=action))


class _Seen:
  """A pool that remembers what was read of it."""

  def __init__(self, pool: dialogue.Pool):
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

  def taken(self) -> tuple[tuple[int, ...], tuple[UInt8[np.ndarray, "height width 3"], ...]]:
    """Numbers and pixels of what was read since this was last asked."""
    found = self._frames, self._pixels
    self._frames, self._pixels = (), ()
    return found
