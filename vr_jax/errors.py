"""The one error that a user is meant to see."""


class InputError(Exception):
  """Something the user gave us is wrong: a file, a record or a flag.

  The message is one line: what is at fault (by name), what is wrong with it and, where it helps, what to do. The
  command line prints it and exits with code 2, without a traceback.
  """
