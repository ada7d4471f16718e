"""One picture file as a clip of a single frame: a still, kept and shown like a video."""

from pathlib import Path, PurePosixPath

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps

from vr_jax.data import video_file
from vr_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def is_picture(name: str) -> bool:
  """Whether a file, by its name, is a picture rather than a video."""
  return PurePosixPath(name).suffix.lower() in SUFFIXES


def cut(path: Path, *, quality: int, max_side: int) -> video_file.CutVideo:
  """The picture as a video of one frame, at 0 s, and no duration; of several pictures in a file, the first.

  It is turned upright where the file says so, laid on white where it is transparent, and scaled down (never up) until no side
  is longer than `max_side` pixels. `quality` is that of JPEG, 1 to 95.

  Raises:
    InputError: the file cannot be read, is no picture that Pillow knows, is damaged or larger than Pillow opens.
  """
  try:
    with Image.open(path) as opened:
      pixels = _pixels(ImageOps.exif_transpose(opened), max_side)
  # Decoders of some formats raise SyntaxError or ValueError for damaged files.
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    problem = " ".join(str(error).removesuffix(f" {str(path)!r}").split())
    raise InputError(
      f"{path}: cannot be read as a picture ({problem}); it is damaged or none"
    ) from error
  return video_file.CutVideo(
    jpegs=(video_file.encode(pixels, quality),),
    timestamps=np.zeros(1),
    height=pixels.shape[0],
    width=pixels.shape[1],
    duration=0.0,
  )


def _pixels(image: Image.Image, max_side: int) -> UInt8[np.ndarray, "height width 3"]:
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  image = image.convert("RGB")
  image.thumbnail((max_side, max_side), Image.Resampling.BOX)
  return np.array(image)
