"""Detects observations that leak the answer: they say what to answer instead of what was seen."""

import re
import unicodedata

from vr_jax import records
from vr_jax.rewards import accuracy

# May stand between two words of one statement: all but letters, digits and the end of a sentence.
_GAP = r"[^\w.!?;]*"
_FILL = (
  r"(?:(?:is|was|be|will|would|should|must|can|only|the|to|this|that|question|my|our|final|"
  rf"correct|right|best|option|choice|letter|number|value|therefore|clearly|equals|of|as|here)\b{_GAP})*"
)
_NAME = r"\b(?:answer|solution|(?:correct|right|best) (?:option|choice|one|letter|value))\b"
_VERB = r"\b(?:is|was|will be|would be|should be|must be|as)\b"
_CLAIM = r"(?:answer|solution|choice|option|correct)\b"
_LABEL = re.compile(r"\s*\(?[A-Za-z][.):]+\s*")


def states_answer(example: records.Example, observation: str) -> bool:
  """Whether an observation states the answer as an answer.

  The answer has several forms: the text of `example.answer`, and for multiple choice also the right
  letter, the text of that option, and both. Words are compared without case, with any punctuation
  between them. An observation states the answer if

  - it is only a form, with or without filler words (the, option, is, …): "B", "(B) red", "The
    option B.";
  - a name of the answer (answer, solution, correct option, right choice, …) precedes a form in the
    same sentence, with only filler words in between: "The correct answer to this question is red",
    "<answer>B</answer>";
  - it calls a form the answer: "red is the right answer", "B is correct".

  A letter counts only at the end of the text, or before punctuation, "is", "was", "as", "because",
  "since" or its option's text ("the answer is a matter of time" states no letter). A description is
  no statement: "the circle is red" passes, whether red is the answer or not, and so does "the
  answer depends on the red circle".

  Never raises. False if the example has no answer.
  """
  text, forms = _plain(observation), _forms(example)
  form = rf"(?:{'|'.join(forms)})"
  stated = (
    rf"^[\W_]*{_FILL}{form}[\W_]*$",
    rf"{_NAME}{_GAP}{_FILL}{form}",
    rf"{form}{_GAP}{_VERB}{_GAP}{_FILL}{_CLAIM}",
  )
  return bool(forms) and any(re.search(pattern, text) for pattern in stated)


def _forms(example: records.Example) -> list[str]:
  """Returns patterns of the answer's forms."""
  texts, letters = {_plain(example.answer)}, []
  letter = None
  if example.problem_type == "multiple choice":
    letter = accuracy.option_letter(example.answer, example.options)
  if letter is not None:
    named = [o for o in example.options if accuracy.option_letter(o, example.options) == letter]
    options = {_plain(_LABEL.sub("", option, count=1)) for option in named}
    texts = (texts | options) - {letter.lower()}
    alone = rf"(?<!\w){letter.lower()}"
    letters = [rf"{alone}[\W_]+{_words(option)}" for option in options]
    letters.append(rf"{alone}(?=[\W_]*$|\s*[^\w\s'’]|\s+(?:is|was|as|because|since)\b)")
  return letters + [_words(text) for text in sorted(texts, key=len, reverse=True) if text]


def _words(text: str) -> str:
  """Returns a pattern of a text's words in order, with any punctuation between, as whole words."""
  words = re.findall(r"\w+(?:[.,]\d+)*", text) or [text]
  return rf"(?<!\w)(?<!\d[.,]){_GAP.join(map(re.escape, words))}(?!\w|[.,]\d)"


def _plain(text: str) -> str:
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
