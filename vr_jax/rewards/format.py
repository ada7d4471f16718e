"""The format reward: is the reply exactly one <think> block and one <answer> block?"""

from collections.abc import Sequence

from vr_jax import records

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(reply: str) -> float:
  """1 if the reply is `<think>…</think>`, white space and `<answer>…</answer>`, else 0.

  Each of the four tags must appear exactly once, which excludes nesting. The blocks may contain any
  other text. Anything before or after the blocks, even white space, gives 0.

  Source: MOSS-ChatV, arXiv 2509.21113, and Video-R1, arXiv 2503.21776.
  """
  if any(reply.count(tag) != 1 for tag in _TAGS):
    return 0.0
  think, think_end, answer, answer_end = _TAGS
  between = reply[reply.index(think_end) + len(think_end) : reply.index(answer)]
  spans_reply = reply.startswith(think) and reply.endswith(answer_end)
  in_order = reply.index(think_end) < reply.index(answer)
  return float(spans_reply and in_order and not between.strip())


def format_rewards(replies: Sequence[str], examples: Sequence[records.Example]) -> list[float]:
  """`format_reward` of each reply, whatever the example."""
  del examples
  return [format_reward(reply) for reply in replies]
