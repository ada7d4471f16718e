"""Replies to learn from: a key frame or a box as JSON, and thoughts that lead to it."""

import itertools
import json

from jaxtyping import Float
import numpy as np

HALF = "</think>\n<answer>"
_DESCRIBED_FRAMES = 8  # of a clip, in the thoughts

_Box = tuple[int, int, int, int]


def key_frame_reply(thoughts: str, index: int, description: str, box: _Box | None = None) -> str:
  """A reply that chooses a frame. box: is given in the same reply, if it is not None."""
  answer = {"frame_idx": index, "object description": description}
  return _reply(thoughts, answer | ({} if box is None else {"bbox_2d": box}))


def box_reply(thoughts: str, box: _Box) -> str:
  """A reply that gives a box, in the units of replies."""
  return _reply(thoughts, {"bbox_2d": box})


def _reply(thoughts: str, answer: dict) -> str:
  return f"<think>{thoughts}{HALF}{json.dumps([answer], ensure_ascii=False)}</answer>"


def describe_clip(areas: Float[np.ndarray, "pool"]) -> str:
  """How large the object is in some frames: "0 gone, 2 small, 4 large."."""
  words = np.where(areas == 0, "gone", np.where(areas >= areas.max() / 2, "large", "small"))
  every = max(1, len(areas) // _DESCRIBED_FRAMES)
  return ", ".join(f"{index} {words[index]}" for index in range(0, len(areas), every)) + "."


def describe_place(place: tuple[bool, bool]) -> str:
  """In which quarter of the frame the object is. place: whether it is below, and to the right."""
  quarters = itertools.product((False, True), repeat=2)
  names = ("top left", "top right", "bottom left", "bottom right")
  told = (
    f"{name}: {'yes' if each == place else 'no'}"
    for name, each in zip(names, quarters, strict=True)
  )
  return ", ".join(told) + "."
