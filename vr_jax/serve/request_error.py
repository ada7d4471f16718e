"""What is wrong with a request, as its client gets to know it: OpenAI's form of an error."""

from collections.abc import Mapping
from typing import Any

from vr_jax import errors

_TYPES: Mapping[int, str] = {
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "server_error",
}


class RequestError(Exception):
  """A request that is not answered. The message is one sentence for the client.

  status: of HTTP.
  code: a word that programs can compare.
  param: the field at fault; "" if there is none.
  """

  def __init__(self, status: int, message: object, *, code: str = "", param: str = ""):
    super().__init__(errors.printable(str(errors.InputError(message))))
    self.status, self.code, self.param = status, code, param

  @property
  def body(self) -> dict[str, Any]:
    """The JSON of the response."""
    kind = _TYPES.get(self.status, "invalid_request_error")
    told = {"message": str(self), "type": kind, "param": self.param or None}
    return {"error": {**told, "code": self.code or None}}
