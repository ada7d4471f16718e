"""A video model behind an OpenAI-compatible endpoint: it is shown frames as JPEG images, and asked a question about them.

Retries with backoff, and the wait that an endpoint asks for, are the official SDK's.
"""

import base64
from collections.abc import Sequence
import importlib
import json
from typing import Any

from vr_jax import errors
from vr_jax.train import console

_VENDOR = "https://api.openai.com/v1"  # said to the SDK, which else asks the environment
_PASSING = (408, 409, 429)  # statuses below 500 after which the same request may succeed


class Endpoint:
  """May be asked from several threads. The key is given to the SDK and to nobody else."""

  def __init__(
    self,
    model: str,
    *,
    base_url: str,
    key: str,
    system: str,
    timeout: float,
    retries: int,
    max_tokens: int,
  ):
    """base_url: empty for OpenAI's own. system: opens every conversation; empty for none. timeout: seconds of a request.

    Raises:
      InputError: the SDK is not installed, or the address is none.
    """
    try:
      self._sdk = importlib.import_module("openai")
    except ImportError as error:
      raise errors.InputError(
        "config.traces.writer=openai: the package openai is missing; pip install 'vr_jax[judge]'"
      ) from error
    if base_url and not base_url.startswith(("http://", "https://")):
      raise errors.InputError(
        f"config.traces.base_url={base_url}: needs the form http(s)://host[:port][/path]"
      )
    self._model, self._system, self._max_tokens = model, system, max_tokens
    self._client = self._sdk.OpenAI(
      api_key=key, base_url=base_url or _VENDOR, timeout=timeout, max_retries=retries
    )

  def check(self) -> None:
    """Sends one tiny request; raises InputError where the endpoint is down, or refuses it.

    A reply without text will do: models that reason spend their one token on it.
    """
    try:
      body = self._send("Say yes.", 1)
    except self._sdk.RateLimitError:  # busy, so it is up
      return
    except self._sdk.APIStatusError as error:
      raise errors.InputError(self._problem(error)) from None
    match body:
      case {"choices": [{"message": dict()}, *_]}:
        return
    raise errors.InputError(
      f"config.traces.base_url={self._client.base_url}: answers, but not as chat completions; correct the address"
    )

  def reply(self, question: str, images: Sequence[bytes]) -> str | None:
    """The reply at temperature 0; None where the endpoint refuses this question, which is said, or answers without text.

    images: JPEGs, shown before the question, in their order.

    Raises:
      InputError: after the retries it is gone, busy or failing, or it refuses the key or the model.
    """
    shown = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    content = [*shown, {"type": "text", "text": question}]
    try:
      return _text(self._send(content, self._max_tokens))
    except self._sdk.APIStatusError as error:
      if _passes(error.status_code) or error.status_code in (401, 403, 404):
        raise errors.InputError(self._problem(error)) from None
      console.say(f"traces: no reply; {self._problem(error)}")
      return None

  def _send(self, content: str | list[dict[str, Any]], max_tokens: int) -> Any:
    """The JSON of an answer, None where it is none. Raises InputError where nobody answers."""
    system = [{"role": "system", "content": self._system}] if self._system else []
    messages = [*system, {"role": "user", "content": content}]
    create = self._client.chat.completions.with_raw_response.create
    try:
      raw = create(model=self._model, messages=messages, temperature=0, max_tokens=max_tokens)
    except self._sdk.APIConnectionError:  # or a time-out, which is one of them
      raise errors.InputError(
        f"config.traces.base_url={self._client.base_url}: no answer; start the endpoint or correct the address, and the "
        "same command goes on"
      ) from None
    try:
      return json.loads(raw.http_response.text)
    except (ValueError, RecursionError):
      return None

  def _problem(self, error: Any) -> str:
    """One line on a status that is no success; of a refused key nothing that the endpoint says, which may repeat it."""
    url, status = self._client.base_url, error.status_code
    if _passes(status):
      return (
        f"config.traces.base_url={url}: fails (status {status}), retries included; once it answers, the same command "
        "goes on"
      )
    if status in (401, 403, 404):
      return (
        f"config.traces: {url} refuses the key or the model {self._model!r} (status {status}); "
        "correct key_variable, model or base_url"
      )
    said = repr(error.response.text.replace(self._client.api_key, "…"))[:300]
    return f"config.traces: {url} refuses what {self._model!r} is asked (status {status}: {said}); change what it names"


def _passes(status: int) -> bool:
  """Whether the same request may succeed later."""
  return status in _PASSING or status >= 500


def _data_url(jpeg: bytes) -> str:
  return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _text(body: Any) -> str | None:
  """The text of a reply, without what UTF-8 cannot hold: an emoji that max_tokens cut is half a surrogate pair."""
  match body:
    case {"choices": [{"message": {"content": str(text)}}, *_]}:
      return text.encode("utf-8", "replace").decode()
  return None
