"""Fetches the images and videos of requests, and decodes them as the run's data was decoded.

`data:` URLs bring their bytes; `file://` may name files below one directory, wherever links lead;
`https://` is off unless the server was told otherwise. Files are decoded in processes of their own
(data/guarded_reader.py). What was decoded is kept by the hash of the bytes.
"""

import base64
import binascii
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import http.client
import ipaddress
import os
from pathlib import Path
import socket
import ssl
import stat
import tempfile
import urllib.parse

import ml_collections

from vr_jax import errors
from vr_jax.data import guarded_reader, video_file
from vr_jax.serve import bounded_cache, request_error
from vr_jax.train import paths

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds to connect, and between two pieces of a download
_SHOWN = 80  # characters of a URL in a message
_SUFFIXES = {"image": ".png", "video": ".mp4"}  # readers look at the bytes of these


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaRules:
  """Which URLs are fetched.

  allowed_root: `file://` is read below it; None: nowhere.
  allow_https: whether `https://` is fetched, from public addresses.
  max_bytes: of a download, and of the bytes in a data URL.
  """

  allowed_root: Path | None = None
  allow_https: bool = False
  max_bytes: int = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Medium:
  """A decoded image or video. digest: SHA-256 of the bytes, hexadecimal."""

  digest: str
  extracted: video_file.ExtractedVideo


class MediaLibrary:
  """Decodes the media of requests. Several threads may use it."""

  def __init__(
    self, config: ml_collections.ConfigDict, rules: MediaRules, *, cache_bytes: int = 256 << 20
  ):
    """Initialises the library. config: of the run, which says how its data was decoded."""
    self._data, self._rules = config.data, rules
    self.cache = bounded_cache.BoundedCache[video_file.ExtractedVideo](
      cache_bytes, lambda video: sum(map(len, video.jpegs))
    )
    self._digests = bounded_cache.BoundedCache[str](1 << 20, len)

  def open(self, url: str, kind: str, name: str, *, fps: float | None = None) -> Medium:
    """Fetches and decodes an image or a video.

    kind: image or video.
    name: of the part of the request, for messages.
    fps: at least so many frames a second are decoded; None: as many as of the run's data.

    Raises RequestError (400; 413 for one that is too large), in which no path of this machine is.
    """
    rate = max(self._data.fps, fps or 0.0)
    with self._fetched(url, kind, name) as (path, digest):
      extracted = self.cache.get_or_make(
        (digest, kind, rate), lambda: self._decode(path, rate, name)
      )
    return Medium(digest=digest, extracted=extracted)

  def _decode(self, path: Path, fps: float, name: str) -> video_file.ExtractedVideo:
    data = self._data
    try:
      return guarded_reader.extract(
        path,
        fps=fps,
        quality=data.quality,
        max_side=data.max_side,
        limits=paths.decode_limits(data),
      )
    except errors.InputError as error:
      told = str(error).replace(str(path), name)
      raise request_error.RequestError(400, told, code="unreadable_media", param=name) from None

  @contextlib.contextmanager
  def _fetched(self, url: str, kind: str, name: str) -> Iterator[tuple[Path, str]]:
    """Yields a file with the bytes of a URL, and their hash."""
    scheme = url.partition(":")[0].lower()
    if scheme == "file":
      path = self._allowed(url, name)
      yield path, self._digest(path)
      return
    if scheme == "data":
      content = self._embedded(url, name)
    elif scheme == "https" and self._rules.allow_https:
      content = _download(url, name, self._rules.max_bytes)
    else:
      offered = ["data:", *(["file://"] if self._rules.allowed_root else [])]
      offered += ["https://"] if self._rules.allow_https else []
      raise _refused(name, f"{url[:_SHOWN]!r}: this server reads {', '.join(offered)} only")
    with tempfile.TemporaryDirectory(prefix="vr_jax_serve_") as folder:
      path = Path(folder) / f"medium{_SUFFIXES[kind]}"
      path.write_bytes(content)
      yield path, hashlib.sha256(content).hexdigest()

  def _allowed(self, url: str, name: str) -> Path:
    """The file of a `file://` URL, if it is below the allowed root."""
    root = self._rules.allowed_root
    if root is None:
      raise _refused(name, "file:// is off; start the server with --allowed_root=DIRECTORY")
    # One message for all: a client must not learn which files there are elsewhere.
    missing = _refused(name, f"{url[:_SHOWN]!r}: no such file below the server's --allowed_root")
    path = url[len("file:") :]
    if not path.startswith("//"):
      raise missing
    path = path.removeprefix("//").removeprefix("localhost")
    # Some clients quote a path, others put it into the URL as it is.
    for written in (path, urllib.parse.unquote(path)):
      try:
        found = Path(written).resolve(strict=True)
        if (
          written.startswith("/")
          and found.is_relative_to(root.resolve())
          and stat.S_ISREG(found.stat().st_mode)
          and os.access(found, os.R_OK)
        ):
          return found
      except (OSError, ValueError, RuntimeError):  # a circle of links is a RuntimeError
        continue
    raise missing

  def _digest(self, path: Path) -> str:
    """The hash of a file's bytes, read once as long as the file is the same."""

    def compute() -> str:
      with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

    about = path.stat()
    key = (str(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
    return self._digests.get_or_make(key, compute)

  def _embedded(self, url: str, name: str) -> bytes:
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
      raise _refused(name, "a data URL needs the form data:video/mp4;base64,…")
    if len(content) // 4 * 3 > self._rules.max_bytes + 2:
      raise _too_large(name, self._rules.max_bytes)
    try:
      return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
      raise _refused(name, "the data URL holds no valid base64") from None


def _refused(name: str, problem: str) -> request_error.RequestError:
  return request_error.RequestError(400, f"{name}: {problem}", code="unreadable_media", param=name)


def _too_large(name: str, most: int) -> request_error.RequestError:
  told = f"{name}: has more than the {most / 2**20:g} MiB of --max_body_megabytes"
  return request_error.RequestError(413, told, code="too_large", param=name)


class _PinnedConnection(http.client.HTTPSConnection):
  """A connection to an address that was looked up before, whatever its name means by now."""

  def __init__(self, host: str, port: int, address: str):
    super().__init__(host, port, timeout=_TIMEOUT, context=ssl.create_default_context())
    self._pinned = address

  def connect(self) -> None:
    """Connects to the address; the certificate has to be that of the name."""
    plain = socket.create_connection((self._pinned, self.port), _TIMEOUT)
    self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _download(url: str, name: str, most: int) -> bytes:
  """Gets a file over HTTPS from a public address; redirects are not followed."""
  try:
    parsed = urllib.parse.urlsplit(url)
    host, port = parsed.hostname or "", parsed.port or 443
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    if not ipaddress.ip_address(found).is_global:
      raise _refused(name, f"{url[:_SHOWN]!r}: is no public address")
    connection = _PinnedConnection(host, port, str(found))
    with contextlib.closing(connection):
      target = f"{parsed.path or '/'}{f'?{parsed.query}' if parsed.query else ''}"
      connection.request("GET", target, headers={"User-Agent": "vr-jax"})
      response = connection.getresponse()
      if response.status != 200:
        raise _refused(name, f"{url[:_SHOWN]!r}: answers with status {response.status}")
      content = bytearray()
      while piece := response.read(_CHUNK):
        content += piece
        if len(content) > most:
          raise _too_large(name, most)
  except (OSError, ValueError, http.client.HTTPException) as error:
    raise _refused(name, f"{url[:_SHOWN]!r}: can't be fetched ({type(error).__name__})") from None
  return bytes(content)
