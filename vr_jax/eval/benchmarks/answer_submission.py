"""The file that EgoSchema's server scores: an index for each question, {"<q_uid>": 3, …}.

Answers of 500 of its 5,031 questions are public. The server counts questions that the file lacks as
missing, so what the rule can't read is left out: nothing is guessed. Nothing is sent from here.

Source: egoschema/EgoSchema, validate.py; what the server says: lmms-eval, egoschema/utils.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path

from vr_jax import atomic
from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import answer_rules, protocols, reply_store

_BENCHMARK = "egoschema"


def is_needed(items: Sequence[benchmark_item.Item]) -> bool:
  """Whether a server has to score some of the items, by such a file."""
  return any(item.benchmark == _BENCHMARK and not item.answer for item in items)


def write(
  path: Path,
  protocol: protocols.Protocol,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
) -> int:
  """Writes the indices of the options that replies choose; returns how many there are."""
  chosen = {}
  for item in items:
    stored = replies.get(item.id)
    if stored is None or stored.problem:
      continue
    if stored.truncated and "truncated" not in protocol.counted:
      continue
    # Rules compare with the right letter; which one it is does not change what they read.
    known = dataclasses.replace(item, answer=item.answer or item.letters[0])
    letter = answer_rules.score(protocol.rule, stored.reply, known).parsed
    if letter is not None and letter in item.letters:
      chosen[item.id] = item.letters.index(letter)
  atomic.write_bytes(path, [json.dumps(chosen, indent=0).encode(), b"\n"])
  return len(chosen)
