"""Options and answers as benchmarks write them: with letters, inside questions, as texts."""

from collections.abc import Sequence
import re
import string

from vr_jax.errors import InputError

_LETTERS = string.ascii_uppercase
# "(A) a ball", "A. a ball", "A) a ball", "A: a ball"
_LABELLED = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(.*)", re.DOTALL)


def letter_of_text(answer: str, options: Sequence[str], where: str) -> str:
  """The letter of the option that equals the answer. Raises InputError if none or two do."""
  equal = [index for index, option in enumerate(options) if option == answer]
  if len(equal) != 1:
    found = f"options {' and '.join(_LETTERS[i] for i in equal[:2])}" if equal else "no option"
    raise InputError(f"{where}: answer {answer!r:.60} equals {found} of {list(options)!r:.200}")
  return letter_of_index(equal[0], options, where)


def letter_of_index(index: int, options: Sequence[str], where: str) -> str:
  """The letter of an option by its index from 0. Raises InputError if there is no such option."""
  if not 0 <= index < min(len(options), len(_LETTERS)):
    raise InputError(f"{where}: answer {index} is none of {len(options)} options")
  return _LETTERS[index]


def check_letter(answer: str, options: Sequence[str], where: str) -> str:
  """The letter of an answer such as "B", "(B)" or "B. a ball".

  Raises InputError if it is none of the options, or its text is not that option's.
  """
  labelled = _LABELLED.fullmatch(answer)
  letter = (labelled[1] or labelled[2]) if labelled else answer
  known = _LETTERS[: len(options)]
  if len(letter) != 1 or letter not in known:
    raise InputError(f"{where}: answer {answer!r:.60} is none of the letters {known!r}")
  if labelled and labelled[3].strip() not in ("", options[known.index(letter)]):
    raise InputError(f"{where}: answer {answer!r:.60} is not the text of option {letter}")
  return letter


def strip_letters(options: Sequence[str], where: str, *, required: bool = False) -> tuple[str, ...]:
  """Options without the letters A, B, … that each of them begins with.

  If not all of them do, they stay as they are. required: raises InputError then.
  """
  matches = [_LABELLED.fullmatch(option) for option in options]
  stripped = [match[3].strip() if match else "" for match in matches]
  letters = [(match[1] or match[2]) if match else "" for match in matches]
  if letters == list(_LETTERS[: len(options)]) and all(stripped):
    return tuple(stripped)
  if required:
    raise InputError(f"{where}: options {list(options)!r:.200} do not begin with A, B, …")
  return tuple(options)


def split_question(text: str, where: str) -> tuple[str, tuple[str, ...]]:
  """Splits a question from the options after it, which begin lines: "(A) …" or "A. …".

  A line that begins with no next letter belongs to the option before it.
  Raises InputError if there are not two options, or no question before them.
  """
  question: list[str] = []
  options: list[str] = []
  for line in text.split("\n"):
    match = _LABELLED.fullmatch(line)
    if match and (match[1] or match[2]) == _LETTERS[len(options) : len(options) + 1]:
      options.append(match[3].strip())
    elif options:
      options[-1] = f"{options[-1]}\n{line}".strip()
    else:
      question.append(line)
  if question and question[-1].strip() in ("Options:", "Option:"):
    question.pop()
  whole = "\n".join(question).strip()
  if len(options) < 2 or not all(options) or not whole:
    raise InputError(f"{where}: question {text!r:.120} is not followed by lines (A), (B), …")
  return whole, tuple(options)


def drop_empty(options: Sequence[str], empty: Sequence[str], where: str) -> tuple[str, ...]:
  """Options without those at the end that stand for none.

  Raises InputError if one stands between others: the letters would move.
  """
  kept = list(options)
  while kept and kept[-1] in empty:
    kept.pop()
  if any(option in empty for option in kept):
    raise InputError(f"{where}: an option before others is empty: {list(options)!r:.200}")
  return tuple(kept)
