"""Errors for the user: the message is one line, and the command prints it without a traceback."""

import re
import unicodedata

_LINE_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _escape(match: re.Match[str]) -> str:
  return match[0].encode("unicode_escape").decode()


class InputError(Exception):
  """A file, a record or a flag that the user gave is wrong.

  The message is one line: the name of the file, record or flag, what is wrong with it and, where
  it helps, what to do. The command line prints it and exits with code 2, without a traceback.
  Line breaks, which come from the values of files, become escapes.
  """

  def __init__(self, message: object):
    super().__init__(_LINE_BREAKS.sub(_escape, str(message)))


class PassingError(InputError):
  """What the system refused for a reason that may pass by itself.

  The command line exits with code 1, so that whoever started it starts it again.
  """


class Diverged(Exception):
  """Too many updates in a row had a loss or gradient that is not finite; training stops.

  The command line prints the message and exits with code 3.
  """


class Unready(Exception):
  """This machine can't run now what it is asked to; perhaps later it can.

  The message is one line with the host's name. The command line prints it and exits with code 75.
  """

  def __init__(self, message: object):
    super().__init__(_LINE_BREAKS.sub(_escape, str(message)))


class Preempted(BaseException):
  """The machine is taken away; what was done is saved as the message says.

  As KeyboardInterrupt, it comes from a signal: code that catches Exception must not swallow it.

  The command line prints the message and exits with code 75, so that whoever started it starts it
  again.
  """


def check_path(flag: str, path: str) -> None:
  """Raises InputError for an address such as gs://bucket/run, which is not a path of this machine.

  flag: that gave it. Written to, it would become a directory named `gs:`.
  """
  if re.match(r"[a-z][a-z0-9+.-]*://", path):
    raise InputError(
      f"{flag}={path}: is no path on this machine; give one, or, on the command line, "
      "gs://BUCKET/PATH (docs/tpu.md)"
    )


def printable(text: str) -> str:
  """Makes a text safe for a terminal: control and direction characters become escapes."""
  return "".join(
    c
    if c in "\n\t" or not unicodedata.category(c).startswith("C")
    else c.encode("unicode_escape").decode()
    for c in text
  )
