"""Times in a text."""

import re

TIME = re.compile(r"\b\d+(\.\d+)? ?s\b")


def count(text):
  """How many times, as 2s or 3.5 s, a text names."""
  return len(TIME.findall(text))
