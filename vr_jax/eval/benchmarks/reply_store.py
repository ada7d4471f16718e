"""Replies to a benchmark's questions on disk: kept as they come, so that nothing is asked twice.

    about.json             what the replies are of; other replies don't mix with them
    media.json             the videos that they are about, and which were missing
    replies-00000.jsonl    a line for each question that process 0 has asked

A run that was killed goes on where it was, in any number of processes. Scores are computed from
these files and need no model.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from vr_jax import atomic, buckets, plain_json
from vr_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredReply:
  """What the policy said to one question.

  id: of the item.
  reply: of the last turn. earlier: of the turns before it.
  tokens: sampled ones, of all turns; turns: how many there were.
  truncated: whether a reply reached its limit of tokens before its end.
  frames: number of those that the prompt shows; height, width: of each as the model sees it, in
    pixels; times: of the clip's frames, in seconds.
  problem: why there is no reply, "" if there is one.
  """

  id: str
  reply: str = ""
  earlier: tuple[str, ...] = ()
  tokens: int = 0
  turns: int = 1
  truncated: bool = False
  frames: int = 0
  height: int = 0
  width: int = 0
  times: tuple[float, ...] = ()
  problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedMedia:
  """The files that questions were asked with.

  files: size in bytes and time of change in ns, by name.
  missing: a file that was not there, by the id of the question that needs it.
  count_differences: numbers of questions or files that are not as published.
  """

  files: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
  count_differences: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplyStore:
  """The replies of one protocol in a directory."""

  directory: Path

  def begin(
    self,
    about: Mapping[str, Any],
    media: AskedMedia | None = None,
    *,
    answered: Collection[str] = (),
  ) -> None:
    """Starts the store, or goes on with it. Only one process may call this.

    about: what replies depend on, as JSON. Paths in buckets are the same on hosts that mount these
      elsewhere.
    media: the files that will be asked about.
    answered: of these, those that there are replies about; they must be the files of then.

    Raises InputError if the directory has replies of something else; names the first difference.
    """
    self._check_about(about)
    media = media or AskedMedia()
    path = self.directory / "media.json"
    known = self.media().files if path.is_file() else {}
    for name in sorted(known.keys() & media.files.keys() & {*answered}):
      if known[name] != media.files[name]:
        raise InputError(
          f"{self.directory}: has replies about another {name} (it was changed since); bring the "
          "file back, or choose another --out"
        )
    media = dataclasses.replace(media, files={**known, **media.files})
    content = json.dumps(dataclasses.asdict(media), indent=1).encode()
    atomic.write_bytes(path, [content, b"\n"])

  def _check_about(self, about: Mapping[str, Any]) -> None:
    path = self.directory / "about.json"
    wanted = _with_addresses(about)
    if path.is_file():
      found = _with_addresses(_read_json(path))
      different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
      if different:
        name = different[0]
        raise InputError(
          f"{self.directory}: has replies with {name}={_short(found.get(name))}, now "
          f"{_short(wanted.get(name))}; choose another --out, or remove it"
        )
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, [json.dumps(wanted, indent=1).encode() + b"\n"])

  def about(self) -> dict[str, Any]:
    """What the replies are of. Raises InputError if there are none."""
    return _read_json(self.directory / "about.json")

  def media(self) -> AskedMedia:
    """The files that were asked about. Raises InputError if there are no replies."""
    self.about()
    path = self.directory / "media.json"
    try:
      return plain_json.build(AskedMedia, _read_json(path))
    except ValueError as error:
      raise InputError(
        f"{path}: is damaged: {error}; remove its directory and ask again"
      ) from error

  def read(self) -> dict[str, StoredReply]:
    """The replies by id. A line that a kill has cut is left out: its question is asked again.

    So is a question whose reply has a problem; its last reply counts.
    """
    found: dict[str, StoredReply] = {}
    for path in sorted(self.directory.glob("replies-*.jsonl")):
      content = path.read_bytes()
      for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
          reply = plain_json.build(StoredReply, plain_json.parse(line))
        except ValueError as error:
          if not line.endswith(b"\n"):
            continue
          raise InputError(
            f"{path}, line {number}: is damaged: {error}; remove the line, and its question is "
            "asked again"
          ) from error
        if reply.id not in found or found[reply.id].problem:
          found[reply.id] = reply
    return found

  @contextlib.contextmanager
  def writer(self, process: int) -> Iterator["ReplyWriter"]:
    """Opens the file of a process to add replies."""
    path = self.directory / f"replies-{process:05d}.jsonl"
    with path.open("ab+") as file:
      _cut_last_line(file)
      yield ReplyWriter(file)


class ReplyWriter:
  """Adds replies to a file; what `add` has returned from survives a kill."""

  def __init__(self, file: Any):
    self._file = file

  def add(self, replies: Iterable[StoredReply]) -> None:
    """Writes replies, a line for each."""
    for reply in replies:
      self._file.write(json.dumps(dataclasses.asdict(reply)).encode() + b"\n")
    self._file.flush()
    os.fsync(self._file.fileno())


def _cut_last_line(file: Any) -> None:
  """Removes a last line that has no end."""
  file.seek(0)
  content = file.read()
  whole = content.rfind(b"\n") + 1
  if whole != len(content):
    file.truncate(whole)


def _read_json(path: Path) -> dict[str, Any]:
  try:
    value = plain_json.parse(path.read_bytes())
  except FileNotFoundError as error:
    raise InputError(f"{path}: no such file; give the directory of a protocol's replies") from error
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: is damaged; remove its directory and ask again") from error
  if not isinstance(value, dict):
    raise InputError(f"{path}: is damaged; remove its directory and ask again")
  return value


def _with_addresses(about: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(buckets.as_addresses(json.dumps(about)))


def _short(value: Any) -> str:
  return f"{value!r:.80}"
