"""The rules that read and score a reply to a benchmark's question, by name.

A rule is a pure function of a reply and its item. `strict` is ours; the others repeat what a public
program does, where they are wrong as well, so that scores can be compared. Questions of kinds
`judge`, `caption_judge` and `rubric`, and most of `reasoning_steps`, need a judge. Its verdict is a
`ScoredAnswer`, too: a score of 0 or 1, or the sum of a rubric's marks.
"""

from collections.abc import Callable, Mapping
import difflib

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import (
  choice_rules,
  open_answers,
  reasoning_steps,
  scored_answer,
  strict_rules,
  tempcompass_rules,
  video_r1_rules,
)

AnswerRule = Callable[[str, benchmark_item.Item], scored_answer.ScoredAnswer]

JUDGED = ("judge", "caption_judge", "rubric", "reasoning_steps")  # kinds of questions


def video_mmmu(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """VideoMMMU's rule for the item's kind of question: choice or open."""
  if item.scorer == "choice":
    return open_answers.video_mmmu_choice(reply, item)
  return open_answers.video_mmmu_open(reply, item)


RULES: Mapping[str, AnswerRule] = {
  "strict": strict_rules.strict,
  "mvbench": choice_rules.mvbench,
  "video_mme": choice_rules.video_mme,
  "mlvu": choice_rules.mlvu,
  "longvideobench": choice_rules.longvideobench,
  "longvideobench_guess": choice_rules.longvideobench_guess,
  "lvbench": choice_rules.lvbench,
  "vsi_bench": choice_rules.vsi_bench,
  "lmms_eval_letter": choice_rules.lmms_eval_letter,
  "tempcompass": tempcompass_rules.tempcompass,
  "video_mmmu": video_mmmu,
  "video_r1": video_r1_rules.video_r1,
  "easy_video_r1": video_r1_rules.easy_video_r1,
}


def score(rule: str, reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Scores a reply by the rule of that name.

  Raises InputError if no rule has that name, the item has no released answer, its kind needs a
  judge, or the rule has nothing to say about that kind.
  """
  if rule not in RULES:
    near = difflib.get_close_matches(rule, RULES, cutoff=0.4) or list(RULES)
    raise InputError(f"answer rule {rule!r}: unknown; did you mean {' or '.join(near)}?")
  if needs_judge(item):
    raise InputError(f"{item.id}: a question of kind {item.scorer!r} needs a judge")
  if not item.answer:
    raise InputError(f"{item.id}: its answer was not released; send the replies to the server")
  return RULES[rule](reply, item)


def needs_judge(item: benchmark_item.Item) -> bool:
  """Whether a judge has to score replies to this question."""
  if item.scorer == "reasoning_steps":
    # The accuracy of its answers; the steps always need one.
    return not item.options and reasoning_steps.interval_score(item.answer, item.answer) is None
  return item.scorer in JUDGED
