"""Captions of a scene, a text for each cell, in the fields of ShareGPT4Video.

They tell what can be seen: of a hidden object nothing but that it is hidden. One of `WORDINGS`
styles is drawn for each video; the third tells only what has changed since the caption before.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib

WORDINGS = 4
_SUMMARY = "-1"  # index of the caption of the whole video
_CHANGES_ALONE = 2  # the wording that tells only what has changed

_PHRASES = {
  "colour": "{value}",
  "size": "{value}",
  "box": "{value} the box",
  "label": "labelled {value}",
  "charge": "{value}% charged",
}
_CHANGED = {
  "colour": "turns {value}",
  "size": "becomes {value}",
  "label": "is now labelled {value}",
  "charge": "is now {value}% charged",
}


def record(
  scene: scene_lib.Scene, *, name: str, video: str, rng: np.random.Generator
) -> dict[str, Any]:
  """Makes the line of a caption file for a scene.

  name: the video's id.
  video: name of its file.
  rng: draws the wording, and whether there is a caption of the whole video.

  Besides the fields of ShareGPT4Video each caption of a cell has its `start` and `end` in seconds.
  """
  wording = int(rng.integers(WORDINGS))
  captions: list[dict[str, Any]] = []
  for cell in range(scene.cells):
    text = " ".join(_sentences(scene, cell, wording, rng)) or "Nothing changes."
    start = cell * scene.dwell
    times = {"start": start, "end": start + scene.dwell}
    captions.append({"idx": str(cell), "content": text, **times})
  if rng.random() < 0.5:
    names = " and ".join(f"a {thing.shape}" for thing in scene.objects)
    captions.append({"idx": _SUMMARY, "content": f"The video shows {names} on a plain ground."})
  return {
    "video_id": name,
    "video_path": video,
    "timestamp": [_clock(0.0), _clock(scene.seconds)],
    "keyframe": [cell * scene.dwell for cell in range(scene.cells)],
    "captions": captions,
    "zip_folder": "simulated",
  }


def _clock(seconds: float) -> str:
  """A time as hours, minutes and seconds: 00:00:02.500."""
  minutes, rest = divmod(seconds, 60)
  return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{rest:06.3f}"


def _sentences(
  scene: scene_lib.Scene, cell: int, wording: int, rng: np.random.Generator
) -> list[str]:
  """The sentences of a cell's caption, one or more for each object, in random order."""
  sentences = []
  for place in rng.permutation(len(scene.objects)):
    thing = scene.objects[int(place)]
    facts = _visible_facts(scene, thing, cell)
    if wording == _CHANGES_ALONE and cell:
      before = _visible_facts(scene, thing, cell - 1)
      changed = {name: value for name, value in facts.items() if before.get(name) != value}
      sentences += _changes(thing.shape, changed)
    else:
      sentences += _descriptions(thing.shape, facts, wording)
  return sentences


def _visible_facts(scene: scene_lib.Scene, thing: scene_lib.Object, cell: int) -> dict[str, str]:
  """The attributes of an object that a cell shows, and their values."""
  facts = {name: scene.value(thing, name, cell) for name in scene.attributes(thing)}
  if facts["visibility"] == "hidden":
    return {"visibility": "hidden"}
  if thing.behaviour("visibility") is None:
    del facts["visibility"]
  if thing.behaviour("box") is None:
    facts.pop("box", None)
  return facts


def _descriptions(shape: str, facts: dict[str, str], wording: int) -> list[str]:
  if facts.get("visibility") == "hidden":
    return [f"The {shape} is hidden."]
  phrases = [_phrase(name, value) for name, value in facts.items()]
  if wording == 1:
    rest = [_phrase(name, facts[name]) for name in facts if name not in ("colour", "size")]
    return [f"A {facts['size']} {facts['colour']} {shape} is {_joined(rest)}."]
  if wording == 3:
    return [f"There is a {shape}.", *(f"It is {phrase}." for phrase in phrases)]
  return [f"The {shape} is {_joined(phrases)}."]


def _changes(shape: str, facts: dict[str, str]) -> list[str]:
  if facts.get("visibility") == "hidden":
    return [f"The {shape} gets hidden."]
  phrases = [_changed(name, value) for name, value in facts.items()]
  return [f"The {shape} {_joined(phrases)}."] if phrases else []


def _phrase(name: str, value: str) -> str:
  if name == "place":
    return "in the centre" if value == "centre" else f"at the {value}"
  return _PHRASES.get(name, "{value}").format(value=value)


def _changed(name: str, value: str) -> str:
  if name == "place":
    return f"moves to the {value}"
  if name == "visibility":
    return "becomes visible"
  if name == "box":
    return "goes into the box" if value == config_lib.BOX[0] else "leaves the box"
  return _CHANGED[name].format(value=value)


def _joined(phrases: Sequence[str]) -> str:
  return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)
