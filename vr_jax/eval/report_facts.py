"""The report's facts about a run: what was trained, on which device, and how long it took."""

from collections.abc import Mapping
import re
from typing import Any

from vr_jax.eval import report_curves, report_data
from vr_jax.train import learning_signal

NOT_RECORDED = "not recorded"


def facts(run: report_data.ReportRun) -> dict[str, str]:
  """A few facts for the head of the report, by name."""
  about = run.config or {}
  config = _section(about, "config")
  versions = _section(about, "versions")
  revision = str(about.get("git_revision") or NOT_RECORDED)
  found = {
    "recipe": config.get("recipe"),
    "model": _model(_section(config, "model")),
    "device": about.get("device"),
    "training": _duration(sum(each["seconds"] or 0 for each in stages(run))),
    "vr_jax": versions.get("vr_jax"),
    "jax": versions.get("jax"),
    "revision": re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", revision),
  }
  return {name: str(value) for name, value in found.items() if value}


def stages(run: report_data.ReportRun) -> list[dict[str, Any]]:
  """The stages of a run and its evaluations: how much each did, for how long, on which device.

  The time of a training stage is that of its steps, over all starts, without the work of a killed
  start that was done again.
  """
  rows = []
  for stage, curves in run.curves.items():
    steps = max((metric_steps[-1] for metric_steps, _ in curves.values()), default=0)
    _, times = curves.get("perf/time/step", ((), ()))
    seconds = sum(time for time in times if time == time)  # without NaN
    rows.append(
      {
        "title": report_curves.STAGE_TITLES.get(stage, stage),
        "work": counted(steps, "step"),
        "seconds": seconds or None,
        "time": _duration(seconds),
        "device": _device(run.config or {}, stage),
      }
    )
  return rows


def evaluations(run: report_data.ReportRun) -> list[dict[str, Any]]:
  """The same of the evaluations."""
  return [
    {
      "title": f"Evaluation: {each.title}",
      "work": counted(each.examples, "question"),
      "time": _duration(each.seconds or 0),
      "device": each.device or NOT_RECORDED,
    }
    for each in run.evaluations
  ]


def warning(run: report_data.ReportRun) -> str:
  """Says that RL learned nothing, or little, if its rewards say so; else empty."""
  _, fractions = run.curves.get("rl", {}).get(learning_signal.METRIC, ((), ()))
  rl = _section(_section(run.config or {}, "config"), "rl")
  return learning_signal.describe(fractions, str(rl.get("advantage_estimator", "")))


def counted(number: int, noun: str) -> str:
  """A number of things: "1 video", "1,200 videos"."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _device(config: Mapping[str, Any], stage: str) -> str:
  """The device of the last start that ran a stage."""
  history = config.get("history")
  starts = [each for each in history if isinstance(each, dict)] if isinstance(history, list) else []
  devices = [start.get("device") for start in starts if start.get("mode") in (stage, "all")]
  return str((devices and devices[-1]) or NOT_RECORDED)


def _model(section: Mapping[str, Any]) -> str | None:
  """The name of the pretrained model, or the size of a new one; and the rank of adapters."""
  text = _section(_section(section, "architecture"), "text_config")
  name = str(section.get("pretrained") or "").rstrip("/").rpartition("/")[2]
  if not name and text:
    layers, width = text.get("num_hidden_layers"), text.get("hidden_size")
    name = f"new, {layers} layers of width {width}"
  rank = _section(section, "lora").get("rank")
  return f"{name}, LoRA of rank {rank}" if name and rank else name or None


def _duration(seconds: float) -> str:
  """A duration in words; "" for 0."""
  if not seconds:
    return ""
  if seconds < 60:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  value = values.get(name)
  return value if isinstance(value, dict) else {}
