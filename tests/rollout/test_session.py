"""A session: the episode that the engine plays, told turn by turn while it is played."""

from concurrent import futures
import dataclasses
import subprocess
import sys
import threading
import zlib

import jax
import pytest

from tests.rollout import chat
from vr_jax import errors, records, rollout
from vr_jax.envs import video_mtr
from vr_jax.models.common import prompts
from vr_jax.models.qwen2_5_vl import processor
from vr_jax.rollout import dialogue, multi_turn_sampler, session

OPTIONS = ("A. red", "B. blue")
LOOK, ODD, SAY = (
  "<think>?</think><retrieve>2,5</retrieve>",
  "<b>hm",
  "<think>!</think><answer>B</answer>",
)
SCHEDULE = dataclasses.replace(
  chat.SCHEDULE, episode_buckets=(1024,), observation_buckets=(256,), frame_buckets=(2, 4)
)


class Speaker(processor.Qwen2_5_VLProcessor):
  """Reads what a network that knows no words says as one of a few replies, by its tokens."""

  says = (LOOK, ODD, SAY)

  def decode(self, ids):
    return self.says[zlib.crc32(repr([int(i) for i in ids]).encode()) % len(self.says)]


class Pool(chat.Pool):
  """Eight frames."""

  def __init__(self):
    super().__init__(8, step=30)


class Held(Pool):
  """Gives the frames of the first turn, and those of others when `read_on` is set."""

  def __init__(self):
    super().__init__()
    self.read_on = threading.Event()

  def read(self, frames):
    assert len(self.asked) == 0 or self.read_on.wait(20)
    return super().read(frames)


def _session(pool=None, says=Speaker.says, **changes):
  speaker = Speaker(chat.CONFIG, chat.BYTES, 28 * 28, 28 * 28, system="")
  speaker.says = says
  graphdef, params = chat.network()
  fields = {
    "graphdef": graphdef,
    "params": params,
    "allowed_tokens": chat.ALLOWED,
    "processor": speaker,
    "environment": video_mtr.VideoMTR(
      instruction="Think.",
      last_instruction="Answer.",
      turns=3,
      history_turns=2,
      frame_budget=4,
      on_invalid_action="explain",
    ),
    "decoding": chat.decoding(),
    "schedule": SCHEDULE,
    "prefix_buckets": (256, 512),
    "patch_buckets": (SCHEDULE.patches,),
    "pool": pool or Pool(),
  }
  return session.Session(**{**fields, **changes})


def _ask(asking) -> tuple[list[session.SessionTurn], session.SessionOutcome]:
  *turns, outcome = asking
  assert isinstance(outcome, session.SessionOutcome)
  assert all(isinstance(turn, session.SessionTurn) for turn in turns)
  return turns, outcome


def _play_episodes(one, seed):
  """The same episode by the engine itself."""
  example = records.Example(
    id="question",
    video="",
    question="Which?",
    options=OPTIONS,
    answer="",
    problem_type="multiple choice",
    shown=records.Span(start=0.0, end=0.0),
  )
  scene = dialogue.EpisodeScene(example=example, pool=Pool())
  host = dialogue.Dialogue(environment=one.environment, processor=one.processor, scenes=(scene,))
  sizes = prompts.PromptSizes(prefix=512, frames=2, patches=16)
  with futures.ThreadPoolExecutor(1) as threads:
    made = multi_turn_sampler.play(
      one.graphdef,
      one.params,
      host.pad([host.prompt(0)], sizes),
      one.allowed_tokens,
      jax.random.key(seed),
      host,
      decoding=chat.decoding(group=1),
      schedule=SCHEDULE,
      threads=threads,
    )
  return [one.processor.decode(reply) for reply in made.replies[0][0]]


@pytest.mark.parametrize("seed", range(3))
def test_turns_are_those_that_the_engine_plays_with_what_each_was_shown(seed):
  pool = Pool()
  one = _session(pool)
  turns, outcome = _ask(one.ask("Which?", OPTIONS, seed=seed))
  said = [turn.reply for turn in turns]
  assert said == _play_episodes(one, seed)
  assert [turn.number for turn in turns] == list(range(1, len(turns) + 1))
  found = {LOOK: (2,), ODD: (), SAY: ()}
  assert [turn.frames for turn in turns] == [(0, 7), *(found[reply] for reply in said[:-1])]
  for turn in turns:
    assert [int(pixels[0, 0, 0]) for pixels in turn.pixels] == [30 * n for n in turn.frames]
  kinds = {LOOK: "retrieve", ODD: "invalid", SAY: "answer"}
  assert [turn.action.kind for turn in turns] == [kinds[reply] for reply in said]
  ended = said[-1] == SAY
  assert outcome == session.SessionOutcome(answer="B" if ended else None, num_turns=len(turns))
  assert ended or len(turns) == 3


def test_a_turn_is_told_before_the_next_is_shown():
  pool = Held()
  asking = _session(pool, (LOOK,)).ask("Which?", OPTIONS)
  first = next(asking)
  assert isinstance(first, session.SessionTurn)
  assert (first.number, first.frames, pool.asked) == (1, (0, 7), [(0, 7)])
  pool.read_on.set()
  rest, outcome = _ask(asking)
  assert [turn.frames for turn in rest] == [(2,), (2,)]
  assert outcome == session.SessionOutcome(answer=None, num_turns=3)


def test_who_stops_reading_ends_the_episode():
  pool = Held()
  asking = _session(pool, (LOOK,)).ask("Which?", OPTIONS)
  next(asking)
  threading.Timer(0.1, pool.read_on.set).start()
  asking.close()
  assert len(pool.asked) == 2  # the second was under way


def test_what_cant_be_read_is_raised_where_turns_are_read():
  class Broken(Pool):
    def read(self, frames):
      if self.asked:
        raise errors.InputError("clip.mp4: is damaged")
      return super().read(frames)

  asking = _session(Broken(), (LOOK,)).ask("Which?")
  first = next(asking)
  assert isinstance(first, session.SessionTurn) and first.action.kind == "retrieve"
  with pytest.raises(errors.InputError, match="is damaged"):
    next(asking)


def test_a_question_too_long_for_its_buckets_is_an_error():
  with pytest.raises(errors.InputError, match=r"question: \d+ tokens"):
    list(_session(prefix_buckets=(32,)).ask("Which?" * 20))


def test_the_room_has_the_session_by_name_and_imports_nothing_heavy_before():
  assert rollout.Session is session.Session
  code = "import sys, vr_jax.rollout; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
