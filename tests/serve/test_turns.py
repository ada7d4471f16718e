"""Recipes of several turns behind the endpoint: their turns are played inside."""

from concurrent import futures
import dataclasses
import re

import numpy as np
import pytest

from tests.serve import live_server
from tests.train import nano
from vr_jax import ask
from vr_jax.models.common import conversation
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import play
from vr_jax.rollout import session as session_lib
from vr_jax.serve import command, serving_slots
from vr_jax.train import asked_clip, run_context

# Of greedy replies.
SETTINGS = serving_slots.SlotSettings(
  seed=0, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=8, stride=8
)

part, words, about = live_server.part, live_server.words, live_server.about


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose episodes have up to three turns about ten frames."""
  return live_server.make_run(
    tmp_path_factory.mktemp("turns") / "run",
    "configs/video_mtr.py",
    env__turns=3,
    env__frame_budget=8,
    env__on_invalid_action="explain",
    data__fps=1.0,
    data__frames=64,
    model__prefix_buckets=(480,),
    model__frame_buckets=(4, 8),
    turns__episode_buckets=(512,),
    turns__observation_buckets=(320,),
    turns__frame_buckets=(2, 4),
    turns__decode_chunk=8,
  )


@pytest.fixture(scope="module")
def context(run):
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    config, _ = ask.load_config(run, ["--config.eval.temperature=1.0"])
    return run_context.make_run_context(config, run, judged=False, read=False)


@pytest.fixture(scope="module")
def served(run, root):
  with live_server.serving(run, f"--allowed_root={root}") as server:
    yield server


def test_the_turns_are_those_of_vr_jax_ask(served, context, run, root):
  video, question = root / "clip.mp4", "Which colour?"
  clip = asked_clip.open_clip(video, question, config=context.config)
  session = ask.session(context, ask.load_policy(context, run)[0], clip.pool)
  *events, outcome = session.play(clip.example, seed=3)
  assert isinstance(outcome, session_lib.SessionOutcome)
  turns = [event for event in events if isinstance(event, session_lib.SessionTurn)]
  assert len(turns) > 1
  fields = {"temperature": 1.0, "seed": 3}
  full = served.ask(about(video), reply="full", **fields)
  assert full.vr_jax["turns"] == [
    {"reply": turn.reply, "frames": list(turn.frames)} for turn in turns
  ]
  assert live_server.text(full) == "\n".join(turn.reply for turn in turns)
  assert full.vr_jax["answered"] == (outcome.answer is not None)
  pieces = served.ask(about(video), reply="full", stream=True, **fields)
  streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
  assert streamed == live_server.text(full)
  assert live_server.text(served.ask(about(video), **fields)) == (outcome.answer or "")


def test_what_such_a_recipe_can_not_play_is_refused(served, root):
  video = part("video", root / "clip.mp4")
  for content in ("Who?", [video, video, words("Who?")], [part("image", root / "picture.png")]):
    asked = content if isinstance(content, str) else [*content, words("Who?")]
    error = served.refused(asked)
    assert "this recipe plays several turns about one video" in error.message
  assert "have several turns" in served.refused(about(root / "clip.mp4"), stop="x").message
  rate = {"video": {"fps": 1.0}}
  error = served.refused(about(root / "clip.mp4"), media_io_kwargs=rate)
  assert "this recipe chooses frames itself; give num_frames" in error.message


def test_a_question_that_a_later_turn_has_no_room_for_is_refused_alone(served, root):
  """The first turn holds it; what follows a reply that can't be used repeats it, and doesn't."""
  video, fields = root / "clip.mp4", {"temperature": 1.0, "seed": 3}
  alone = live_server.text(served.ask(about(video), reply="full", **fields))
  with futures.ThreadPoolExecutor(2) as pool:
    beside = pool.submit(served.ask, about(video), reply="full", **fields)
    error = served.refused(about(video, "0123456789" * 25), **fields)
    assert live_server.text(beside.result()) == alone
  assert error.status_code == 400
  assert re.fullmatch(
    r".*the prompt, turn 2: \d+ tokens shown in a turn \(config.turns.observation_buckets\), "
    r"but the largest bucket has 320; shorten it or add a bucket.*",
    error.message,
  )


def test_frames_of_a_later_turn_are_read_as_if_they_stood_in_the_prompt(context, run):
  """Greedy replies after prompt, reply and frames in the cache, and after all of it as a prompt."""
  params, _ = ask.load_policy(context, run)
  schedule = play.make_schedule(context.config, context.environment, context.processor)
  slots = serving_slots.ServingSlots(context, params, schedule=schedule, rows=4, length=512)
  processor, pixels = context.processor, np.random.default_rng(0)
  picture = conversation.Image(pixels=pixels.integers(0, 255, (64, 64, 3), np.uint8))
  prompt = processor.encode_conversation(
    [conversation.Message(role="user", parts=(picture, "Which colour?"))]
  )
  first = slots.insert(0, _with_features(slots, prompt))
  slots.decode({0: (first, SETTINGS)})
  shown = processor.continue_conversation(
    [conversation.Message(role="user", parts=("And here?", picture, "And then?", picture))],
    after=first.replies[-1],
  )
  reply = processor.encode_tokens(first.replies[-1])
  joined = prompts_lib.join([prompt, reply, shown], name="all of it")
  slots.append(first, shown, 8)
  slots.decode({0: (first, SETTINGS)})
  whole = slots.insert(1, _with_features(slots, joined))
  slots.decode({1: (whole, SETTINGS)})
  assert len(first.replies) == 2
  assert first.replies[1] == whole.replies[0]
  assert len(whole.replies[0]) == 8


def test_on_several_devices_a_reply_has_the_tokens_that_it_has_on_one(run):
  found = []
  for words, count in (
    ((), 1),
    (("--config.mesh=(1,4,2,1)", "--config.rl.decode_layout=tensor"), 8),
  ):
    config = command.parse(["serve", f"--checkpoint={run}", *words]).config
    with pytest.MonkeyPatch.context() as patch:
      nano.use_devices(patch, count)
      context = run_context.make_run_context(config, run, judged=False, read=False)
    params, _ = ask.load_policy(context, run)
    schedule = play.make_schedule(context.config, context.environment, context.processor)
    slots = serving_slots.ServingSlots(context, params, schedule=schedule, rows=8, length=512)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    message = conversation.Message(
      role="user", parts=(conversation.Image(pixels=pixels), "Which colour?")
    )
    prompt = context.processor.encode_conversation([message])
    replies = {slot: slots.insert(slot, _with_features(slots, prompt)) for slot in (0, 5)}
    settings = [dataclasses.replace(SETTINGS, seed=slot, temperature=slot / 5) for slot in (0, 5)]
    slots.decode(dict(zip(replies, zip(replies.values(), settings, strict=True), strict=True)))
    found.append([reply.replies for reply in replies.values()])
  assert found[0] == found[1]
  assert found[0][0] != found[0][1]


def _with_features(slots, encoded):
  return dataclasses.replace(encoded, features=slots.features(encoded))
