"""The simulator's texts, in several wordings: reasoning steps and questions."""

from collections.abc import Sequence
import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
  """The value of one object's attribute in a cell.

  before: its value in the cell before; None in the first cell.
  """

  object: str
  attribute: str
  value: str
  before: str | None = None


_PHRASES = {
  "place": {"centre": "in the centre", "": "at the {value}"},
  "box": {"": "{value} the box"},
  "label": {"": "labelled {value}"},
  "charge": {"": "{value}% charged"},
}

_CHANGES = {
  "colour": {"": "turns {value}"},
  "place": {"centre": "moves to the centre", "": "moves to the {value}"},
  "size": {"": "becomes {value}"},
  "visibility": {"visible": "becomes visible", "hidden": "gets hidden"},
  "box": {"inside": "goes into the box", "outside": "leaves the box"},
  "label": {"": "gets the label {value}"},
  "charge": {"": "becomes {value}% charged"},
}

# For each wording: a step about the shown part, a step about the masked part, and whether a changed
# value is told as a change ("turns green") or as a state ("is green").
_STEPS = (
  ("At {time}, {facts}.", "So at {time}, {facts}.", False),
  ("{Facts} at {time}.", "{Facts} at {time}.", False),
  ("At {time}, {facts}.", "Then at {time}, {facts}.", True),
  ("At {time} I see that {facts}.", "At {time} I expect that {facts}.", False),
  ("By {time}, {facts}.", "By {time}, {facts}.", False),
  ("{Facts} when the clock reads {time}.", "{Facts} when the clock reads {time}.", False),
  ("Now it is {time}: {facts}.", "Once it is {time}: {facts}.", True),
  (
    "The frames at {time} show that {facts}.",
    "The frames at {time} should show that {facts}.",
    False,
  ),
)

# Wordings from here on have other words for these; claims.py reads them. Questions repeat their
# templates, with the other shapes alone.
_OTHER_WORDS_FROM = 4
_OTHER_SHAPES = {"circle": "disc", "square": "block", "cross": "plus sign", "diamond": "rhombus"}
_OTHER_WORDS = {
  **_OTHER_SHAPES,
  "small": "little",
  "medium": "mid-sized",
  "large": "big",
  "purple": "violet",
  "hidden": "out of sight",
  "visible": "in sight",
}

_ASK = {
  "colour": (
    "What colour will the {object} be at {time}?",
    "At {time}, which colour will the {object} have?",
    "Which colour do you expect of the {object} at {time}?",
    "The video goes on. What is the colour of the {object} at {time}?",
  ),
  "place": (
    "Where will the {object} be at {time}?",
    "At {time}, where is the {object} going to be?",
    "Which place do you expect the {object} in at {time}?",
    "The video goes on. Where is the {object} at {time}?",
  ),
  "size": (
    "What size will the {object} be at {time}?",
    "At {time}, which size will the {object} have?",
    "Which size do you expect of the {object} at {time}?",
    "The video goes on. What is the size of the {object} at {time}?",
  ),
  "visibility": (
    "Will the {object} be visible or hidden at {time}?",
    "At {time}, will the {object} be hidden or visible?",
    "Do you expect the {object} to be visible or hidden at {time}?",
    "The video goes on. Is the {object} hidden or visible at {time}?",
  ),
  "box": (
    "Will the {object} be inside or outside the box at {time}?",
    "At {time}, will the {object} be outside or inside the box?",
    "Do you expect the {object} inside or outside the box at {time}?",
    "The video goes on. Is the {object} outside or inside the box at {time}?",
  ),
  "label": (
    "Which number will the {object} be labelled with at {time}?",
    "At {time}, what number will stand below the {object}?",
    "Which number do you expect below the {object} at {time}?",
    "The video goes on. What is the label of the {object} at {time}?",
  ),
  "charge": (
    "How many percent will the {object} be charged at {time}?",
    "At {time}, what will the charge of the {object} be, in percent?",
    "Which charge, in percent, do you expect of the {object} at {time}?",
    "The video goes on. How many percent is the {object} charged at {time}?",
  ),
}

_QUESTIONS = {
  "moment": {
    "colour": (
      "What colour is the {object} at {time}?",
      "At {time}, which colour does the {object} have?",
      "Which colour do you see the {object} in at {time}?",
      "Look at {time}. What is the colour of the {object}?",
    )
  },
  "lamp": {
    "colour": (
      "What colour is the {object} while its lamp is lit?",
      "While the lamp around it is lit, which colour does the {object} have?",
      "Which colour do you see the {object} in while its lamp is lit?",
      "A lamp is lit around the {object} for a while. What colour is the {object} then?",
    )
  },
  "look": {
    "": (
      "What colour and size will the {object} have at {time}?",
      "At {time}, what will the {object} look like, in colour and size?",
      "Which colour and size do you expect of the {object} at {time}?",
      "The video goes on. What colour and size is the {object} at {time}?",
    )
  },
  "visits": {
    "colour": (
      "How many times will the {object} have been {value} by {time}?",
      "By {time}, how often will the {object} have been {value}?",
      "Up to {time}, how many times is the {object} {value}?",
      "The video lasts {time}. How many times is the {object} {value} in it?",
    ),
    "place": (
      "How many times will the {object} have been {phrase} by {time}?",
      "By {time}, how often will the {object} have been {phrase}?",
      "Up to {time}, how many times is the {object} {phrase}?",
      "The video lasts {time}. How many times is the {object} {phrase} in it?",
    ),
  },
  "changes": {
    "visibility": (
      "How many times will the {object} have been covered or uncovered by {time}?",
      "By {time}, how often will the {object} have vanished or come back?",
      "Up to {time}, how many times does the {object} vanish or come back?",
      "The video lasts {time}. How often is the {object} covered or uncovered in it?",
    ),
    "box": (
      "How many times will the {object} have entered or left the box by {time}?",
      "By {time}, how often will the {object} have gone in or out of the box?",
      "Up to {time}, how many times does the {object} enter or leave the box?",
      "The video lasts {time}. How often does the {object} enter or leave the box in it?",
    ),
  },
  "occupancy": {
    "box": (
      "How many objects will be in the box at {time}?",
      "At {time}, how many objects will the box hold?",
      "How many objects do you expect in the box at {time}?",
      "The video goes on. How many objects are in the box at {time}?",
    )
  },
}


def seconds(time: float) -> str:
  """Formats a time in seconds as in the sentences: 4s, 2.5s."""
  return f"{time:g}s"


def step(wording: int, time: float, facts: Sequence[Fact], *, future: bool) -> str:
  """Writes one sentence of reasoning: what is true, or will be true, at a time in seconds."""
  seen, expected, as_change = _STEPS[wording]
  clauses = []
  for shape in dict.fromkeys(fact.object for fact in facts):
    own = [fact for fact in facts if fact.object == shape]
    clauses.append(f"the {shape} {_predicate(own, as_change=as_change, future=future)}")
  text = " and ".join(clauses)
  capital = text[0].upper() + text[1:]
  template = expected if future else seen
  sentence = template.format(time=seconds(time), facts=text, Facts=capital)
  return _replace_words(sentence, _OTHER_WORDS) if wording >= _OTHER_WORDS_FROM else sentence


def question(family: str, attribute: str, wording: int, time: float, shape: str, value: str) -> str:
  """Writes a question. `shape` and `value` are "" for families that don't name them."""
  templates = _QUESTIONS[family][attribute] if family in _QUESTIONS else _ASK[attribute]
  phrase = _phrase(attribute, value) if value else ""
  if wording >= _OTHER_WORDS_FROM:
    shape = _OTHER_SHAPES.get(shape, shape)
  template = templates[wording % len(templates)]
  return template.format(object=shape, time=seconds(time), value=value, phrase=phrase)


def _replace_words(text: str, others: dict[str, str]) -> str:
  return re.sub(r"\w+", lambda match: others.get(match.group(), match.group()), text)


def _predicate(facts: Sequence[Fact], *, as_change: bool, future: bool) -> str:
  """Writes one object's facts as a predicate, for example "turns green and is large"."""
  verb = "will be" if future else "is"
  parts = []
  for fact in facts:
    if not as_change or future or fact.before is None or fact.before == fact.value:
      phrase = _phrase(fact.attribute, fact.value)
      parts.append(phrase if parts and parts[-1].startswith(verb) else f"{verb} {phrase}")
    else:
      parts.append(_fill(_CHANGES[fact.attribute], fact.value))
  return " and ".join(parts)


def _phrase(attribute: str, value: str) -> str:
  return _fill(_PHRASES.get(attribute, {"": "{value}"}), value)


def _fill(table: dict[str, str], value: str) -> str:
  return table.get(value, table.get("", "")).format(value=value)
