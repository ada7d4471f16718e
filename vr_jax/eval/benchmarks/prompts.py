"""How public programs ask the questions of benchmarks: the texts around an item.

The wording is theirs, as it has to be for scores that can be compared; each function names its
source. Texts are short instructions; questions and options come from the items.
"""

from collections.abc import Callable, Sequence
import dataclasses

from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import strict_rules, tempcompass_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPrompt:
  """What a model reads beside the video.

  system: the system turn; "": none of its own.
  user: the text after the video.
  prefill: how the reply begins; a rule that needs it takes the rest of the reply.
  """

  user: str
  system: str = ""
  prefill: str = ""


# Takes an item and the subtitles that are shown.
PromptFunction = Callable[[benchmark_item.Item, Sequence[str]], BenchmarkPrompt]

_LETTER_DIRECTLY = "Answer with the option's letter from the given choices directly."


def mvbench(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: Ask-Anything, video_chat2/mvbench.ipynb."""
  return _best_option(
    item,
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail "
    "and movement of objects, and the action and pose of persons. Based on your observations, "
    "select the best option that accurately addresses the question.\n",
  )


def mvbench_lmms_eval(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: lmms-eval, mvbench/utils.py and its YAML."""
  options = "".join(f"{line}\n" for line in strict_rules.lettered(item))
  user = f"Question:{item.question}\nOption:\n{options}Only give the best option."
  return BenchmarkPrompt(user=user)


def mlvu(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: JUNJIE99/MLVU, choice_bench.py and open_bench.py: open questions have no options."""
  if item.scorer == "rubric":
    return BenchmarkPrompt(user=item.question)
  return _best_option(
    item,
    "Carefully watch this video and pay attention to every detail. Based on your observations, "
    "select the best option that accurately addresses the question.\n",
  )


def video_mme(item: benchmark_item.Item, subtitles: Sequence[str]) -> BenchmarkPrompt:
  """Source: Video-MME, README."""
  above = ["This video's subtitles are listed below:", *subtitles] if subtitles else []
  ask = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
  )
  lines = [*above, ask, item.question, *strict_rules.lettered(item), "The best answer is:"]
  return BenchmarkPrompt(user="\n".join(lines))


def egoschema(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: lmms-eval, egoschema/utils.py."""
  return _lines(item.question, *strict_rules.lettered(item), _LETTER_DIRECTLY)


def longvideobench(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """What follows the frames and the subtitles between them (`Protocol.interleaves`).

  Source: LongVideoBench, longvideobench_dataset.py.
  """
  options = strict_rules.lettered(item)
  return _lines(f"Question: {item.question}", *options, _LETTER_DIRECTLY)


def lvbench(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: lmms-eval, lvbench/utils.py and its YAML."""
  options = strict_rules.lettered(item, "({letter}) {text}")
  return _lines(item.question, *options, "Answer the question with the option letter")


def tempcompass(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """A caption is asked for by the question alone.

  Source: llyx97/TempCompass, its script that runs models.
  """
  if item.scorer == "yes_no":
    return _lines(item.question, "Please answer yes or no:")
  if item.scorer == "caption_judge":
    return BenchmarkPrompt(user=item.question)
  is_captions = item.scorer == "caption_match"
  options = tempcompass_rules.caption_lines(item) if is_captions else strict_rules.lettered(item)
  return _lines(item.question, *options, "Please directly give the best option:")


def vsi_bench(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: lmms-eval, vsibench/utils.py."""
  above = "These are frames of a video."
  if item.scorer == "mra":
    return _lines(above, item.question, "Please answer the question using a single word or phrase.")
  return _lines(above, item.question, "Options:", *strict_rules.lettered(item), _LETTER_DIRECTLY)


def video_mmmu(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: lmms-eval, videommmu/utils.py and its YAML."""
  options = strict_rules.lettered(item)
  track = "".join(item.strata.get("track", ()))
  if track == "question_only":
    return _lines(item.question, *options)
  if track != "adaptation":
    ignore = "Please ignore the Quiz question in last frame of the video."
    return _lines(item.question, *options, ignore)
  kind = "multi-choice" if options else "open-ended"
  ask = (
    "You should watch and learn the video content. Then apply what you learned to answer the "
    f"following {kind} question. The image for this question is at the end of the video."
  )
  return _lines(ask, item.question, *options)


def mmvu(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: yale-nlp/MMVU, utils/constant.py: with reasoning."""
  if not item.options:
    return BenchmarkPrompt(
      user=f"\nQuestion: {item.question}\n\nAnswer the given question step by step. Begin by "
      "explaining your reasoning process clearly. Conclude by stating the final answer using the "
      "following format: 'Therefore, the final answer is: 'Answer: $ANSWER' (without quotes), "
      "where $ANSWER is the final answer of the question. Think step by step\nbefore answering."
    )
  options = "\n".join(strict_rules.lettered(item, "{letter}: {text}"))
  return BenchmarkPrompt(
    user=f"\nQuestion: {item.question}\n{options}\n\nAnswer the given multiple-choice question "
    "step by step. Begin by explaining your reasoning process clearly. Conclude by stating the "
    "final answer using the following format: 'Therefore, the final answer is: $LETTER' (without "
    "quotes), where $LETTER is one of the options. Think step by\nstep before answering."
  )


def video_r1(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """Source: Video-R1, src/eval_bench.py. Nothing separates the question from "Options:"."""
  question = item.question
  if item.options:
    options = "".join(f"{line}\n" for line in strict_rules.lettered(item))
    question += f"Options:\n{options}"
  kind = (
    "single option letter (e.g., A, B, C, D, etc.)"
    if item.options
    else "numerical value (e.g., 42 or 3.14)"
  )
  return BenchmarkPrompt(
    user=f"{question}\n"
    "Please think about this question as if you were a human pondering deeply. Engage in an "
    "internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions It's encouraged to "
    "include self-reflection or verification in the reasoning process. Provide your detailed "
    "reasoning between the <think> and </think> tags, and then give your final answer between the "
    f"<answer> and </answer> tags. Please provide {'only ' if item.options else ''}the {kind} "
    "within the <answer> </answer> tags."
  )


def easy_video_r1(item: benchmark_item.Item, _: Sequence[str]) -> BenchmarkPrompt:
  """EasyVideoR1's prompt with reasoning, of multiple choice and of numbers.

  Source: cyuQ1n/EasyVideoR1, eval/code. Its files hold the options in the question, which isn't
  checked here: they follow it in lines.
  """
  question = "\n".join([item.question, *strict_rules.lettered(item)])
  select = "select the best answer to the following multiple-choice question"
  task = select if item.options else "answer the following question"
  begin = (
    f"You should watch and learn the video content. Then apply what you learned to {task} based on "
    "the video.\nBegin by explaining your reasoning process briefly.\n"
  )
  conclude = (
    'Conclude by stating the final answer using the following format: "Therefore, the final '
  )
  if item.options:
    form = 'answer is: $LETTER" (without quotes), where $LETTER must be one of the options.\n'
    return BenchmarkPrompt(user=f"{begin}{conclude}{form}Question: {question}")
  form = 'answer is: $NUMBER" (without quotes), where $NUMBER is your numerical answer.'
  return BenchmarkPrompt(user=f"{begin}Question: {question}\n{conclude}{form}")


def _best_option(item: benchmark_item.Item, system: str) -> BenchmarkPrompt:
  options = "\n".join(strict_rules.lettered(item, "({letter}) {text}"))
  return BenchmarkPrompt(
    system=system,
    user=f"Question: {item.question}\nOptions:\n{options}\nOnly give the best option.",
    prefill="Best option:(",
  )


def _lines(*lines: str) -> BenchmarkPrompt:
  return BenchmarkPrompt(user="\n".join(lines))
