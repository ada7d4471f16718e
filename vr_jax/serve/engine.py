"""Decodes requests together, on a thread of its own: they enter and leave at the end of a chunk.

    submit ──► waiting ──► a slot: prompt prefilled ──► chunks of steps ──► finished
                               ▲                            │ a turn ended: next observation,
                               └────────────────────────────┘ encoded on threads

A request whose client has gone (`ServingJob.cancel`) leaves the queue, or its slot after the chunk
that is running. Only this thread uses the devices.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import threading
import traceback

import jax
from jaxtyping import PyTree

from vr_jax import errors
from vr_jax.rollout import episodes, play
from vr_jax.serve import bounded_cache, preparation, reply_text, request_error, serving_slots
from vr_jax.train import run_context

_ENCODERS = 2  # threads that encode later turns
_IDLE = 0.5  # seconds between two looks at whether the engine is to end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
  """The job has left the queue for a slot; its frames are not kept any longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnUpdate:
  """What has been sampled since the last update. turn: from 0. ended: whether the turn has."""

  turn: int
  text: str
  ended: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedReply:
  """A reply that is complete.

  texts: of each turn.
  answer: in the last turn; None if it gives none.
  finish_reason: stop or length, of the last turn.
  prompt_tokens: of the prompt and what later turns were shown.
  reply_tokens: that were sampled.
  shown_frames: indices of the single frames that each turn was shown.
  """

  texts: tuple[str, ...]
  answer: str | None
  finish_reason: str
  prompt_tokens: int
  reply_tokens: int
  shown_frames: tuple[tuple[int, ...], ...]


ReplyEvent = TurnUpdate | FinishedReply | request_error.RequestError
Event = Started | ReplyEvent


class ServingJob:
  """A request in the engine. on_event is called on the engine's thread; its last one ends it."""

  def __init__(
    self, prepared: preparation.PreparedRequest, on_event: Callable[[Event], None]
  ) -> None:
    self.prepared, self.on_event = prepared, on_event
    self.cancelled = False
    self.texts: list[reply_text.ReplyText] = []
    self.shown_tokens = len(prepared.encoded.tokens)
    self.shown_frames: list[tuple[int, ...]] = []

  def cancel(self) -> None:
    """Lets it leave the queue or its slot, without another event."""
    self.cancelled = True


@dataclasses.dataclass(eq=False)
class _Running:
  """A job in a slot. observation: the next turn's, while it is being encoded."""

  job: ServingJob
  reply: episodes.EpisodeState
  observation: "futures.Future[episodes.EncodedObservation | None] | None" = None


class Engine:
  """The thread, its queue and the slots.

  completed, cancelled: jobs so far.
  """

  def __init__(
    self,
    context: run_context.RunContext,
    params: PyTree,
    *,
    rows: int,
    max_tokens: int,
    chunk: int = 16,
    feature_bytes: int = 512 << 20,
  ):
    """Starts the thread.

    rows: requests that are decoded together, at least.
    max_tokens: of a reply, for recipes of one turn; others have room for their episode buckets.
    chunk: decoding steps between two looks at the queue, for recipes of one turn.
    feature_bytes: of the features of images and videos that are kept.
    """
    self._context, self._params, self._rows = context, params, rows
    schedule = play.make_schedule(context.config, context.environment, context.processor)
    if schedule.turns == 1:
      schedule = dataclasses.replace(schedule, decode_chunk=min(chunk, max_tokens))
    self._schedule = schedule
    self._length = max(schedule.episode_buckets, default=max_tokens)
    self.features = bounded_cache.BoundedCache[PyTree](feature_bytes, _tree_bytes)
    self._waiting: deque[ServingJob] = deque()
    self._running: dict[int, _Running] = {}
    self._changed = threading.Condition()
    self._closing = False
    self.completed = self.cancelled = 0
    self._encoders = futures.ThreadPoolExecutor(_ENCODERS, "encode turns")
    self._slots = self._open_slots()
    self.rows = self._slots.rows
    self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
    self._thread.start()

  def _open_slots(self) -> serving_slots.ServingSlots:
    return serving_slots.ServingSlots(
      self._context,
      self._params,
      schedule=self._schedule,
      rows=self._rows,
      length=self._length,
    )

  @property
  def is_alive(self) -> bool:
    """Whether the thread works."""
    return self._thread.is_alive()

  @property
  def running(self) -> int:
    """Jobs in slots."""
    return len(self._running)

  def find_features(self, key: str) -> PyTree | None:
    """The features of media that an earlier request showed, on the host; see `Preparer`."""
    return self.features.peek(key)

  def submit(self, job: ServingJob) -> None:
    """Puts a job into the queue. Raises RequestError (503) if the thread has ended, or is to."""
    with self._changed:
      if self._closing:
        raise request_error.RequestError(503, "the server has failed or ends; its log says how")
      self._waiting.append(job)
      self._changed.notify()

  def close(self) -> None:
    """Ends the thread after the chunk that is running; jobs that are not done get an error."""
    with self._changed:
      self._closing = True
      self._changed.notify()
    self._thread.join()
    self._encoders.shutdown(cancel_futures=True)

  def _run(self) -> None:
    """Serves until it is told to end, or can't go on; then answers all who wait."""
    try:
      self._serve()
    except BaseException:
      traceback.print_exc()
    finally:
      with self._changed:
        self._closing = True
        waiting, self._waiting = self._waiting, deque()
      jobs = [one.job for one in self._running.values()]
      for slot in list(self._running):
        self._leave(slot)
      for job in (*jobs, *waiting):
        if not job.cancelled:
          job.on_event(internal_error())

  def _serve(self) -> None:
    while not self._closing:
      self._drop_cancelled()
      self._fill_slots()
      self._append_observations()
      decoding = {slot: one for slot, one in self._running.items() if one.observation is None}
      if decoding:
        self._decode(decoding)
      else:
        self._wait()

  def _wait(self) -> None:
    """Waits for a job, or for an observation."""
    with self._changed:
      if not (self._waiting and len(self._running) < self.rows) and not self._closing:
        ready = any(one.observation and one.observation.done() for one in self._running.values())
        if not ready:
          self._changed.wait(_IDLE)

  def _wake(self, _: object) -> None:
    with self._changed:
      self._changed.notify()

  def _drop_cancelled(self) -> None:
    with self._changed:
      kept = [job for job in self._waiting if not job.cancelled]
      self.cancelled += len(self._waiting) - len(kept)
      self._waiting = deque(kept)
    for slot, one in list(self._running.items()):
      if one.job.cancelled:
        self._leave(slot)
        self.cancelled += 1

  def _fill_slots(self) -> None:
    for slot in range(self.rows):
      if slot in self._running:
        continue
      with self._changed:
        job = self._waiting.popleft() if self._waiting else None
      if job is None:
        return
      with self._answered(job, slot):
        encoded = job.prepared.encoded
        if encoded.frames and encoded.features is None:
          key = job.prepared.features_key
          features = self.features.get_or_make(key, lambda e=encoded: self._slots.features(e))
          encoded = dataclasses.replace(encoded, features=features)
        self._running[slot] = _Running(job, self._slots.insert(slot, encoded))
        self._begin_turn(job, ())
        job.prepared = dataclasses.replace(
          job.prepared, encoded=dataclasses.replace(encoded, frames=(), features=None)
        )
        job.on_event(Started())

  def _begin_turn(self, job: ServingJob, texts: tuple[str, ...]) -> None:
    prepared = job.prepared
    observation = None
    if prepared.pool:
      environment = self._context.environment
      observation = environment.observe(prepared.example, prepared.pool, texts)
    job.shown_frames.append(tuple(observation.frames) if observation else ())
    job.texts.append(
      reply_text.ReplyText(self._context.processor.decode, job.prepared.request.stop)
    )

  def _append_observations(self) -> None:
    for slot, one in list(self._running.items()):
      if one.observation is None or not one.observation.done():
        continue
      with self._answered(one.job, slot):
        observation, one.observation = one.observation.result(), None
        if observation is None:
          self._finish(slot)
          continue
        self._slots.append(one.reply, observation, one.job.prepared.settings.max_tokens)
        one.job.shown_tokens += len(observation.tokens)
        self._begin_turn(one.job, tuple(each.text for each in one.job.texts))

  def _decode(self, decoding: dict[int, _Running]) -> None:
    try:
      ended = self._slots.decode(
        {slot: (one.reply, one.job.prepared.settings) for slot, one in decoding.items()}
      )
    except Exception:
      traceback.print_exc()
      self._start_anew()
      return
    for slot, one in decoding.items():
      with self._answered(one.job, slot):
        self._publish(slot, one, ended=slot in ended)

  def _publish(self, slot: int, one: _Running, *, ended: bool) -> None:
    """Passes on what a chunk added to a reply."""
    turn, job = len(one.reply.replies) - 1, one.job
    text = job.texts[-1]
    new = text.update(one.reply.replies[-1], ended=ended)
    over = ended or text.stopped
    if new or over:
      job.on_event(TurnUpdate(turn=turn, text=new, ended=over))
    if not over:
      return
    if len(one.reply.replies) >= self._schedule.turns:
      self._finish(slot)
      return
    replies = tuple(map(tuple, one.reply.replies))
    one.observation = self._encoders.submit(preparation.later_turn, job.prepared, replies)
    one.observation.add_done_callback(self._wake)

  def _finish(self, slot: int) -> None:
    one = self._running[slot]
    job, last = one.job, one.reply.replies[-1]
    prepared, texts = job.prepared, tuple(each.text for each in job.texts)
    action = self._context.environment.parse_action(
      prepared.example, prepared.pool, texts[-1], len(texts) - 1
    )
    whole = job.texts[-1].stopped or (last and last[-1] in self._context.stop_tokens)
    self._leave(slot)
    self.completed += 1
    job.on_event(
      FinishedReply(
        texts=texts,
        answer=action.answer if action.kind == "answer" else None,
        finish_reason="stop" if whole else "length",
        prompt_tokens=job.shown_tokens,
        reply_tokens=sum(map(len, one.reply.replies)),
        shown_frames=tuple(job.shown_frames),
      )
    )

  def _leave(self, slot: int) -> None:
    one = self._running.pop(slot)
    if one.observation is not None:
      one.observation.cancel()

  @contextlib.contextmanager
  def _answered(self, job: ServingJob, slot: int) -> Iterator[None]:
    """Answers a job with what goes wrong within it; the others go on."""
    try:
      yield
    except errors.InputError as error:
      failure = request_error.RequestError(400, error, code="does_not_fit")
    except request_error.RequestError as error:
      failure = error
    except Exception:
      traceback.print_exc()
      failure = internal_error()
    else:
      return
    if slot in self._running:
      self._leave(slot)
    job.on_event(failure)

  def _start_anew(self) -> None:
    """Answers the jobs in slots with an error and makes new slots, as their arrays are lost."""
    for slot, one in list(self._running.items()):
      self._leave(slot)
      one.job.on_event(internal_error())
    del self._slots  # the devices may have no room for both
    self._slots = self._open_slots()


def internal_error() -> request_error.RequestError:
  """What a client gets to know of a mistake of ours."""
  return request_error.RequestError(
    500, "the server failed at this request; its log says how", code="internal_error"
  )


def _tree_bytes(tree: PyTree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))
