"""The names of this machine that no other machine can reach it by."""

NAMES = ("127.0.0.1", "localhost", "::1")


def is_host(header: str) -> bool:
  """Whether the header `Host` of a request, with or without a port, has one of the names."""
  name = header if header.endswith("]") else header.rpartition(":")[0] or header
  return name.removeprefix("[").removesuffix("]") in NAMES
