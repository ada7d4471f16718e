"""Asks a model and keeps every reply that could be read, so that nothing is asked twice.

Replies lie in one directory: each process appends to a file of its own and reads those of all. A
line that an interruption has cut off is ignored.
"""

from collections.abc import Sequence
import contextlib
import hashlib
import json
import os
from pathlib import Path
import threading
from typing import Any, Protocol, runtime_checkable
import uuid

import ml_collections

from vr_jax import errors, model_endpoint, plain_json
from vr_jax.train import judge_factory, judge_local

SECTION = "config.construct"


@runtime_checkable
class AskedModel(Protocol):
  """A language model that answers texts: an endpoint, or one that is loaded here."""

  def ask(self, questions: Sequence[Any]) -> list[Any]:
    """Returns what each question reads in its reply; None if no reply could be read."""
    ...

  def counts(self) -> Any:
    """Numbers since the last call, such as those of `model_endpoint.Endpoint.counts`."""
    ...

  def close(self) -> None:
    """Frees what the model holds."""
    ...


class _Kept:
  """A question whose readable reply is kept as soon as it comes."""

  def __init__(self, question: model_endpoint.EndpointQuestion, key: str, replies: "ReplyFile"):
    self._question, self._key, self._replies = question, key, replies

  @property
  def system(self) -> str:
    """The system message."""
    return self._question.system

  @property
  def text(self) -> str:
    """The user message."""
    return self._question.text

  def read(self, reply: str) -> Any:
    """Parses a reply, and keeps what it says."""
    value = self._question.read(reply)
    if value is not None:
      self._replies.put(self._key, value)
    return value


class ReplyFile:
  """Values of replies by key: those of all files of a directory; new ones go to a file of its own.

  Threads may share it. Values are JSON.
  """

  def __init__(self, directory: Path):
    """Reads all files. Raises InputError if the directory can't be read or written."""
    self._lock = threading.Lock()
    self._values: dict[str, Any] = {}
    try:
      directory.mkdir(parents=True, exist_ok=True)
      for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
          with contextlib.suppress(ValueError, TypeError, KeyError):
            entry = plain_json.parse(line)
            self._values.setdefault(entry["key"], entry["value"])
      self._path = directory / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
    except OSError as error:
      raise errors.InputError(f"{directory}: cannot be used: {error.strerror}") from error

  def get(self, key: str) -> Any:
    """The value of a reply; None if there is none."""
    return self._values.get(key)

  def put(self, key: str, value: Any) -> None:
    """Adds a value, on disk at once. Raises InputError if the disk refuses."""
    line = json.dumps({"key": key, "value": value}) + "\n"
    try:
      with self._lock, self._path.open("a", encoding="utf-8") as file:
        self._values[key] = value
        file.write(line)
    except OSError as error:
      raise errors.InputError(f"{self._path}: cannot be written: {error.strerror}") from error


class Asker:
  """Asks a model what isn't known yet."""

  def __init__(self, model: AskedModel, replies: ReplyFile, *, identity: str, skips: bool):
    """Uses a model, which `close` closes.

    identity: names the model; replies of another one are not used.
    skips: whether single replies may be unreadable, or single questions refused.
    """
    self._model, self._replies = model, replies
    self._identity, self._skips = identity, skips

  def ask(self, questions: Sequence[model_endpoint.EndpointQuestion]) -> list[Any]:
    """Returns what each question reads in its reply; None if no reply could be read.

    Raises:
      InputError: the budget is spent; a question has no answer after all retries, since that is the
        endpoint's fault; or, while `skips` is off, not one of several replies can be read.
    """
    keys = [self._key(question) for question in questions]
    new = {
      key: question
      for key, question in zip(keys, questions, strict=True)
      if self._replies.get(key) is None
    }
    if new:
      kept = [_Kept(question, key, self._replies) for key, question in new.items()]
      answers = self._model.ask(kept)
      self._check(self._model.counts(), len(new), sum(answer is None for answer in answers))
    return [self._replies.get(key) for key in keys]

  def close(self) -> None:
    """Closes the model."""
    self._model.close()

  def _check(self, counts: Any, asked: int, silent: int) -> None:
    spent, lost = (int(counts.get(name, 0)) for name in ("over_budget", "unanswered"))
    if spent:
      raise errors.InputError(
        f"{SECTION}.budget: is spent, {spent} questions of a chunk are left; the same command goes "
        "on, with as many again"
      )
    if lost:
      raise errors.InputError(
        f"{SECTION}: {lost} of {asked} questions have no answer, retries included (no connection, "
        "a time-out or an error of the server); once the endpoint answers, the same command goes on"
      )
    if silent == asked > 1 and not self._skips:
      raise errors.InputError(
        f"{SECTION}.model: not one of {asked} replies could be read; give a model that follows "
        "instructions, or more max_tokens"
      )

  def _key(self, question: model_endpoint.EndpointQuestion) -> str:
    content = json.dumps([self._identity, question.system, question.text])
    return hashlib.sha256(content.encode()).hexdigest()


def connect(section: ml_collections.ConfigDict, directory: Path) -> Asker:
  """Makes an asker of the model of config.construct; the caller closes it.

  directory: of the replies.

  Raises:
    InputError: no model is named, the endpoint is down or refuses, or a local one can't be read.
  """
  if not section.model:
    raise errors.InputError(
      f"{SECTION}.model: is empty; name the model, as {SECTION}.reader={section.reader} knows it"
    )
  replies = ReplyFile(directory)
  if section.reader == "local":
    model: AskedModel = judge_local.LocalModel(Path(section.model), max_tokens=section.max_tokens)
  else:
    model = model_endpoint.connect(
      SECTION,
      section.reader,
      model=section.model,
      base_url=section.base_url,
      key_variable=section.key_variable or judge_factory.KEY_VARIABLES[section.reader],
      limits=model_endpoint.Limits(
        in_flight=section.in_flight,
        timeout=section.timeout,
        retries=section.retries,
        budget=section.budget,
        max_tokens=section.max_tokens,
      ),
    )
  return Asker(model, replies, identity=identity_of(section), skips=section.on_bad == "skip")


def identity_of(section: ml_collections.ConfigDict) -> str:
  """Names the model of config.construct: other weights in the same directory are another one."""
  weights: tuple[str, ...] = ()
  if section.reader == "local":
    directory = Path(section.model)
    weights = (str(directory.resolve()), *judge_local.describe_weights(directory))
  return " ".join((section.reader, section.model, section.base_url, *weights))
