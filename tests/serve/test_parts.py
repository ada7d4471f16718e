"""Parts of the server alone: text of a reply, cache, sampling by rows, and the command's flags."""

from concurrent import futures
import json
import threading
import time

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import plain_limits
from tests.serve import live_server
from vr_jax import errors, main
from vr_jax.rollout import row_sampling, sampler
from vr_jax.serve import bounded_cache, chat_request, command, loopback, reply_text, request_error


@given(
  st.text("ab€😀\n", max_size=30),
  st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3),
  st.integers(1, 5),
)
def test_the_pieces_of_a_text_are_the_text_up_to_the_stop_string_that_ends_first(
  whole, stops, size
):
  ids = list(whole.encode())

  def decode(tokens) -> str:
    return bytes(tokens).decode(errors="replace")

  reply = reply_text.ReplyText(decode, stops)
  pieces = []
  for end in range(size, len(ids) + size, size):
    pieces.append(reply.update(ids[:end], ended=end >= len(ids)))
    if reply.stopped:
      break
  ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
  assert "".join(pieces) == (whole[: min(ends)[1]] if ends else whole)
  assert reply.text == "".join(pieces)


def test_a_cache_forgets_what_was_used_longest_ago_and_makes_a_value_once():
  cache = bounded_cache.BoundedCache[bytes](10, len)
  made = []

  def get(key, size=4):
    return cache.get_or_make(key, lambda: made.append(key) or bytes(size))

  for key in ("a", "b", "a", "c", "a", "b", "large"):
    get(key, 11 if key == "large" else 4)
  assert made == ["a", "b", "c", "b", "large"]
  assert (cache.peek("a"), cache.peek("c"), cache.peek("large")) == (bytes(4), None, None)
  assert (cache.bytes, cache.hits, cache.misses) == (8, 2, 5)


def test_looking_at_a_value_keeps_it_in_the_cache():
  cache = bounded_cache.BoundedCache[bytes](2, len)
  for key in ("a", "b"):
    cache.get_or_make(key, lambda: b"x")
  assert cache.peek("a") == b"x"
  cache.get_or_make("c", lambda: b"x")
  assert (cache.peek("a"), cache.peek("b")) == (b"x", None)


def test_who_asks_for_what_is_being_made_waits_for_it_and_gets_its_error():
  cache, begun, go_on = (
    bounded_cache.BoundedCache[int](10, int),
    threading.Event(),
    threading.Event(),
  )

  def make():
    begun.set()
    assert go_on.wait(10)
    raise ValueError("bad")

  with futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(cache.get_or_make, "key", make)
    assert begun.wait(10)
    second = pool.submit(cache.get_or_make, "key", lambda: 1)
    while not cache.hits:
      pass
    go_on.set()
    for each in (first, second):
      with pytest.raises(ValueError, match="bad"):
        each.result()
  assert cache.get_or_make("key", lambda: 3) == 3


SHAPE = (64, 50)


def _draw(logits, *, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0):
  rows = row_sampling.RowSampling(
    key_data=np.stack([row_sampling.reply_key(seed + row) for row in range(len(logits))]),
    temperature=np.full(len(logits), temperature, np.float32),
    top_p=np.full(len(logits), top_p, np.float32),
    top_k=np.full(len(logits), top_k, np.int32),
    min_p=np.full(len(logits), min_p, np.float32),
  )
  index = jnp.zeros(len(logits), jnp.int32)
  return np.asarray(row_sampling.sample_tokens(logits / row_sampling.divisor(rows), rows, index)[0])


def test_a_row_draws_what_the_sampler_draws_with_the_same_settings():
  logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, SHAPE), jnp.float32)
  for limits in (
    {},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 0.0},
    {"top_p": 0.0},
    {"top_p": 0.7, "top_k": 9, "min_p": 0.05},
    {"min_p": 0.2},
  ):
    settings = {"temperature": 1.0, "top_p": 1.0, **limits}
    decoding = sampler.Decoding(group=1, max_new_tokens=1, stop_tokens=(), **settings)
    for row in range(2):
      key = jax.random.key(row)[None]
      keys = sampler.reply_keys(key[0], jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
      expected, _ = sampler.sample_token(
        logits[row : row + 1] / (settings["temperature"] or 1.0), keys, jnp.int32(0), decoding
      )
      assert _draw(logits[row : row + 1], seed=row, **settings)[0] == expected[0]


def test_top_k_keeps_the_most_likely_tokens_of_its_row_alone():
  table = np.random.default_rng(1).normal(0, 1, SHAPE[1]).astype(np.float32)
  order = np.argsort(-table)
  logits = jnp.asarray(np.tile(table, (300, 1)))
  drawn = _draw(logits, top_k=3)
  assert set(drawn) == set(order[:3])
  weights = np.exp(table[order[:3]].astype(np.float64))
  shares = np.bincount(drawn, minlength=SHAPE[1])[order[:3]] / len(drawn)
  np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.1)
  assert set(_draw(logits, top_p=0.6, top_k=2)) <= set(order[:2])
  assert len(set(_draw(logits))) > 10


def test_each_row_has_limits_of_its_own():
  table = np.random.default_rng(1).normal(0, 1, SHAPE[1]).astype(np.float32)
  limits = (
    {},
    {"top_k": 3},
    {"min_p": 0.3},
    {"top_p": 0.5, "top_k": 9, "min_p": 0.1},
    {"top_p": 0.5, "top_k": 2},
    {"top_p": 0.3, "min_p": 0.6},
  )
  rows = [each for each in limits for _ in range(300)]
  names = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
  columns = {n: np.array([row.get(n, default) for row in rows]) for n, default in names.items()}
  drawn = _draw(jnp.asarray(np.tile(table, (len(rows), 1))), **columns).reshape(len(limits), -1)
  weights = np.exp(table.astype(np.float64))[None] / np.exp(table).sum()
  for each, tokens in zip(limits, drawn, strict=True):
    (allowed,) = plain_limits.kept(weights, **each)
    assert allowed[tokens].all()
    assert len(set(tokens)) == allowed.sum() or not each


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_body_is_read_or_refused(body):
  try:
    chat_request.parse(body)
  except request_error.RequestError as error:
    assert error.status == 400


def _refusal(**fields) -> str:
  messages = [{"role": "user", "content": "Why?"}]
  with pytest.raises(request_error.RequestError) as caught:
    chat_request.parse(json.dumps({"messages": messages, **fields}).encode())
  assert caught.value.status == 400
  json.dumps(caught.value.body, ensure_ascii=False).encode()  # as the response is written
  return str(caught.value)


def test_a_huge_name_of_a_field_is_refused_without_being_compared():
  started = time.process_time()
  assert _refusal(**{"temprature" * 2_000_000: 1}).endswith("e: unknown field")
  assert _refusal(media_io_kwargs={"x" * 20_000_000: 1}).endswith("x: unknown field")
  assert time.process_time() - started < 1  # comparing them with known names takes several


@pytest.mark.parametrize(
  ("fields", "field"),
  [
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    (
      {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\udfff"}]}]},
      "messages",
    ),
    ({"messages": [{"role": "user", "content": "é", "\ud800": 1}]}, "messages"),
    ({"stop": ["\ud83d"]}, "stop"),
    ({"model": "\ud800"}, "model"),
    ({"\ud800": 1}, "?"),
  ],
)
def test_half_of_a_surrogate_pair_is_refused_in_any_field(fields, field):
  assert _refusal(**fields).startswith(f"{field}: holds half of a surrogate pair")


def test_whole_surrogate_pairs_are_characters():
  body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
  assert chat_request.parse(body).messages[0].text == "\U0001f600"


def test_texts_that_no_prompt_holds_are_refused_before_they_are_tokenized():
  half = "x" * (chat_request.MOST_CHARACTERS // 2)
  messages = [{"role": "user", "content": half}] * 2
  assert len(chat_request.parse(json.dumps({"messages": messages}).encode()).messages) == 2
  messages.append({"role": "user", "content": "x"})
  assert "messages: hold 1048577 characters of text, more than" in _refusal(messages=messages)


@pytest.mark.parametrize(
  ("header", "is_here"),
  [
    *(("localhost:8000", True), ("127.0.0.1", True), ("[::1]:8000", True), ("[::1]", True)),
    *(("evil.example:8000", False), ("", False), ("localhost.evil.example", False)),
  ],
)
def test_the_host_of_a_request_names_this_machine_or_does_not(header, is_here):
  assert loopback.is_host(header) == is_here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return live_server.make_run(tmp_path_factory.mktemp("flags") / "run")


def test_a_mistake_on_the_command_line_is_named_in_one_line(run, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv(command.TOKEN_VARIABLE, raising=False)
  here = f"--checkpoint={run}"
  for words, says in (
    ((), "needs --checkpoint"),
    ((here, "clip.mp4"), "clip.mp4: what is it?"),
    ((here, "--prot=1"), "--prot=1: not a flag of vr-jax serve; is --port meant?"),
    ((here, "--port=70000"), "port"),
    ((here, "--queue=0"), "queue"),
    ((here, "--host=0.0.0.0"), "--host=0.0.0.0: others could connect; put a token"),
    ((here, f"--allowed_root={tmp_path}/no"), "no: no such directory"),
    ((here, "--max_tokens=5000"), "--max_tokens=5000: with prompts of up to"),
    ((here, "--host=192.0.2.1"), "others could connect"),
  ):
    assert main.cli(["vr-jax", "serve", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-1], words
  monkeypatch.setenv(command.TOKEN_VARIABLE, "a word that is kept")
  assert main.cli(["vr-jax", "serve", here, "--host=192.0.2.1"]) == 2
  err = capsys.readouterr().err
  assert "can't listen there" in err
  assert "a word" not in err
  assert "a word" not in repr(command.parse(["serve", here, "--host=192.0.2.1"]))


def test_an_address_that_is_taken_is_named():
  with command.listen("127.0.0.1", 0) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(errors.InputError, match=f"--port={port}: can't listen there"):
      command.listen("127.0.0.1", port)
