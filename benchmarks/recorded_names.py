"""Recorded results, read under today's names of metrics and config fields.

The results in docs/claims were recorded before some of those names changed.
"""

from collections.abc import Mapping
import json
import re
from typing import Any

_NAMES = {
  "reply_tokens": "completions/mean_length",
  "no_signal_share": "frac_reward_zero_std",
  "exploration/share": "exploration/bonus_fraction",
}
_FLAGS = {
  "env.alignment": "env.dtw_alignment",
  "env.credit": "env.reward_assignment",
  "env.window": "env.history_turns",
  "rl.credit": "rl.advantage_estimator",
  "rl.shuffled": "rl.num_shuffled_generations",
}
# Values of an older `env.credit` that `rl.advantage_estimator` takes today.
_ADVANTAGE_ESTIMATORS = ("outcome", "joint")
_PATTERNS = (
  (re.compile(r"reward/(.+)"), r"rewards/\1/mean"),
  (re.compile(r"no_signal_share/(.+)"), r"frac_reward_zero_std/\1"),
)


def current(text: str) -> dict[str, Any]:
  """Parses a recorded result; `metrics`, `tenths` and `flags` get today's names."""
  result = json.loads(text)
  result["flags"] = [_flag(flag) for flag in result.get("flags", [])]
  for field in ("metrics", "tenths"):
    result[field] = _renamed(result.get(field, {}))
  return result


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
  return {_name(name): value for name, value in values.items()}


def _name(name: str) -> str:
  head, rest = "", name
  if name.startswith(("training/", "first/", "last/")):
    head, rest = name.split("/", 1)
    head += "/"
  if rest in _NAMES:
    return head + _NAMES[rest]
  for pattern, new in _PATTERNS:
    if match := pattern.fullmatch(rest):
      return head + match.expand(new)
  return name


def _flag(flag: str) -> str:
  name, equals, value = flag.removeprefix("--config.").partition("=")
  if not flag.startswith("--config.") or name not in _FLAGS:
    return flag
  if name == "env.credit" and value in _ADVANTAGE_ESTIMATORS:
    name = "rl.credit"
  return f"--config.{_FLAGS[name]}{equals}{value}"
