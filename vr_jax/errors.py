"""The errors that a user is meant to see, each one line."""


class InputError(Exception):
  """Something the user gave us is wrong: a file, a record or a flag.

  The message is one line: what is at fault (by name), what is wrong with it and, where it helps, what to do. The
  command line prints it and exits with code 2, without a traceback.
  """


class Diverged(Exception):
  """Training can't go on: too many updates in a row with a loss or a gradient that is not finite (exit code 3)."""
