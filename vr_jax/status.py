"""`vr-jax status WORKDIR`: where a run is, how fast it goes, and what it last said; without JAX.

    vr-jax status runs/demo

The directory may be on a disk that other machines write to. docs/watching.md explains the lines.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
import sys
import time
from typing import Any

from vr_jax import durations, errors, goodput, plain_json, process_state

_RECENT = 10  # steps whose mean time is the rate
_SHOWN = ("accuracy", "loss", "key_frame_value", "box_iou", "kl")
_LONGEST = 400  # characters of a reply


def status(words: Sequence[str]) -> None:
  """Prints the status of the run in a directory, or what the command is for (--help).

  words: the command line after `vr-jax`.

  Raises errors.InputError if it is no workdir.
  """
  if {"-h", "--help"} & {*words[1:]}:
    sys.stdout.write(__doc__ or "")
    return
  if len(words) != 2 or words[1].startswith("-"):
    raise errors.InputError("status: needs one workdir: vr-jax status runs/demo")
  errors.check_path("status", words[1])
  workdir = Path(words[1])
  for line in report(workdir, read_config(workdir), time.time()):
    sys.stdout.write(errors.printable(line) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
  """The config that a workdir was made with. Raises errors.InputError if it is no workdir."""
  try:
    config = plain_json.parse((workdir / "config.json").read_bytes())["config"]
    if isinstance(config, dict):
      return config
  except (OSError, ValueError, KeyError, TypeError):
    pass  # raised below, as for a config that is not an object
  raise errors.InputError(f"{workdir}: is no workdir of a run (no readable config.json)")


def report(workdir: Path, config: dict[str, Any], now: float) -> Iterator[str]:
  """Yields the lines of the status. now: seconds since 1970."""
  yield f"{workdir}: {config.get('recipe')}"
  steps, states = read_steps(workdir), process_state.read_all(workdir)
  if steps:
    yield from _progress(steps, config, any(each.state == "running" for each in states))
  if times := goodput.read(workdir):
    yield str(times)
  for each in states:
    age = now - each.time
    said = f"{each.state}, {each.place}, {durations.as_text(age)} ago"
    if each.state != "running":
      said = f"{each.state} {durations.as_text(age)} ago{f': {each.error}' if each.error else ''}"
    elif age > process_state.SILENT:
      said = f"silent since {durations.as_text(age)}; it was at: {each.place}"
    yield f"process {each.process} on {each.host}: {said}"
    if each.state == "running" and each.error:
      yield f"  its last start failed: {each.error}"
  if not states:
    yield "no process has said yet what it does"
  yield from _last_completion(workdir)


def _progress(steps: list[dict[str, Any]], config: dict[str, Any], running: bool) -> Iterator[str]:
  """Step, rate, time left of a run that goes on, and the last metrics."""
  last = steps[-1]
  stage, step = last["stage"], last["step"]
  section = config.get(stage)
  total = section.get("steps") if isinstance(section, dict) else None
  total = total if _is_number(total) else None
  recent = [each["values"] for each in steps if each["stage"] == stage][-_RECENT:]
  times = [time for each in recent if _is_number(time := each.get("perf/time/step")) and time]
  line = f"{stage}: step {step}" + (f" of {total}" if total else "")
  if times:
    seconds = sum(times) / len(times)
    line += f", {seconds:.3g} s a step"
    if running and total and step < total:
      line += f", {durations.as_text((total - step) * seconds)} left"
  yield line
  shown = {
    name: value
    for name, value in last["values"].items()
    if _is_number(value)
    and (name in _SHOWN or (name.startswith("rewards/") and name.endswith("/mean")))
  }
  if shown:
    yield "  " + "  ".join(f"{name.removesuffix('/mean')} {v:.3g}" for name, v in shown.items())


def _last_completion(workdir: Path) -> Iterator[str]:
  """The first reply of the last step whose rollouts are there."""
  files = sorted((workdir / "rollouts").glob("step-*.jsonl"))
  if not files:
    return
  try:
    with files[-1].open(encoding="utf-8") as lines:
      group = plain_json.parse(next(lines))
    reply, step, question = group["replies"][0], group["step"], group["question"]
    text, total = str(reply["text"]), reply.get("rewards", {}).get("total")
  except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration):
    return  # it is being written
  yield f"a reply of step {step} to {question!r} (reward {total}):"
  yield from (f"  {line}" for line in text[:_LONGEST].splitlines())


def read_steps(workdir: Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl that are whole."""
  try:
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines()
  except OSError:
    return []
  found = []
  for line in lines:
    try:
      step = plain_json.parse(line)
    except ValueError:
      continue  # the last one, while it is written
    if isinstance(step, dict) and _is_step(step):
      found.append(step)
  return found


def _is_step(step: dict[str, Any]) -> bool:
  """Whether a line of metrics.jsonl has what the status says of a step."""
  stage, values = step.get("stage"), step.get("values")
  return isinstance(stage, str) and _is_number(step.get("step")) and isinstance(values, dict)


def _is_number(value: Any) -> bool:
  return plain_json.has_type(value, float)
