"""How the programs of public benchmarks read the letter of an option in a reply.

Each function takes a reply and its item, and returns what the program returned for them, its
mistakes included, so that a score can be compared with published ones. Whatever a program does
with its denominator, ours is fixed (`scored_reply`). `strict_rules.strict` is our own rule.

| function | reads | and is wrong where |
|---|---|---|
| mvbench | the first word after the prefill "Best option:(" | the reply is empty: it is right |
| video_mme | the first of A to D, whatever it belongs to | "Best answer: C" is B; "Dogs. B" is D |
| mlvu | what stands before the first ")" | it is not the letter alone: "(B) red" is wrong |
| longvideobench | the first of A to E | the same; without one, an option is drawn |
| lvbench | one character: of the text in brackets, or of the first word | "The answer is B" is T |
| vsi_bench | the first word | reasoning or a tag precedes the answer |
| lmms_eval_letter | a letter A to E alone, of any case | "The man throws a ball. B" is A |
"""

from collections.abc import Sequence
import re

from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import relative_accuracy, scored_answer, strict_rules

# In the released script, two pairs of these are one text each, for want of a comma.
_VIDEO_MME_LEADS = (
  *("The best answer is", "The correct answer is", "The answer is", "The answer"),
  *("The best option isThe correct option is", "Best answer:Best option:"),
)
_LONGVIDEOBENCH_LEADS = (
  *("The best answer is", "The correct answer is", "The answer is", "The answer"),
  *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)


def mvbench(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """MVBench: the first word of the reply's first line, behind "(", contains "(b)" or is in it.

  The assistant's turn begins with "Best option:(", so a reply is "B) red". Trap: what is in "(b)"
  is right, and so is an empty reply; here that is unparsed.

  Source: OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb.
  """
  first_line = reply.strip().split("\n")[0]
  word = f"({first_line}".lower().split(" ")[0]
  right = f"({item.answer.lower()})"
  score = word.replace(".", "") in right or right in word
  return scored_answer.ScoredAnswer(parsed=word if first_line else None, score=float(score))


def video_mme(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Video-MME: the first capital A, B, C or D that remains without some usual beginnings.

  Trap: it may belong to any word. The script leaves replies without one out of the denominator.

  Source: thanku-all/parse_answer, eval_your_results.py, which Video-MME's README names.
  """
  return scored_answer.match(_first_capital(reply, _VIDEO_MME_LEADS, "ABCD"), item.answer)


def longvideobench(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """LongVideoBench: the first capital A to E, as in Video-MME. Without one, unparsed and wrong.

  Source: the task of lmms-eval, longvideobench/utils.py, by an author of the benchmark.
  """
  return scored_answer.match(_first_capital(reply, _LONGVIDEOBENCH_LEADS, "ABCDE"), item.answer)


def longvideobench_guess(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """The same as the program does it: without a letter it draws an option.

  The score of such a reply is the expected one, 1 / options, so that scoring stays repeatable.
  """
  answer = longvideobench(reply, item)
  if answer.parsed is not None:
    return answer
  return scored_answer.ScoredAnswer(parsed=None, score=1 / len(item.options))


def mlvu(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """MLVU: what stands before the first ")" has to be the letter alone.

  The assistant's turn begins with "Best option:(".

  Source: JUNJIE99/MLVU, choice_bench.py.
  """
  before = reply.strip().partition(")")[0]
  return scored_answer.match(before or None, item.answer)


def lvbench(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """LVBench: the first character of the text in the first brackets, or of the reply.

  Questions without a reply leave the program's denominator.

  Source: THUDM/LVBench, lvbench/utils/answer_util.py.
  """
  before = reply.strip().split(")")[0].strip()
  if "(" in before:
    before = before.split("(")[1].strip()
  return scored_answer.match(before.split(" ")[0][:1] or None, item.answer)


def vsi_bench(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """VSI-Bench: the first word, without full stops behind it, whatever its case; or as a number.

  Numbers score their mean relative accuracy.

  Source: the task of lmms-eval, vsibench/utils.py, as the authors use it. In 0.7.3 it reads the
  first number, wherever it stands.
  """
  word = reply.split(" ")[0].rstrip(".").strip()
  if item.scorer != "mra":
    return scored_answer.match(word.upper() or None, item.answer.upper())
  try:
    number = float(word)
  except ValueError:
    return scored_answer.UNPARSED
  right = strict_rules.right_number(item)
  score = relative_accuracy.mean_relative_accuracy(number, right)
  return scored_answer.ScoredAnswer(parsed=word, score=score)


_LABELLED = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
_GROUPED_DIGITS = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_ALONE = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def lmms_eval_letter(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Lmms-eval's MVBench: "B. red", else the first letter A to E that stands alone, of any case.

  Trap: "a" is a word. Its harness also leaves empty replies out of the denominator.

  Source: lmms-eval, mvbench/utils.py.
  """
  if label := _LABELLED.match(reply.strip()):
    return scored_answer.match(label[1].upper(), item.answer)
  text = re.sub(r"[\n\t]", " ", reply).strip()
  grouped = _GROUPED_DIGITS.search(text) is not None
  original = text
  for sign in ';/[]"{}()=+\\_-><@`,?!':
    beside_space = f"{sign} " in original or f" {sign}" in original
    text = text.replace(sign, "" if beside_space or grouped else " ")
  # The program passes a flag where the number of replacements belongs.
  alone = _ALONE.search(_STOP.sub("", text, count=int(re.UNICODE)).strip("'\" ()"))
  return scored_answer.match(alone[1].upper() if alone else None, item.answer)


def _first_capital(reply: str, leads: Sequence[str], capitals: str) -> str | None:
  text = reply.strip()
  for lead in leads:
    text = text.replace(lead, "")
  return next((char for char in text if char in capitals), None)
