"""Run-length masks as COCO writes them: {"size": [height, width], "counts": text}.

`None` stands for a mask without a pixel, as in the released files of segmentation sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
import numpy as np
from pycocotools import mask as coco

from vr_jax.errors import InputError

RunLength = Mapping[str, Any]


def encode(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any] | None:
  """Encodes a mask; None if it has no pixel."""
  if not mask.any():
    return None
  return as_text(coco.encode(np.asfortranarray(mask, np.uint8)))


def decode(mask: RunLength | None, height: int, width: int) -> Bool[np.ndarray, "height width"]:
  """Decodes a mask of a frame of this size."""
  if mask is None:
    return np.zeros((height, width), bool)
  return coco.decode(_as_bytes(mask)).astype(bool)


def union(masks: Sequence[RunLength | None]) -> RunLength | None:
  """The pixels that any of the masks has. All are of the same size."""
  given = [_as_bytes(mask) for mask in masks if mask is not None]
  if len(given) < 2:
    return given[0] if given else None
  return coco.merge(given)


def as_text(mask: RunLength | None) -> dict[str, Any] | None:
  """A mask as JSON can hold it, compressed."""
  if mask is None:
    return None
  encoded = _as_bytes(mask)
  return {"size": [*map(int, encoded["size"])], "counts": encoded["counts"].decode("ascii")}


def box(mask: RunLength | None) -> Float[np.ndarray, "4"]:
  """The smallest box around a mask: float32 (left, top, right, bottom), right and bottom exclusive.

  NaN for a mask without a pixel.
  """
  if mask is None or not coco.area(encoded := _as_bytes(mask)):
    return np.full(4, np.nan, np.float32)
  left, top, width, height = coco.toBbox(encoded)
  return np.array([left, top, left + width, top + height], np.float32)


def check(value: Any, height: int, width: int, where: str) -> None:
  """Raises InputError unless `value` is a run-length mask of this size, or None.

  Counts as a list of numbers are read, too.
  """
  if value is None:
    return
  if not isinstance(value, dict) or not {"size", "counts"} <= value.keys():
    raise InputError(f"{where}: is no run-length mask: needs 'size' and 'counts', or null")
  if value["size"] != [height, width]:
    raise InputError(
      f"{where}: the mask is of {value['size']} pixels (height, width), the frames of "
      f"{[height, width]}; masks have to be of the frames' size"
    )
  try:
    pixels = _count_pixels(value["counts"])
  except (TypeError, ValueError, UnicodeEncodeError) as error:
    raise InputError(f"{where}: is a damaged run-length mask: {error}") from error
  if pixels != height * width:
    raise InputError(
      f"{where}: is a damaged run-length mask: its runs hold {pixels} pixels of {height * width}"
    )


def _count_pixels(counts: Any) -> int:
  """Number of pixels of all runs. The library reads past its memory where they are too many.

  Compressed, each run is written in groups of five bits, lowest first, the sixth bit saying whether
  another one follows; from the third run on it is the difference to the last but one.
  """
  if isinstance(counts, list):
    if not all(type(count) is int and count >= 0 for count in counts):
      raise ValueError("a run is no number of pixels")
    return sum(counts)
  data = counts.encode("ascii") if isinstance(counts, str) else counts
  if not isinstance(data, bytes):
    raise TypeError("'counts' is neither a text nor a list")
  digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
  ends = np.flatnonzero(digits & 32 == 0)
  if not len(digits) or digits.min() < 0 or digits.max() > 63 or ends[-1:] != len(digits) - 1:
    raise ValueError("its text is cut off or none that such masks are written in")
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > 7:
    raise ValueError("a run is longer than any picture")
  shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
  runs = np.add.reduceat((digits & 31) << shifts, starts)
  runs -= np.where(digits[ends] & 16, 1 << 5 * lengths, 0)
  runs[1::2] = np.cumsum(runs[1::2])
  runs[2::2] = np.cumsum(runs[2::2])
  if runs.min() < 0:
    raise ValueError("a run is shorter than nothing")
  return int(runs.sum())


def _as_bytes(mask: RunLength) -> Any:
  """The mask with its counts as the library takes them."""
  counts = mask["counts"]
  height, width = mask["size"]
  if isinstance(counts, list):
    plain: Any = {"size": [height, width], "counts": counts}
    return coco.frPyObjects(plain, height, width)
  data = counts.encode("ascii") if isinstance(counts, str) else counts
  return {"size": [height, width], "counts": data}
