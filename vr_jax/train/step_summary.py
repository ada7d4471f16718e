"""The few values of a step that are shown next to the progress bar."""

from collections.abc import Mapping

_GIB = 1024  # MiB


def summarize(values: Mapping[str, float]) -> dict[str, float | str]:
  """Picks what is shown of a step's metrics, in order.

  Rewards by name, or the loss of the warm start; accuracy on held-out videos, in steps that
  evaluate; the mean length of replies (shortest to longest);
  the learning rate; tokens seen so far; and memory: that in use on the device where it is counted,
  else the largest of the process so far.
  """
  shown: dict[str, float | str] = {
    name.removeprefix("rewards/").removesuffix("/mean"): value
    for name, value in values.items()
    if name.startswith("rewards/") and name.endswith("/mean")
  }
  if not shown:
    shown["loss"] = values["loss"]
  mean, low, high = (values[f"completions/{name}_length"] for name in ("mean", "min", "max"))
  if "eval/accuracy" in values:
    shown["held out"] = values["eval/accuracy"]
  shown["length"] = f"{mean:.3g} ({low:.0f}-{high:.0f})"
  shown["lr"] = values["learning_rate"]
  shown["tokens"] = count(values["num_tokens"])
  on_device = values.get("perf/device_memory_mib")
  memory = values["perf/host_peak_mib"] if on_device is None else on_device
  shown["memory"] = f"{memory / _GIB:.3g} GiB"
  return shown


def count(number: float) -> str:
  """A large number in three digits: "950", "12.3 k", "4.56 M"."""
  for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return f"{number:.0f}"
