"""The format reward: is the whole reply one <think> block and one <answer> block?"""

from collections.abc import Sequence

from vr_jax import records

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(reply: str) -> float:
  """1 if the reply is `<think>…</think>`, white space, `<answer>…</answer>` and nothing else, 0 otherwise.

  Each of the four tags stands exactly once, which rules nesting out. White space around the whole reply counts as
  something else; what stands inside the blocks is free.

  Source: MOSS-ChatV, arXiv 2509.21113, and Video-R1, arXiv 2503.21776.
  """
  if any(reply.count(tag) != 1 for tag in _TAGS):
    return 0.0
  think, think_end, answer, answer_end = _TAGS
  between = reply[reply.index(think_end) + len(think_end) : reply.index(answer)]
  in_place = reply.startswith(think) and reply.endswith(answer_end)
  ordered = reply.index(think_end) < reply.index(answer)
  return float(in_place and ordered and not between.strip())


def format_rewards(replies: Sequence[str], examples: Sequence[records.Example]) -> list[float]:
  """`format_reward` of each reply, whatever the example."""
  del examples
  return [format_reward(reply) for reply in replies]
