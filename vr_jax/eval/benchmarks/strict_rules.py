"""Our own rule for every kind of question: what a reply states last is its answer.

- A reply with <answer>…</answer> is read there, in the last complete block. Without, what follows
  </think> is read, or the whole reply. A reply that never ends its reasoning or its answer block
  has no answer.
- The answer is what stands there alone ("B", "(b)", "B. red", the text of one option), or what is
  stated last ("the answer is B", "Answer: (B)", "I choose B", \\boxed{B}). Else the lines that are
  an option's letter or text decide, if all name the same one.
- A letter in prose is no answer: "A man throws a ball" has none. "B or C" has none.
- A number is the only one in its text, and not denied or bounded: "3 or 5", "not 5" and "more than
  5" are none; "the two are 5 m apart" is 5. As an open answer it has to be right at two
  decimals, and another text to be the right one but for case, spaces and the marks around it: "no
  EXIT sign" is wrong for "EXIT".
- What can't be read is wrong. Nothing is guessed.
"""

from collections.abc import Callable
import re

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import reasoning_steps, relative_accuracy, scored_answer
from vr_jax.rewards import accuracy, numbers, words

_LETTER_STATED = re.compile(
  r"(?:"
  r"(?i:\b(?:answer|option|choice)(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b|\W{0,3}[:：=]))"
  r"|(?i:(?<!not )(?<!n't )\b(?:choose|select|pick|go\s+with)\b)"
  r"|答案|\\boxed\b"
  r")"
  r"[\s:：是为*_`\"'“(\[{$]*(?i:(?:option|choice|letter|\\text|\\mathrm)\b[\s:：*_(\[{]*)?"
  r"(?P<letter>[A-Za-z])(?![\w'’-])"
)
_OPTION_ALONE = re.compile(r"(?i:option|choice)\s+\(?([A-Z])\)?[.:]?")
# "A" and "I" are words, too, and small letters stand for much: they are letters only where a clause
# ends behind them, or in brackets.
_CLAUSE_ENDS = re.compile(
  r"[^\S\n]*(?:[).,:;!?*_`\]}\"'”$\n]|\\|$)|\s+(?i:because|since|as|is|with)\b"
)
_IN_BRACKETS = re.compile(r"\s*[)\]]")
_ANOTHER = re.compile(r"[)\]*_\s]*(?:,|/|&|\bor\b|\band\b)\s*[(\[*]*[A-Z](?![\w'’])")
_YES_NO_STATED = re.compile(
  r"\b(?:answer|option|choice)(?:\s+(?:is|would\s+be)\b|\W{0,3}[:：=])\W*(?P<word>yes|no)\b", re.I
)
_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.I)
_NUMBER_STATED = re.compile(
  r"\b(?:answer|value|result|estimate)(?:\s+is\b|\W{0,3}[:：=])\s*"
  r"(?=(?P<number>[^\n]*))",
  re.I,
)
_TEXT_STATED = re.compile(r"\banswer(?:\s+is\b|\W{0,3}[:：=])\s*(?=(?P<text>[^\n]*))", re.I)
_COUNT = (
  r"\b(?:an?\s+)?(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|quarter|few"
  r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b"
)
_DIGITS = r"[$€£~≈]?[+-]?\.?\d"
_BESIDE = (
  r"(?:\s*[-–—/~×]\s*|,?\s+(?:or|to|and|nor|by|plus|minus|times|maybe|perhaps|possibly)\s+"
  r"|(?:\s+[^\W\d]+){1,2},?\s+(?:and|or)\s+)"
)
# With these words, a number in a text is not the value that the text gives: it is denied or a
# bound, or a number in words is a second one. "The two sofas", "over the lake" are none of these.
_NO_VALUE = re.compile(
  r"\b(?:no|not|cannot|never|neither|nor|without|except)\b|n['’]t\b"
  r"|\b(?:more|less|fewer|greater|other|rather)\s+than\b|\bat\s+(?:least|most)\b|[<>≤≥≠±]"
  rf"|\b(?:over|above|under|below|beyond|up\s+to|or)\s+(?:(?:about|around|the)\s+)?{_DIGITS}"
  r"|\b(?:and|or)\s+(?:over|above|under|below|up|more|less|fewer|beyond)\b(?!\s+\w)"
  rf"|\d\s+or\b|\bor\s+(?:\w+\s+)?{_COUNT}"
  rf"|{_COUNT}{_BESIDE}{_DIGITS}|\d(?:\s?[a-z]{{1,2}})?{_BESIDE}{_COUNT}"
  rf"|{_COUNT}\s+(?:out\s+)?of\s+(?:\w+\s+)?{_DIGITS}"
  rf"|\b(?:is|are|was|were|see|count|counted)\s+(?:(?:about|only|exactly)\s+)?{_COUNT}"
  r"|\b(?:dozen|hundred)s?\b",
  re.I,
)
_AROUND = " \t*_`$\"'“”‘’.,:;!?()[]{}"
_NUMERAL = re.compile(
  r"(?<![\w^.,])[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?!\d)"
  r"(?i:\s+(?:thousand|million|billion|trillion)\b)?"
)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_REGION = re.compile(r"\[[\s\d.,+-]*\]")
_CAPTION_LABEL = re.compile(r"\b(?:caption|sentence|option|choice)\s+([A-Z]|\d)\b", re.I)


def strict(reply: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Scores a reply by the item's kind of answer. See above.

  Raises InputError if the kind needs a judge, or the item's answer is not of its kind.
  """
  rules: dict[str, Callable[[str, benchmark_item.Item], scored_answer.ScoredAnswer]] = {
    "choice": _score_choice,
    "yes_no": _score_yes_no,
    "caption_match": _score_caption,
    "mra": _score_number,
    "open_rule": _score_open,
    "reasoning_steps": _score_choice if item.options else _score_region,
  }
  if item.scorer not in rules:
    raise InputError(f"{item.id}: a question of kind {item.scorer!r} needs a judge")
  text = final_text(reply)
  return scored_answer.UNPARSED if not text else rules[item.scorer](text, item)


def final_text(reply: str) -> str | None:
  """The part of a reply that states its answer; None if the reply ended before it."""
  if (tagged := accuracy.answer_text(reply)) is not None:
    return tagged
  if "<answer>" in reply:
    return None
  reasoning, closed, rest = reply.rpartition("</think>")
  if not closed and "<think>" in rest:
    return None
  del reasoning
  return rest.strip()


def stated_letter(text: str, item: benchmark_item.Item) -> str | None:
  """The letter of the option that a text gives as its answer; None if it gives none or several."""
  options = lettered(item)
  if (letter := accuracy.option_letter(text, options)) and "\n" not in text.strip():
    return letter
  if (alone := _OPTION_ALONE.fullmatch(text)) and alone[1] in item.letters:
    return alone[1]
  stated = [each for each in _LETTER_STATED.finditer(text) if _is_letter(each)]
  if stated:
    letter = stated[-1]["letter"].upper()
    several = _ANOTHER.match(text, stated[-1].end())
    return letter if letter in item.letters and not several else None
  lines = (line.strip(" \t*_`#>") for line in text.splitlines())
  named = {accuracy.option_letter(line, options) for line in lines if line} - {None}
  return named.pop() if len(named) == 1 else None


def lettered(item: benchmark_item.Item, template: str = "{letter}. {text}") -> list[str]:
  """The options with their letters."""
  return [
    template.format(letter=letter, text=text)
    for letter, text in zip(item.letters, item.options, strict=True)
  ]


def _is_letter(stated: re.Match[str]) -> bool:
  letter, text, end = stated["letter"], stated.string, stated.end()
  if letter in "ai":
    return _IN_BRACKETS.match(text, end) is not None
  return (letter.isupper() and letter not in "AI") or _CLAUSE_ENDS.match(text, end) is not None


def _score_choice(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  return scored_answer.match(stated_letter(text, item), item.answer)


def _score_yes_no(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Yes or no stated as the answer, else as the first word."""
  stated = [each["word"] for each in _YES_NO_STATED.finditer(text)]
  first = _FIRST_WORD.match(text)
  word = stated[-1] if stated else first[1] if first else None
  return scored_answer.match(word and word.lower(), item.answer.strip().lower())


def _score_caption(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """A caption's letter or text, or its label: "Caption B", "Option 2", "Sentence A"."""
  letter = stated_letter(text, item)
  labels = {label.upper() for label in _CAPTION_LABEL.findall(text)}
  if letter is None and len(labels) == 1:
    label = labels.pop()
    letter = chr(ord("A") + int(label) - 1) if label.isdigit() and int(label) else label
  return scored_answer.match(letter if letter in [*item.letters] else None, item.answer)


def _score_number(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """The number that the text gives. Units are ignored."""
  if (number := _given_number(text)) is None:
    return scored_answer.UNPARSED
  value = float(number.value)
  score = relative_accuracy.mean_relative_accuracy(value, right_number(item))
  return scored_answer.ScoredAnswer(parsed=f"{value:g}", score=score)


def _given_number(text: str) -> numbers.Number | None:
  """The number that the text is, is stated, or is the only one in the text."""
  boxed, stated = _BOXED.findall(text), _NUMBER_STATED.findall(text)
  candidates = (text, *boxed[-1:], *stated[-1:], *text.splitlines()[-1:])
  found = (_only_number(each.strip(" \t*_`$.")) for each in candidates)
  return next((number for number in found if number is not None), None)


def _only_number(text: str) -> numbers.Number | None:
  """The number that a text is, or the only one that it has and gives as a value."""
  if (number := numbers.read_number(text)) is not None:
    return number
  found = list(_NUMERAL.finditer(text))
  if len(found) != 1 or _NO_VALUE.search(text):
    return None
  return numbers.read_number(text[found[0].start() :]) or numbers.read_number(found[0][0])


def _score_region(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """Times "[4, 9]" or a box "[10, 20, 30, 40]": the last one in the text."""
  regions = _REGION.findall(text)
  score = reasoning_steps.interval_score(regions[-1], item.answer) if regions else None
  if score is None:
    return scored_answer.UNPARSED
  return scored_answer.ScoredAnswer(parsed=regions[-1], score=score)


def right_number(item: benchmark_item.Item) -> float:
  """The item's answer as a number. Raises InputError if it is none."""
  try:
    return float(item.answer)
  except ValueError:
    raise InputError(f"{item.id}: answer {item.answer!r:.40} is no number") from None


def _score_open(text: str, item: benchmark_item.Item) -> scored_answer.ScoredAnswer:
  """A number where the right answer is one, else the text that is stated, or its last line."""
  if (right := numbers.read_number(item.answer)) is not None:
    number = _given_number(text)
    if number is None:
      return scored_answer.UNPARSED
    score = float(_is_same_number(number, right))
    return scored_answer.ScoredAnswer(
      parsed=f"{float(number.value):g} {number.unit}".strip(), score=score
    )
  stated = [*_BOXED.findall(text)[-1:], *_TEXT_STATED.findall(text)[-1:], text.splitlines()[-1]]
  wanted = _bare(item.answer)
  given = wanted if _bare(text) == wanted else _bare(stated[0])
  return scored_answer.match(given or None, wanted)


def _is_same_number(given: numbers.Number, right: numbers.Number) -> bool:
  """Whether numbers are equal at two decimals. A unit that only one of them has is ignored."""
  pairs = [numbers.as_comparable(given, right)]
  if not (given.unit and right.unit):
    pairs.append((given, right))
  return any(round(float(a.value), 2) == round(float(b.value), 2) for a, b in filter(None, pairs))


def _bare(text: str) -> str:
  """A text without case, marks around it, and more than one space in a row."""
  return " ".join(words.normalize_encoding(text).split()).strip(_AROUND).casefold()
