"""Writes event files for TensorBoard: scalars, texts and images."""

from collections.abc import Mapping
import io
import os
from pathlib import Path
import re
import socket
import time

from google.protobuf.message import Message
from jaxtyping import UInt8
import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.summary.writer import record_writer

from vr_jax import atomic

_NAME = re.compile(r"events\.out\.tfevents\.(\d+\.\d{6})\.")


class TensorBoardLog:
  """One event file. If a step is written again after a restart, TensorBoard shows the last one."""

  def __init__(self, directory: Path, *, first_step: int) -> None:
    """Opens a new file; what older files have of first_step and later is no longer shown."""
    directory.mkdir(parents=True, exist_ok=True)
    # Not EventFileWriter: an interrupted run might wait forever for its thread.
    name = f"events.out.tfevents.{_after(directory):.6f}.{socket.gethostname()}.{os.getpid()}"
    self._path = directory / name
    self._open()
    self._add_event(0, file_version="brain.Event:2")
    begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add_event(first_step, session_log=begun)

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of a step."""
    summary = summary_pb2.Summary()
    for name, value in values.items():
      summary.value.add(tag=name, simple_value=value)
    self._add_event(step, summary=summary)

  def write_text(self, step: int, tag: str, markdown: str) -> None:
    """Writes a text, which TensorBoard shows as Markdown."""
    summary = summary_pb2.Summary()
    about = summary_pb2.SummaryMetadata(
      plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    )
    content = tensor_pb2.TensorProto(
      dtype=types_pb2.DT_STRING, string_val=[markdown.encode("utf-8", "backslashreplace")]
    )
    summary.value.add(tag=tag, metadata=about, tensor=content)
    self._add_event(step, summary=summary)

  def write_image(self, step: int, tag: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an RGB picture."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    height, width, _ = pixels.shape
    picture = summary_pb2.Summary.Image(
      height=height, width=width, colorspace=3, encoded_image_string=stream.getvalue()
    )
    summary = summary_pb2.Summary()
    summary.value.add(tag=tag, image=picture)
    self._add_event(step, summary=summary)

  def publish(self) -> None:
    """Makes what was written so far last, and seen by other hosts (atomic.close_published)."""
    atomic.close_published(self._stream)
    self._open()

  def close(self) -> None:
    """Closes the file."""
    self._records.close()

  def _open(self) -> None:
    self._stream = self._path.open("ab")
    self._records = record_writer.RecordWriter(self._stream)

  def _add_event(self, step: int, **what: Message | str) -> None:
    event = event_pb2.Event(wall_time=time.time(), step=step, **what)
    self._records.write(event.SerializeToString())
    self._records.flush()


def _after(directory: Path) -> float:
  """Seconds since 1970, but later than any older file says, whose clock may have been ahead.

  TensorBoard reads files in the order of their names, and never an earlier one.
  """
  names = (_NAME.match(path.name) for path in directory.iterdir())
  return max([time.time(), *(float(match[1]) + 1 for match in names if match)])
