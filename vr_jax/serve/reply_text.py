"""The text of a reply while it is sampled: what can be shown already, and where it has to stop."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what a character decodes to whose bytes are not all there


class ReplyText:
  """The text of one turn, up to the stop string that is complete first.

  text: what has been sampled so far; only that grows which no later token can change.
  stopped: whether a stop string has come. The text ends before it.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
    self.text, self.stopped = "", False
    self._decode, self._stops = decode, tuple(stops)

  def update(self, tokens: Sequence[int], *, ended: bool) -> str:
    """Takes all tokens so far, and returns what is new in the text.

    ended: whether these are all of the reply.
    """
    whole = self._decode(tokens)
    # Of several, the one that is complete first, as a reader of single tokens would see it.
    found = [(place + len(stop), place) for stop in self._stops if (place := whole.find(stop)) >= 0]
    if found:
      self.stopped = True
      whole = whole[: min(found)[1]]
    elif not ended:
      whole = whole[: self._certain(whole)]
    new, self.text = whole[len(self.text) :], whole
    return new

  def _certain(self, text: str) -> int:
    """The number of characters that neither the next bytes nor a stop string take back."""
    end = len(text.rstrip(_UNFINISHED))
    longest = max(map(len, self._stops), default=0)
    for start in range(max(0, end - longest + 1), end):
      if any(stop.startswith(text[start:end]) for stop in self._stops):
        return start
    return end
