"""Functions of the task vr_jax_choice, which run in lmms-eval's own environment.

A document has `id`, `path` (of a video), `question`, `options` with their letters, and `answer`.
"""

from lmms_eval.tasks.mvbench import utils as mvbench  # pyright: ignore[reportMissingImports]


def show(doc):
  """The video's path."""
  return [doc["path"]]


def ask(doc, lmms_eval_specific_kwargs=None):
  """The question and its options, a line each; the server adds the recipe's instruction."""
  del lmms_eval_specific_kwargs
  return "\n".join((doc["question"], *doc["options"]))


def score(doc, results):
  """The score of a reply by lmms-eval's own rule for letters."""
  return {"accuracy": float(mvbench.mcq_acc(doc["answer"], results[0]))}
