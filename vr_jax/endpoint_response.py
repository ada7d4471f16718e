"""Reads responses of endpoints that speak OpenAI's or Anthropic's protocol (model_endpoint)."""

from collections.abc import Mapping
import contextlib
import email.utils
import time

from vr_jax import plain_json


def text_of(body: str) -> str | None:
  """Extracts a reply's text, without reasoning, in either protocol; None if the body doesn't fit.

  Lone surrogates are replaced, because UTF-8 can't encode them; max_tokens may cut an emoji in two.
  """
  try:
    reply = plain_json.parse(body)
  except ValueError:
    return None
  match reply:
    case {"choices": [{"message": {"content": str() | None as text}}, *_]}:
      text = text or ""
    case {"content": [*blocks]}:
      texts = [block for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
      text = "".join(str(block.get("text", "")) for block in texts)
    case _:
      return None
  return text.encode("utf-8", "replace").decode()


def tokens_of(body: str) -> int | None:
  """Tokens of a prompt and its reply, as a response in either protocol says; None if it doesn't."""
  try:
    reply = plain_json.parse(body)
  except ValueError:
    return None
  match reply:
    case {"usage": {"prompt_tokens": int() as prompt, "completion_tokens": int() as written}}:
      return prompt + written
    case {"usage": {"input_tokens": int() as prompt, "output_tokens": int() as written}}:
      return prompt + written
  return None


def seconds_to_wait(headers: Mapping[str, str]) -> float:
  """Returns the wait that an endpoint asks for, in seconds; 0 if there is none or it is unreadable.

  headers: give it in milliseconds, in seconds or as a date.
  """
  for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
    with contextlib.suppress(KeyError, ValueError):
      return float(headers[name]) / unit
  date = email.utils.parsedate_tz(headers.get("retry-after", ""))
  return email.utils.mktime_tz(date) - time.time() if date else 0.0
