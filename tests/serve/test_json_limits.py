"""A body that would take long to parse keeps nobody else waiting."""

from concurrent import futures
import json
import time

import pytest

from vr_jax.serve import chat_request, json_limits, request_error

QUESTION = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}
MEDIUM = "data:video/mp4;base64," + "AbC/" * (1 << 20)


def body_around(middle: bytes) -> bytes:
  """A body that is right but for a field which may have any value."""
  return b'{"metadata": %s, ' % middle + json.dumps(QUESTION).encode()[1:]


@pytest.mark.parametrize(
  ("text", "outside"),
  [
    ('{"a": 1}', 5),
    ('[1, "],[", 2]', 8),
    ('"a quote \\" and [] more" ]', 2),
    ('["\\\\", "\\\\\\"[", 3]', 7),
    ('["é\\u0022", [ "no end ,,,,', 5),
    ('"" ""', 1),
    ("", 0),
  ],
)
def test_what_stands_outside_of_strings_is_counted(text, outside):
  assert json_limits.count_outside(text.encode()) == outside


@pytest.mark.parametrize(
  "middle",
  [
    b"[" + b"[]," * 500_000 + b"1]",
    b"[" * 3_000_000,
    b"1." + b"1" * 3_000_000,
    b" " * 3_000_000 + b"1",
    b"[" + b'"",' * 1_200_000 + b"1]",
    b'"' + b"\\n" * 3_000_000 + b'"',
    b'"' + b'\\"' * 2_200_000 + b'"',
  ],
)
def test_a_body_that_costs_much_is_refused(middle):
  with pytest.raises(request_error.RequestError, match="the body's JSON has") as refused:
    chat_request.parse(body_around(middle))
  assert refused.value.status == 400


def test_long_texts_and_media_pass_as_clients_write_them():
  parts = [
    {"type": "video_url", "video_url": {"url": MEDIUM}},
    {"type": "text", "text": '",[]\\' * 200_000},
  ]
  plain = json.dumps({"messages": [{"role": "user", "content": parts}]}, indent=2).encode()
  for body in (plain, plain.replace(b"bC/", b"bC\\/")):
    (message,) = chat_request.parse(body).messages
    assert (message.media[0].url, message.text) == (MEDIUM, parts[1]["text"])


def test_another_encoding_in_which_quotes_are_other_bytes_is_refused():
  with pytest.raises(request_error.RequestError, match="is no JSON"):
    chat_request.parse(json.dumps(QUESTION).encode("utf-16"))


def test_others_are_answered_while_a_large_body_is_looked_at(served):
  """What is refused took 25 million numbers to parse, which held the interpreter's lock."""
  large = body_around(b"[" + b"1," * 25_000_000 + b"1]")
  begun = time.perf_counter()
  json.loads(large)
  alone = time.perf_counter() - begun
  waits = []
  with futures.ThreadPoolExecutor(1) as pool:
    refused = pool.submit(served.post, large)
    while not refused.done():
      begun = time.perf_counter()
      assert served.post(None, "/health").status == 200
      waits.append(time.perf_counter() - begun)
  assert refused.result().status == 400
  assert "MiB outside of strings" in refused.result().error["message"]
  assert max(waits) < alone / 2, (waits, alone)
