"""A video model behind an OpenAI-compatible endpoint: it is shown frames as JPEG images, and asked a question about them.

Retries with backoff, and the wait that an endpoint asks for, are the official SDK's.
"""

import base64
from collections.abc import Sequence
import importlib
import json
from typing import Any

from vr_jax import errors


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
      api_key=key, base_url=base_url or None, timeout=timeout, max_retries=retries
    )

  def check(self) -> None:
    """Sends one tiny request; raises InputError where the endpoint is down, or refuses key or model."""
    try:
      answered = self._send("Say yes.", 1)
    except self._sdk.APIStatusError as error:
      if error.status_code == 429:  # busy, so it is up
        return
      raise self._refusal(error) from None
    except self._sdk.APITimeoutError:
      raise self._silence() from None
    if answered is None:
      raise errors.InputError(
        f"config.traces.base_url={self._client.base_url}: answers, but not as chat completions; correct the address"
      )

  def reply(self, question: str, images: Sequence[bytes]) -> str | None:
    """The reply at temperature 0; None where the endpoint refuses the request or, after the retries, fails to answer it.

    images: JPEGs, shown before the question, in their order.

    Raises:
      InputError: nobody is there, or the key or the model is refused.
    """
    shown = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    content = [*shown, {"type": "text", "text": question}]
    try:
      return self._send(content, self._max_tokens)
    except self._sdk.APITimeoutError:
      return None
    except self._sdk.APIStatusError as error:
      if error.status_code in (401, 403, 404):
        raise self._refusal(error) from None
      return None

  def _send(self, content: str | list[dict[str, Any]], max_tokens: int) -> str | None:
    """The text of an answer, None where the body is not one of the protocol."""
    system = [{"role": "system", "content": self._system}] if self._system else []
    messages = [*system, {"role": "user", "content": content}]
    create = self._client.chat.completions.with_raw_response.create
    try:
      raw = create(model=self._model, messages=messages, temperature=0, max_tokens=max_tokens)
    except self._sdk.APITimeoutError:
      raise
    except self._sdk.APIConnectionError:
      raise self._silence() from None
    return _text(raw.http_response.text)

  def _silence(self) -> errors.InputError:
    return errors.InputError(
      f"config.traces.base_url={self._client.base_url}: no answer; start the endpoint or correct the address, and the "
      "same command goes on"
    )

  def _refusal(self, error: Any) -> errors.InputError:
    """Nothing of what the endpoint says about a key, which may repeat it."""
    return errors.InputError(
      f"config.traces: {self._client.base_url} refuses the key or the model {self._model!r} (status {error.status_code}); "
      "correct key_variable, model or base_url"
    )


def _data_url(jpeg: bytes) -> str:
  return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _text(body: str) -> str | None:
  try:
    reply = json.loads(body)
  except (ValueError, RecursionError):
    return None
  match reply:
    case {"choices": [{"message": {"content": str(text)}}, *_]}:
      return text
  return None
