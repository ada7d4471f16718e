"""Reads the JSON of a chat completion, field by field: what is unknown or wrong is refused.

A field that is ignored would change what a client measures without a word. So fields of OpenAI's
that this server can't do are accepted with the value that asks for nothing, and refused with any
other.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import math
import reprlib
from typing import Any

from vr_jax import plain_json
from vr_jax.serve import json_limits, request_error

ROLES = ("system", "user", "assistant")
MOST_MESSAGES, MOST_STOPS, MOST_STOP_CHARACTERS = 256, 16, 256
MOST_CHARACTERS = 1 << 20  # of all texts of the messages; no model's prompt holds as many
_MOST_NAME = 80  # characters of a field's name that are shown, or compared with known names

# Fields that change nothing, and the values that they may have; None: any.
_NEUTRAL: Mapping[str, tuple[Any, ...] | None] = {
  "user": None,
  "metadata": None,
  "store": (False, None),
  "n": (1, None),
  "logprobs": (False, None),
  "top_logprobs": (0, None),
  "frequency_penalty": (0, None),
  "presence_penalty": (0, None),
  "repetition_penalty": (1, None),
  "logit_bias": ({}, None),
  "response_format": ({"type": "text"}, None),
  "tools": ([], None),
  "tool_choice": ("none", None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediumPart:
  """An image or a video of a message. kind: image or video."""

  kind: str
  url: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatMessage:
  """A turn of a conversation, with texts and media in the client's order."""

  role: str
  parts: tuple[str | MediumPart, ...]

  @property
  def text(self) -> str:
    """The texts, a line each."""
    return "\n".join(part for part in self.parts if isinstance(part, str))

  @property
  def media(self) -> tuple[MediumPart, ...]:
    """The images and videos."""
    return tuple(part for part in self.parts if isinstance(part, MediumPart))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
  """A request for a reply. What the client left out is None.

  model: "" for the only one.
  include_usage: whether a stream ends with the number of tokens.
  top_k: 0: all tokens.
  num_frames, fps: of videos; at most one of them.
  min_pixels, max_pixels: of an image or of a frame, as in config.model.
  video_start, video_end: what is shown of each video, seconds.
  reply: full, or answer: only the text between the answer tags.
  recipe_instruction: whether the recipe's is added; None: if there is no system message.
  """

  messages: tuple[ChatMessage, ...]
  model: str = ""
  stream: bool = False
  include_usage: bool = False
  max_tokens: int | None = None
  temperature: float | None = None
  top_p: float | None = None
  top_k: int | None = None
  min_p: float | None = None
  seed: int | None = None
  stop: tuple[str, ...] = ()
  num_frames: int | None = None
  fps: float | None = None
  min_pixels: int | None = None
  max_pixels: int | None = None
  video_start: float | None = None
  video_end: float | None = None
  reply: str | None = None
  recipe_instruction: bool | None = None

  @property
  def adds_instruction(self) -> bool:
    """Whether the recipe's instruction is added to the last text. A system message is the client's.

    A judge's prompt, say, has instructions of its own, which the recipe's would contradict.
    """
    if self.recipe_instruction is None:
      return self.messages[0].role != "system"
    return self.recipe_instruction


# Each reads the value of a field, and returns fields of ChatRequest.
_Reader = Callable[[str, Any], dict[str, Any]]


def parse(body: bytes) -> ChatRequest:
  """Parses the body of a request. Raises RequestError (400) naming the field at fault."""
  json_limits.check(body)
  try:
    given = plain_json.parse(body.decode())  # as bytes, it could be UTF-16, which was not checked
  except ValueError as error:
    raise request_error.RequestError(400, f"the body is no JSON: {error}") from None
  if not isinstance(given, dict):
    raise request_error.RequestError(400, "the body needs to be a JSON object")
  fields: dict[str, Any] = {}
  for name, value in given.items():
    _check_characters(name, value)
    if name in _NEUTRAL:
      _check_neutral(name, value)
    elif name not in READERS:
      raise wrong(name, f"unknown field{_nearest(name, [*READERS, *_NEUTRAL])}")
    elif value is not None:
      read = READERS[name](name, value)
      if twice := next((each for each in read if fields.get(each, read[each]) != read[each]), ""):
        raise wrong(name, f"{twice} is given twice with different values")
      fields |= read
  if "messages" not in fields:
    raise wrong("messages", "is missing")
  request = ChatRequest(**fields)
  if request.num_frames is not None and request.fps is not None:
    raise wrong("media_io_kwargs", "give num_frames or fps, not both")
  low, high = request.video_start or 0.0, request.video_end
  if high is not None and not low < high:
    raise wrong("video_end", f"{high:g} s is not after video_start, {low:g} s")
  if (request.min_pixels or 1) > (request.max_pixels or math.inf):
    raise wrong("mm_processor_kwargs", "min_pixels is above max_pixels")
  return request


def wrong(field: str, problem: str) -> request_error.RequestError:
  """The error about the value of a field."""
  field = field[:_MOST_NAME]
  return request_error.RequestError(400, f"{field}: {problem}", param=field)


def _check_characters(name: str, value: Any) -> None:
  """Refuses texts with half of a surrogate pair, which JSON can spell (\\ud800) and UTF-8 can't.

  Neither a tokenizer nor a response can take them.
  """
  remaining = [name, value]
  while remaining:
    one = remaining.pop()
    if isinstance(one, dict):
      remaining += [*one, *one.values()]
    elif isinstance(one, list):
      remaining += one
    elif isinstance(one, str) and not one.isascii():
      try:
        one.encode()
      except UnicodeEncodeError:
        field = name.encode(errors="replace").decode()
        raise wrong(field, "holds half of a surrogate pair, which is no character") from None


def _shown(value: Any) -> str:
  """A value in a message. What is long is cut before it is written, as it may be huge."""
  return f"{_SHORT.repr(value):.60}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = 60


def _check_neutral(name: str, value: Any) -> None:
  allowed = _NEUTRAL[name]
  if allowed is not None and not any(value == each for each in allowed):
    raise wrong(name, f"only {allowed[0]!r} can be served, not {_shown(value)}")


def _nearest(name: str, known: list[str]) -> str:
  """A hint at the field that is meant. Comparing takes time and memory with a name's length."""
  if len(name) > _MOST_NAME:
    return ""
  near = difflib.get_close_matches(name, known, n=1)
  return f"; is {near[0]} meant?" if near else ""


def _number(
  field: str, kind: type, least: float, most: float = math.inf, *, open_low: bool = False
) -> _Reader:
  def read(name: str, value: Any) -> dict[str, Any]:
    if not plain_json.has_type(value, kind):
      raise wrong(
        name, f"needs {'a whole' if kind is int else 'a finite'} number, is {_shown(value)}"
      )
    if not least <= value <= most or (open_low and value == least):
      bounds = f"{'above' if open_low else 'from'} {least:g}"
      bounds += f" to {most:g}" if most < math.inf else " on"
      raise wrong(name, f"is {_shown(value)}, not {bounds}")
    return {field: kind(value)}

  return read


def _text(field: str, *choices: str) -> _Reader:
  def read(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str) or (choices and value not in choices):
      needs = " or ".join(choices) or "a text"
      raise wrong(name, f"needs {needs}, is {_shown(value)}")
    return {field: value}

  return read


def _flag(field: str) -> _Reader:
  def read(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):
      raise wrong(name, f"needs true or false, is {_shown(value)}")
    return {field: value}

  return read


def _object(readers: Mapping[str, _Reader]) -> _Reader:
  """Reads an object whose fields are known."""

  def read(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
      raise wrong(name, f"needs an object, is {_shown(value)}")
    found: dict[str, Any] = {}
    for inner, each in value.items():
      if inner not in readers:
        raise wrong(f"{name}.{inner}", f"unknown field{_nearest(inner, list(readers))}")
      if each is not None:
        found |= readers[inner](f"{name}.{inner}", each)
    return found

  return read


def _stops(name: str, value: Any) -> dict[str, Any]:
  stops = [value] if isinstance(value, str) else value
  if not plain_json.has_type(stops, tuple[str, ...]) or len(stops) > MOST_STOPS:
    raise wrong(name, f"needs a text, or a list of at most {MOST_STOPS}")
  if not all(0 < len(each) <= MOST_STOP_CHARACTERS for each in stops):
    raise wrong(name, f"each text needs 1 to {MOST_STOP_CHARACTERS} characters")
  return {"stop": tuple(stops)}


def _messages(name: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
    raise wrong(name, f"needs a list of 1 to {MOST_MESSAGES} messages")
  messages = [_message(f"{name}[{place}]", each) for place, each in enumerate(value)]
  if messages[-1].role != "user":
    raise wrong(name, f"the last message is to be the user's, not the {messages[-1].role}'s")
  characters = sum(len(message.text) for message in messages)
  if characters > MOST_CHARACTERS:
    raise wrong(name, f"hold {characters} characters of text, more than {MOST_CHARACTERS}")
  for place, message in enumerate(messages):
    if message.role == "system" and place:
      raise wrong(f"{name}[{place}]", "only the first message can be the system's")
    if message.role != "user" and message.media:
      raise wrong(f"{name}[{place}]", "only the user's messages can have images and videos")
  return {"messages": tuple(messages)}


def _message(name: str, value: Any) -> ChatMessage:
  if not isinstance(value, dict):
    raise wrong(name, f"needs an object, is {_shown(value)}")
  if unknown := set(value) - {"role", "content", "name"}:
    raise wrong(f"{name}.{min(unknown)}", "unknown field")
  role, content = value.get("role"), value.get("content")
  if role not in ROLES:
    raise wrong(f"{name}.role", f"is {_shown(role)}, not {', '.join(ROLES)}")
  if isinstance(content, str):
    return ChatMessage(role=role, parts=(content,))
  if not isinstance(content, list) or not content:
    raise wrong(f"{name}.content", "needs a text or a list of parts")
  parts = (_part(f"{name}.content[{place}]", each) for place, each in enumerate(content))
  return ChatMessage(role=role, parts=tuple(parts))


def _part(name: str, value: Any) -> str | MediumPart:
  kind = value.get("type") if isinstance(value, dict) else None
  if kind not in ("text", "image_url", "video_url"):
    raise wrong(f"{name}.type", f"is {_shown(kind)}, not text, image_url or video_url")
  if unknown := set(value) - {"type", kind, "uuid"}:
    raise wrong(f"{name}.{min(unknown)}", "unknown field")
  content = value.get(kind)
  if kind == "text":
    if not isinstance(content, str):
      raise wrong(f"{name}.text", f"needs a text, is {_shown(content)}")
    return content
  url = content.get("url") if isinstance(content, dict) else content
  if not isinstance(url, str) or not url:
    raise wrong(f"{name}.{kind}", "needs an object with a url")
  if isinstance(content, dict):
    if unknown := set(content) - {"url", "detail"}:
      raise wrong(f"{name}.{kind}.{min(unknown)}", "unknown field")
    if content.get("detail", "auto") != "auto":
      raise wrong(f"{name}.{kind}.detail", "only auto; give mm_processor_kwargs.max_pixels instead")
  return MediumPart(kind=kind.removesuffix("_url"), url=url)


_video = _object(
  {
    "num_frames": _number("num_frames", int, 1),
    "fps": _number("fps", float, 0, 1000, open_low=True),
  }
)
READERS: Mapping[str, _Reader] = {
  "messages": _messages,
  "model": _text("model"),
  "stream": _flag("stream"),
  "stream_options": _object({"include_usage": _flag("include_usage")}),
  "max_tokens": _number("max_tokens", int, 1),
  "max_completion_tokens": _number("max_tokens", int, 1),
  "temperature": _number("temperature", float, 0, 100),
  "top_p": _number("top_p", float, 0, 1),
  "top_k": _number("top_k", int, -1, 2**31 - 1),
  "min_p": _number("min_p", float, 0, 1),
  "seed": _number("seed", int, 0, 2**32 - 1),
  "stop": _stops,
  "media_io_kwargs": _object({"video": _video}),
  "mm_processor_kwargs": _object(
    {
      "min_pixels": _number("min_pixels", int, 1, 2**31 - 1),
      "max_pixels": _number("max_pixels", int, 1, 2**31 - 1),
    }
  ),
  "video_start": _number("video_start", float, 0),
  "video_end": _number("video_end", float, 0, open_low=True),
  "reply": _text("reply", "full", "answer"),
  "recipe_instruction": _flag("recipe_instruction"),
}
