"""Made-up questions of benchmarks, and scored replies to them."""

from typing import Any

from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import scored_reply

OPTIONS = ("dog", "cat", "a red ball", "bird")


def question(answer="B", scorer: Any = "choice", options=OPTIONS, benchmark="mvbench", **fields):
  """A question; only multiple choice and captions have options."""
  if scorer not in ("choice", "caption_match", "reasoning_steps"):
    options = ()
  return benchmark_item.Item(
    id="q1",
    benchmark=benchmark,
    split="test",
    video="v.mp4",
    question="What is seen?",
    scorer=scorer,
    answer=answer,
    options=options,
    **fields,
  )


def reply(score, cluster="v", number=0, scorer: Any = "choice", measures=None, **strata):
  """A scored reply; strata have one name each, or a tuple of them."""
  return scored_reply.ScoredReply(
    id=f"{cluster}-{number}-{scorer}-{'-'.join(map(str, strata.values()))}",
    cluster=cluster,
    scorer=scorer,
    strata={
      kind: names if isinstance(names, tuple) else (names,) for kind, names in strata.items()
    },
    score=score,
    status="answered",
    measures=measures or {},
  )
