"""Asks a vision-language model behind an OpenAI-compatible endpoint about frames of a video."""

import base64
from collections.abc import Sequence
import dataclasses

from vr_jax import model_endpoint
from vr_jax.train import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoModel:
  """A model that takes JPEG images and a question. Several threads may use it.

  system: the system message; empty for none.
  """

  endpoint: model_endpoint.Endpoint
  system: str

  def reply(self, question: str, images: Sequence[bytes]) -> str | None:
    """Returns the reply at temperature 0.

    None: it has no text, or the endpoint rejects this question. The rejection is printed.
    images: JPEGs, put before the question, in this order.

    Raises:
      InputError: the endpoint is down, busy or failing even after all retries, or it rejects the
        key or the model.
    """
    parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    try:
      text = self.endpoint.reply(self.system, [*parts, {"type": "text", "text": question}])
    except model_endpoint.RequestRefused as error:
      if error.status in (401, 403, 404):
        raise
      console.print_line(f"traces: no reply; {error}")
      return None
    return text or None

  def close(self) -> None:
    """Closes the endpoint."""
    self.endpoint.close()


def _data_url(jpeg: bytes) -> str:
  return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
