"""Refuses bodies that would take long to parse: nobody else's request goes on while one is parsed.

Python's JSON parser holds the interpreter's lock. What it spends time on is what stands outside of
strings (brackets, commas, digits), escapes within them, and the number of strings. Media are a few
long strings without escapes, or with those of slashes, which some clients write as `\\/`.
"""

import numpy as np

from vr_jax.serve import request_error

MOST_OUTSIDE = 1 << 20  # bytes outside of strings
MOST_SIGNS = 1 << 21  # quotes, and backslashes: of a text as long as any prompt that is all escapes
_ESCAPED = 16  # one of so many bytes of a body may be a backslash in addition
_PIECE = 1 << 20  # bytes that are counted at a time, without the lock
_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]


def check(body: bytes) -> None:
  """Raises RequestError (400) if a body has too much beside its texts. It need be no JSON."""
  content = np.frombuffer(body, np.uint8)
  quotes = backslashes = 0
  for start in range(0, len(content), _PIECE):
    piece = content[start : start + _PIECE]
    quotes += np.count_nonzero(piece == _QUOTE)
    backslashes += np.count_nonzero(piece == _BACKSLASH)
  if quotes > MOST_SIGNS or backslashes > MOST_SIGNS + len(body) // _ESCAPED:
    raise request_error.RequestError(400, "the body's JSON has too many strings, or escapes in one")
  if count_outside(body) > MOST_OUTSIDE:
    raise request_error.RequestError(
      400, f"the body's JSON has more than {MOST_OUTSIDE >> 20} MiB outside of strings"
    )


def count_outside(body: bytes) -> int:
  """The number of bytes outside of strings, in UTF-8 up to where it is no JSON."""
  outside = end = 0
  while (opening := body.find(b'"', end)) >= 0:
    outside += opening - end
    closing = body.find(b'"', opening + 1)
    while closing >= 0 and _is_escaped(body, closing):
      closing = body.find(b'"', closing + 1)
    if closing < 0:
      return outside
    end = closing + 1
  return outside + len(body) - end


def _is_escaped(body: bytes, place: int) -> bool:
  """Whether an odd number of backslashes precedes a place within a string."""
  start = place
  while body[start - 1] == _BACKSLASH:
    start -= 1
  return (place - start) % 2 == 1
