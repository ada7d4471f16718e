"""Questions about a masked future: the state of an object in a video's last caption.

The last caption's span is masked. A question asks for a state that this caption tells; its wrong
options are states of the same video, and its reference trace are the earlier states in order.

Source: MOSS-ChatV, arXiv 2509.21113, for the idea; masked states and traces of earlier ones.
Reconstruction: which states are asked about, the wordings, and how options are chosen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import string
import zlib

import numpy as np

from vr_jax import records
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import equivalence
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import wording as world_wording

SOURCE = "constructed"
# Why an object's attribute was not asked about.
NOT_ASKED = (
  "not told in the masked span",
  "several values in one caption",
  "never changes",
  "too few options",
  "enough questions",
)
_ASK = (
  "The video goes on. What is the {attribute} of the {object} {when}?",
  "What will the {attribute} of the {object} be {when}?",
  "{When}, what will the {attribute} of the {object} be?",
  "Which {attribute} do you expect of the {object} {when}?",
)
_STEP = (
  "From {start} to {end}, the {attribute} of the {object} is {value}.",
  "{start} to {end}: the {attribute} of the {object} is {value}.",
  "Between {start} and {end} I see that the {attribute} of the {object} is {value}.",
)
# Of captions that tell a change: its outcome is certain at the end of the stretch only.
_CHANGE_STEP = (
  "By {end}, the {attribute} of the {object} is {value}.",
  "At {end} the {attribute} of the {object} is {value}.",
  "By {end} I see that the {attribute} of the {object} is {value}.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRules:
  """How questions are made of states.

  style: "simulator", its own wordings, or "general".
  per_video: most questions about a video; 0: no limit.
  most_options, least_options: of a question; with fewer it is not asked.
  seed: of what is drawn.
  """

  style: str
  per_video: int
  most_options: int
  least_options: int
  seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FutureQuestion:
  """A question that filters have yet to pass.

  pair: object and attribute that it is about.
  values: the texts of its options, in order, without letters.
  future: values that the masked caption gives the object; the answer is one of them.
  """

  example: records.Example
  video: captions_lib.CaptionedVideo
  pair: states_lib.Pair
  values: tuple[str, ...]
  future: tuple[str, ...]

  @property
  def right(self) -> str:
    """The text of the right option."""
    return self.values[string.ascii_uppercase.index(self.example.answer)]


def make(
  video: captions_lib.CaptionedVideo,
  told: Sequence[states_lib.ToldState],
  rules: QuestionRules,
) -> tuple[list[FutureQuestion], Counter[str]]:
  """Makes the questions about a video; they depend on it, its states and the rules alone.

  Returns the questions, and how often each of `NOT_ASKED` kept a pair from being asked about.
  """
  rng = np.random.default_rng([rules.seed, zlib.crc32(f"{video.id} {video.span}".encode())])
  groups = states_lib.by_pair(told)
  found, skipped = [], Counter()
  for place in rng.permutation(len(groups)):
    pair = list(groups)[int(place)]
    reason = _not_asked(groups[pair], video)
    if not reason and rules.per_video and len(found) >= rules.per_video:
      reason = "enough questions"
    values = [] if reason else _options(pair, groups, video, rules, rng)
    if not reason and len(values) < rules.least_options:
      reason = "too few options"
    if reason:
      skipped[reason] += 1
    else:
      found.append(_question(pair, groups, values, video, rules, rng, number=len(found)))
  return found, skipped


def _not_asked(told: Sequence[states_lib.ToldState], video: captions_lib.CaptionedVideo) -> str:
  """Why a pair is no subject of a question; "" if it is one."""
  last = len(video.captions) - 1
  if told[-1].caption != last:
    return "not told in the masked span"
  if states_lib.has_conflict(told):
    return "several values in one caption"
  seen = {equivalence.content_words(state.value) for state in told if state.caption != last}
  return "never changes" if len(seen) < 2 else ""


def _options(
  pair: states_lib.Pair,
  groups: dict[states_lib.Pair, list[states_lib.ToldState]],
  video: captions_lib.CaptionedVideo,
  rules: QuestionRules,
  rng: np.random.Generator,
) -> list[str]:
  """The texts of the options, in random order.

  Wrong ones are earlier states of the same object, then of other objects. None may be the same as
  the right one or as another one, nor as anything that the masked caption tells of the object.
  """
  last = len(video.captions) - 1
  right, future = groups[pair][-1].value, _future_values(pair[0], groups, last)
  own = [state.value for state in groups[pair] if state.caption != last]
  others = [
    state.value
    for (name, attribute), told in groups.items()
    if name != pair[0] and attribute == pair[1]
    for state in told
    if state.caption != last
  ]
  chosen = [right]
  for pool in (own, others):
    for value in _shuffled(sorted(set(pool)), rng):
      known = [*chosen, *future]
      is_new = not any(equivalence.may_be_same(value, each) for each in known)
      in_caption = rules.style == "general" and equivalence.contains(video.captions[-1].text, value)
      if is_new and not in_caption and len(chosen) < rules.most_options:
        chosen.append(value)
  return _shuffled(chosen, rng)


def _shuffled(values: Sequence[str], rng: np.random.Generator) -> list[str]:
  return [values[int(place)] for place in rng.permutation(len(values))]


def _future_values(
  name: str, groups: dict[states_lib.Pair, list[states_lib.ToldState]], last: int
) -> tuple[str, ...]:
  """Everything that the masked caption, number `last`, tells of an object."""
  return tuple(
    state.value
    for (thing, _), told in groups.items()
    if thing == name
    for state in told
    if state.caption == last
  )


def _question(
  pair: states_lib.Pair,
  groups: dict[states_lib.Pair, list[states_lib.ToldState]],
  values: Sequence[str],
  video: captions_lib.CaptionedVideo,
  rules: QuestionRules,
  rng: np.random.Generator,
  *,
  number: int,
) -> FutureQuestion:
  last = len(video.captions) - 1
  told = groups[pair]
  right = told[-1].value
  letters = string.ascii_uppercase[: len(values)]
  steps = _world_steps if rules.style == "simulator" else _general_steps
  example = records.Example(
    id=f"{video.id}@{video.span.start}-{video.span.end}-{number}",
    video=video.video,
    question=_ask(pair, video.captions[-1], rules, rng),
    options=tuple(f"{letter}. {value}" for letter, value in zip(letters, values, strict=True)),
    answer=letters[list(values).index(right)],
    problem_type="multiple choice",
    shown=video.shown,
    masked=video.masked,
    relevant=(video.shown,),
    steps=tuple(steps(pair, [state for state in told if state.caption != last], video, rng)),
    states=tuple(_grid_states(groups, video)),
    source=SOURCE,
  )
  future = _future_values(pair[0], groups, last)
  return FutureQuestion(
    example=example, video=video, pair=pair, values=tuple(values), future=future
  )


def _ask(
  pair: states_lib.Pair,
  caption: captions_lib.Caption,
  rules: QuestionRules,
  rng: np.random.Generator,
) -> str:
  if rules.style == "simulator":
    number = int(rng.integers(4))
    return world_wording.question("choice", pair[1], number, caption.asked, pair[0], "")
  at = "at" if caption.asked == caption.start else "by"
  when = f"{at} {world_wording.seconds(caption.asked)}"
  template = _ASK[int(rng.integers(len(_ASK)))]
  names = {"object": _without_article(pair[0]), "attribute": pair[1]}
  return template.format(when=when, When=when.capitalize(), **names)


def _world_steps(
  pair: states_lib.Pair,
  told: Sequence[states_lib.ToldState],
  video: captions_lib.CaptionedVideo,
  rng: np.random.Generator,
) -> Iterator[records.Step]:
  """A step for each earlier caption since the first that tells of the pair, in one wording."""
  number, value, before = int(rng.integers(4)), None, None
  values = {state.caption: state.value for state in told}
  for index, caption in enumerate(video.captions[:-1]):
    before, value = value, values.get(index, value)
    if value is not None:
      fact = world_wording.Fact(object=pair[0], attribute=pair[1], value=value, before=before)
      text = world_wording.step(number, caption.start, [fact], future=False)
      yield records.Step(text=text, start=caption.start, end=caption.end)


def _general_steps(
  pair: states_lib.Pair,
  told: Sequence[states_lib.ToldState],
  video: captions_lib.CaptionedVideo,
  rng: np.random.Generator,
) -> Iterator[records.Step]:
  """A step for each earlier state that a caption tells, in one wording."""
  number = int(rng.integers(len(_STEP)))
  for index, group in states_lib.by_caption(told).items():
    caption = video.captions[index]
    start, end = caption.start, caption.end
    templates = _CHANGE_STEP if caption.asked == end else _STEP
    text = templates[number].format(
      start=world_wording.seconds(start),
      end=world_wording.seconds(end),
      object=_without_article(pair[0]),
      attribute=pair[1],
      value=group[0].value,
    )
    yield records.Step(text=text, start=start, end=end)


def _grid_states(
  groups: dict[states_lib.Pair, list[states_lib.ToldState]],
  video: captions_lib.CaptionedVideo,
) -> Iterator[records.State]:
  """The state of each pair at the time of each caption, from the first that tells it on."""
  for pair, told in groups.items():
    if states_lib.has_conflict(told):
      continue
    value = None
    values = {state.caption: state.value for state in told}
    for index, caption in enumerate(video.captions):
      value = values.get(index, value)
      if value is not None:
        yield records.State(object=pair[0], time=caption.asked, attribute=pair[1], value=value)


def _without_article(name: str) -> str:
  first, _, rest = name.partition(" ")
  return rest if rest and first.lower() in ("a", "an", "the") else name
