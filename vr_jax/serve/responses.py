"""The JSON of responses: OpenAI's chat completions, whole or in pieces, with what was shown."""

from collections.abc import Mapping
import dataclasses
import json
import time
from typing import Any
import uuid

from vr_jax.serve import engine, preparation

PIECE, WHOLE = "chat.completion.chunk", "chat.completion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseHead:
  """What all pieces of a response have in common. created: seconds since 1970."""

  id: str
  model: str
  created: int

  def fields(self, kind: str) -> dict[str, Any]:
    """As JSON. kind: WHOLE or PIECE."""
    return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def make_head(model: str) -> ResponseHead:
  """The head of a new response."""
  return ResponseHead(id=f"chatcmpl-{uuid.uuid4().hex}", model=model, created=int(time.time()))


def content(prepared: preparation.PreparedRequest, done: engine.FinishedReply) -> str:
  """What the client asked for: the last reply, all replies, or the answer; "" if there is none."""
  if wants_answer(prepared):
    return done.answer or ""
  return "\n".join(done.texts)


def wants_answer(prepared: preparation.PreparedRequest) -> bool:
  """Whether the answer alone is asked for."""
  return prepared.request.reply == "answer"


def whole(
  head: ResponseHead,
  prepared: preparation.PreparedRequest,
  done: engine.FinishedReply,
) -> dict[str, Any]:
  """The response without `stream`."""
  message = {"role": "assistant", "content": content(prepared, done)}
  choice = {"index": 0, "message": message, "finish_reason": done.finish_reason, "logprobs": None}
  return {
    **head.fields(WHOLE),
    "choices": [choice],
    "usage": usage(done),
    "vr_jax": details(prepared, done),
  }


def usage(done: engine.FinishedReply) -> dict[str, int]:
  """Counts of tokens."""
  return {
    "prompt_tokens": done.prompt_tokens,
    "completion_tokens": done.reply_tokens,
    "total_tokens": done.prompt_tokens + done.reply_tokens,
  }


def details(prepared: preparation.PreparedRequest, done: engine.FinishedReply) -> dict[str, Any]:
  """What was shown and how it was sampled, beyond OpenAI's fields.

  media: of each image and video, the frames, their times (s), and their size (pixels).
  prompt_hash: of the text around the question.
  answered: whether the last reply gives an answer.
  """
  settings = prepared.settings
  found = {
    "media": prepared.about_media,
    "prompt_hash": prepared.prompt_hash,
    "reply": prepared.request.reply,
    "answered": done.answer is not None,
    "temperature": settings.temperature,
    "top_p": settings.top_p,
    "top_k": settings.top_k,
    "min_p": settings.min_p,
    "max_tokens": settings.max_tokens,
    "seed": prepared.request.seed or 0,
  }
  if prepared.dialogue is not None:
    found["turns"] = [
      {"reply": text, "frames": frames}
      for text, frames in zip(done.texts, done.shown_frames, strict=True)
    ]
  return found


def piece(
  head: ResponseHead, delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any
) -> bytes:
  """A server-sent event of a stream."""
  choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
  return event({**head.fields(PIECE), "choices": [choice], **more})


def event(value: Any) -> bytes:
  """A server-sent event of some JSON."""
  return b"data: " + json.dumps(value).encode() + b"\n\n"


END = b"data: [DONE]\n\n"
