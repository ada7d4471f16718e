"""A video model behind an OpenAI-compatible endpoint: it is shown frames as JPEG images, and asked about them."""

import base64
from collections.abc import Sequence
import dataclasses

from vr_jax import model_endpoint
from vr_jax.train import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoModel:
  """May be asked from several threads. system: opens every conversation; empty for none."""

  endpoint: model_endpoint.Endpoint
  system: str

  def reply(self, question: str, images: Sequence[bytes]) -> str | None:
    """The reply at temperature 0; None where there is no text, or this question is refused, which is printed.

    images: JPEGs, shown before the question, in their order.

    Raises:
      InputError: after the retries the endpoint is gone, busy or failing, or it refuses the key or the model.
    """
    shown = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    try:
      text = self.endpoint.reply(self.system, [*shown, {"type": "text", "text": question}])
    except model_endpoint.Refused as error:
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
