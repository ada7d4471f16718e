"""Chat completions of a real server with the official client: replies, streams, settings."""

from concurrent import futures
import re

import pytest

from tests.serve import live_server
from tests.train import nano
from vr_jax import errors, main

text, about, words = live_server.text, live_server.about, live_server.words


def test_the_reply_is_that_of_vr_jax_ask_about_the_same_clip(served, root, capsys):
  flags = [f"--checkpoint={served.run}", "--seed=3", "--config.eval.temperature=0.9"]
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    assert main.cli(["vr-jax", "ask", str(root / "clip.mp4"), "Which colour?", *flags]) == 0
  printed = capsys.readouterr().out
  reply = served.ask(about(root / "clip.mp4"), temperature=0.9, seed=3)
  assert len(text(reply)) > 10
  assert f"\n{errors.printable(text(reply))}\n" in printed


def test_a_stream_has_the_text_of_the_whole_reply_in_pieces(served, root):
  content, fields = about(root / "clip.mp4"), {"temperature": 1.0, "seed": 5, "max_tokens": 100}
  whole = served.ask(content, **fields)
  pieces = list(served.ask(content, stream=True, stream_options={"include_usage": True}, **fields))
  told = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
  assert "".join(told) == text(whole)
  assert sum(map(bool, told)) > 1
  ends = [piece.choices[0].finish_reason for piece in pieces if piece.choices]
  assert ends[-1] == whole.choices[0].finish_reason
  assert set(ends[:-1]) == {None}
  assert pieces[-1].usage == whole.usage
  assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
  assert 0 < whole.usage.completion_tokens <= 100


def test_a_reply_depends_on_its_seed_and_not_on_the_requests_beside_it(served, root):
  content = about(root / "clip.mp4")
  fields = {"temperature": 1.0, "seed": 11, "max_tokens": 120}
  alone = text(served.ask(content, **fields))
  others = [
    ("clip.mp4", {"temperature": 0.0, "max_tokens": 7}),
    ("other.mp4", {"temperature": 2.0, "seed": 1, "top_p": 0.5, "max_tokens": 200}),
    ("other.mp4", {"temperature": 1.0, "seed": 2, "top_k": 3, "min_p": 0.1, "max_tokens": 150}),
    ("clip.mp4", {"temperature": 1.0, "seed": 12, "max_tokens": 33}),
  ]
  with futures.ThreadPoolExecutor(9) as pool:
    beside = [
      pool.submit(served.ask, about(root / name, "What moves?"), **more)
      for name, more in [*others, *others]
    ]
    again = pool.submit(served.ask, content, **fields)
    replies = [text(each.result()) for each in beside]
  assert text(again.result()) == alone
  assert replies[:4] == replies[4:]
  assert len({alone, *replies}) == 5


def test_greedy_is_top_k_of_one_top_p_of_almost_nothing_and_min_p_of_one(served, root):
  greedy = text(served.ask(about(root / "clip.mp4"), temperature=0))
  for limit in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
    reply = served.ask(about(root / "clip.mp4"), temperature=1.5, seed=9, **limit)
    assert text(reply) == greedy


def test_a_reply_ends_before_a_stop_string_in_a_stream_too(served, root):
  content, fields = about(root / "clip.mp4"), {"temperature": 1.0, "seed": 5, "max_tokens": 60}
  whole = text(served.ask(content, **fields))
  stop = re.findall(r"[!-~]{2}", whole)[-1]
  cut = served.ask(content, stop=["never to be seen", stop], **fields)
  assert text(cut) == whole[: whole.find(stop)]
  assert cut.choices[0].finish_reason == "stop"
  pieces = served.ask(content, stop=stop, stream=True, **fields)
  assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text(cut)


def test_the_answer_alone_is_empty_where_the_reply_gives_none(served, root):
  reply = served.ask(about(root / "clip.mp4"), reply="answer", temperature=1.0)
  assert (text(reply), reply.vr_jax["answered"]) == ("", False)


def test_a_text_and_a_conversation_are_answered_too(served):
  talk = [
    {"role": "system", "content": "You say little."},
    {"role": "user", "content": "Who fell?"},
    {"role": "assistant", "content": "The thief."},
    {"role": "user", "content": [words("Why?")]},
  ]
  one, more = served.ask("Why?", temperature=0), served.ask(None, messages=talk, temperature=0)
  assert more.usage.prompt_tokens > one.usage.prompt_tokens
  assert one.vr_jax["prompt_hash"] == more.vr_jax["prompt_hash"]
  assert one.vr_jax["media"] == []


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"temprature": 1}, "temprature: unknown field; is temperature meant?"),
    ({"n": 2}, "n: only 1 can be served, not 2"),
    ({"logprobs": True}, "logprobs: only False can be served"),
    ({"tools": [{"type": "function"}]}, "tools: only [] can be served"),
    ({"temperature": -1}, "temperature: is -1, not from 0 to 100"),
    ({"temperature": "hot"}, "temperature: needs a finite number"),
    ({"top_p": 1.5}, "top_p: is 1.5, not from 0 to 1"),
    ({"min_p": -0.1}, "min_p: is -0.1, not from 0 to 1"),
    ({"max_tokens": 0}, "max_tokens: is 0, not from 1 on"),
    ({"max_tokens": 5000}, "max_tokens: is 5000; this server's replies have at most 1500"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "is given twice with different values"),
    ({"seed": 2**40}, "seed: is 1099511627776, not from 0"),
    ({"stop": [""]}, "stop: each text needs 1 to 256 characters"),
    ({"reply": "short"}, "reply: needs full or answer"),
    ({"media_io_kwargs": {"video": {"frames": 3}}}, "media_io_kwargs.video.frames: unknown field"),
    ({"media_io_kwargs": {"video": {"fps": 0}}}, "media_io_kwargs.video.fps: is 0, not above 0"),
    ({"video_start": 3, "video_end": 2}, "video_end: 2 s is not after video_start, 3 s"),
    ({"video_end": 2}, "video_end: there is no video in the messages"),
    ({"mm_processor_kwargs": {"min_pixels": 9, "max_pixels": 8}}, "min_pixels is above max_pixels"),
    ({"messages": []}, "messages: needs a list of 1 to 256 messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: is 'tool', not system"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: needs a text or a list"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message is to be the user's"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages[0]: holds no text"),
    ({"model": "gpt"}, "model: 'gpt' is not served here; run is"),
  ],
)
def test_a_field_that_is_unknown_or_wrong_is_named(served, fields, says):
  messages = [{"role": "user", "content": "Why?"}]
  response = served.post({"messages": messages, **fields})
  assert response.status == (404 if "model" in fields else 400)
  assert says in response.error["message"]
  assert "\n" not in response.error["message"]
