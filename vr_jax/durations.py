"""Durations as a person says them."""


def as_text(seconds: float) -> str:
  """A duration as a person says it: "40 s", "3 min", "2 h 5 min"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  hours, rest = divmod(minutes, 60)
  return f"{hours} h {rest} min" if hours else f"{minutes} min"
