"""What each process found about its examples, put together in the order of the examples."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vr_jax.eval import evaluated_episode
from vr_jax.parallel import processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedPart:
  """What a process found about its examples, or all found together. Indices are of `replies`.

  chances: what guessing would score, by metric.
  replies: as in eval/<name>.jsonl.
  """

  values: evaluated_episode.Values
  chances: evaluated_episode.Values
  replies: list[dict[str, Any]]


def merge(part: EvaluatedPart, share: int, shares: int) -> EvaluatedPart:
  """Puts the parts of all processes together; all must call this.

  share: which part this is of `shares`. Example i of the whole is in part i % shares.
  """
  parts: dict[int, EvaluatedPart] = {}
  for number, fields in processes.all_gather_json([share, dataclasses.asdict(part)]):
    # Processes with the same rows found the same.
    parts.setdefault(number, _from_json(fields))
  count = sum(len(each.replies) for each in parts.values())
  places = [(parts[index % shares], index // shares) for index in range(count)]

  def merged(field: str) -> evaluated_episode.Values:
    found = {number: getattr(each, field) for number, each in parts.items()}
    names = dict.fromkeys(name for number in sorted(found) for name in found[number])
    return {
      name: {
        index: values[index // shares]
        for index in range(count)
        if index // shares in (values := found[index % shares].get(name, {}))
      }
      for name in names
    }

  return EvaluatedPart(
    values=merged("values"),
    chances=merged("chances"),
    replies=[each.replies[index] for each, index in places],
  )


def _from_json(fields: Mapping[str, Any]) -> EvaluatedPart:
  """A part whose indices JSON has made strings, if it came through JSON."""

  def indexed(values: Mapping[str, Mapping[Any, float]]) -> evaluated_episode.Values:
    return {name: {int(i): value for i, value in each.items()} for name, each in values.items()}

  return EvaluatedPart(
    values=indexed(fields["values"]),
    chances=indexed(fields["chances"]),
    replies=fields["replies"],
  )
