"""Fetches a file over HTTPS from a public address, within limits of bytes and of time.

A client names the URL, so it must not reach what only this machine can: the address is looked up
once, has to be public, and is the one connected to. Redirects are not followed.
"""

from collections.abc import Iterator
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.parse

from vr_jax.serve import request_error

SHOWN = 80  # characters of a URL in a message
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds to connect, and between two pieces
_SECONDS = 300.0  # of a whole download


def fetch(url: str, name: str, most: int) -> bytes:
  """Gets the file of a URL. Raises RequestError (400; 413 above `most` bytes).

  name: of the part of the request, for messages.
  """
  try:
    parsed = urllib.parse.urlsplit(url)
    host, port = parsed.hostname or "", parsed.port or 443
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    is_public = ipaddress.ip_address(found).is_global
  except (OSError, ValueError) as error:
    raise _failed(url, name, error) from None
  if not is_public:
    raise refused(name, f"{url[:SHOWN]!r}: is no public address")
  return fetch_from(str(found), url, name, most)


def fetch_from(address: str, url: str, name: str, most: int, *, seconds: float = _SECONDS) -> bytes:
  """Gets the file of a URL from this address, whatever its name means. Raises as `fetch` does.

  seconds: for all of it, from the first packet on.
  """
  try:
    parsed = urllib.parse.urlsplit(url)
    connection = _PinnedConnection(parsed.hostname or "", parsed.port or 443, address)
    with contextlib.closing(connection), _deadline(connection, seconds):
      target = f"{parsed.path or '/'}{f'?{parsed.query}' if parsed.query else ''}"
      connection.request("GET", target, headers={"User-Agent": "vr-jax"})
      response = connection.getresponse()
      if response.status != 200:
        raise refused(name, f"{url[:SHOWN]!r}: answers with status {response.status}")
      if (response.length or 0) > most:
        raise too_large(name, most)
      content = bytearray()
      while piece := response.read(_CHUNK):
        content += piece
        if len(content) > most:
          raise too_large(name, most)
      if response.length:  # http.client takes the end of a connection for that of a file
        raise http.client.IncompleteRead(b"", response.length)
  except (OSError, ValueError, http.client.HTTPException) as error:
    raise _failed(url, name, error) from None
  return bytes(content)


def refused(name: str, problem: str) -> request_error.RequestError:
  """The error about an image or video that can't be had. name: of the part of the request."""
  return request_error.RequestError(400, f"{name}: {problem}", code="unreadable_media", param=name)


def too_large(name: str, most: int) -> request_error.RequestError:
  """The error about one of more than `most` bytes."""
  told = f"{name}: has more than the {most / 2**20:g} MiB of --max_body_megabytes"
  return request_error.RequestError(413, told, code="too_large", param=name)


def _failed(url: str, name: str, error: Exception) -> request_error.RequestError:
  return refused(name, f"{url[:SHOWN]!r}: can't be fetched ({type(error).__name__})")


class _PinnedConnection(http.client.HTTPSConnection):
  """A connection to an address that was looked up before, whatever its name means by now."""

  def __init__(self, host: str, port: int, address: str):
    super().__init__(host, port, timeout=_TIMEOUT)
    self._pinned = address
    self._late = False

  def connect(self) -> None:
    """Connects to the address; the certificate has to be that of the name."""
    plain = socket.create_connection((self._pinned, self.port), _TIMEOUT)
    self.sock = ssl.create_default_context().wrap_socket(
      plain,
      server_hostname=self.host,
      do_handshake_on_connect=False,  # so that `end` has a socket to end
      suppress_ragged_eofs=False,  # else a file that is cut off looks complete
    )
    self.check_time()
    self.sock.do_handshake()

  def end(self) -> None:
    """Ends what another thread is doing with the connection."""
    self._late = True
    if self.sock is not None:
      with contextlib.suppress(OSError):
        # Not the TLS socket's own, after which reads would give what is still encrypted.
        socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

  def check_time(self) -> None:
    """Raises TimeoutError if the connection was ended."""
    if self._late:
      raise TimeoutError


@contextlib.contextmanager
def _deadline(connection: _PinnedConnection, seconds: float) -> Iterator[None]:
  """Ends a connection after so many seconds; what is done with it raises TimeoutError then.

  A timeout of the socket is not enough: it begins again with each byte that a server sends.
  """
  timer = threading.Timer(seconds, connection.end)
  timer.daemon = True
  timer.start()
  try:
    yield
  except (OSError, http.client.HTTPException):
    connection.check_time()
    raise
  else:
    connection.check_time()
  finally:
    timer.cancel()
