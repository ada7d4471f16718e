"""Fetches the images and videos of requests, and decodes them as the run's data was decoded.

`data:` URLs bring their bytes; `file://` may name files below one directory, wherever links lead;
`https://` (download.py) is off unless the server was told otherwise. Files are decoded in processes
of their own (data/guarded_reader.py). What was decoded is kept by the hash of the bytes.
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
import stat
import tempfile
import urllib.parse

import ml_collections

from vr_jax import errors
from vr_jax.data import guarded_reader, upright_images, video_file
from vr_jax.serve import bounded_cache, download, request_error
from vr_jax.train import paths

_PIECE = 1 << 20  # characters of base64 that are decoded at a time; whole groups of four
_MOST_FRAMES = 10_000  # that are decoded where a client asks for more a second than the run
_ANY_SIDE = 1 << 15
_NAME = "\0"  # stands for the name of the medium in errors that several requests get
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

  def open(
    self, url: str, kind: str, name: str, *, fps: float | None = None, pixels: int | None = None
  ) -> Medium:
    """Fetches and decodes an image or a video.

    kind: image or video.
    name: of the part of the request, for messages.
    fps: at least so many frames a second are decoded; None: as many as of the run's data. If these
      are more, a video may have 10,000 frames at that rate.
    pixels: that a frame may be shown with; None: as many as frames of the run's data have.

    Raises RequestError (400; 413 for one that is too large), in which no path of this machine is.
    """
    rate = max(self._data.fps, fps or 0.0)
    with self._fetched(url, kind, name) as (path, digest):
      try:
        extracted = self.cache.get_or_make(
          (digest, kind, rate, pixels), lambda: self._decode(path, rate, pixels)
        )
      except errors.InputError as error:
        told = str(error).replace(_NAME, name)
        raise request_error.RequestError(400, told, code="unreadable_media", param=name) from None
    return Medium(digest=digest, extracted=extracted)

  def _decode(self, path: Path, fps: float, pixels: int | None) -> video_file.ExtractedVideo:
    """Decodes a file. Raises InputError with _NAME in place of the path."""
    data = self._data
    try:
      return guarded_reader.extract(
        path,
        fps=fps,
        quality=data.quality,
        max_side=data.max_side if pixels is None else _ANY_SIDE,
        kept_pixels=None if pixels is None else upright_images.pixels_to_keep(pixels),
        limits=paths.decode_limits(data),
        most_frames=_MOST_FRAMES if fps > data.fps else None,
      )
    except errors.InputError as error:
      raise errors.InputError(str(error).replace(str(path), _NAME)) from None

  @contextlib.contextmanager
  def _fetched(self, url: str, kind: str, name: str) -> Iterator[tuple[Path, str]]:
    """Yields a file with the bytes of a URL, and their hash."""
    scheme = url.partition(":")[0].lower()
    if scheme == "file":
      path = self._allowed(url, name)
      yield path, self._digest(path)
      return
    if scheme == "data":
      pieces = self._embedded(url, name)
    elif scheme == "https" and self._rules.allow_https:
      pieces = [download.fetch(url, name, self._rules.max_bytes)]
    else:
      offered = ["data:", *(["file://"] if self._rules.allowed_root else [])]
      offered += ["https://"] if self._rules.allow_https else []
      raise download.refused(
        name, f"{url[: download.SHOWN]!r}: this server reads {', '.join(offered)} only"
      )
    with tempfile.TemporaryDirectory(prefix="vr_jax_serve_") as folder:
      path = Path(folder) / f"medium{_SUFFIXES[kind]}"
      digest = hashlib.sha256()
      with path.open("wb") as file:
        for piece in pieces:
          file.write(piece)
          digest.update(piece)
      yield path, digest.hexdigest()

  def _allowed(self, url: str, name: str) -> Path:
    """The file of a `file://` URL, if it is below the allowed root."""
    root = self._rules.allowed_root
    if root is None:
      raise download.refused(name, "file:// is off; start the server with --allowed_root=DIRECTORY")
    # One message for all: a client must not learn which files there are elsewhere.
    missing = download.refused(
      name, f"{url[: download.SHOWN]!r}: no such file below the server's --allowed_root"
    )
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

  def _embedded(self, url: str, name: str) -> Iterator[bytes]:
    """The bytes of a data URL in pieces: decoding holds the lock that other requests need."""
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
      raise download.refused(name, "a data URL needs the form data:video/mp4;base64,…")
    if len(content) // 4 * 3 > self._rules.max_bytes + 2:
      raise download.too_large(name, self._rules.max_bytes)
    try:
      for start in range(0, len(content), _PIECE):
        piece = content[start : start + _PIECE]
        if "=" in piece and start + _PIECE < len(content):
          raise ValueError("padding before the end")
        yield base64.b64decode(piece, validate=True)
    except ValueError:  # binascii.Error is one
      raise download.refused(name, "the data URL holds no valid base64") from None
