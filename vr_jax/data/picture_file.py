"""Reads a picture file as a video of one frame."""

from pathlib import Path, PurePosixPath

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageOps

from vr_jax.data import upright_images, video_file
from vr_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# What such a file may be, as some have the name of another format. Pillow knows many more, of which
# it hands one (EPS) to Ghostscript, a program that a stranger's file must not reach. JPEG has MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def is_picture(name: str) -> bool:
  """Whether a file is a picture rather than a video, judged by its name."""
  return PurePosixPath(name).suffix.lower() in SUFFIXES


def extract(
  path: Path,
  *,
  quality: int,
  max_side: int,
  kept_pixels: int | None = None,
  max_pixels: int = video_file.MAX_PIXELS,
) -> video_file.ExtractedVideo:
  """Reads a picture as a video of one frame at 0 s and without duration.

  The picture is rotated as its file says, drawn on white if transparent, and scaled down if a side
  is longer than `max_side`. Of a photo that comes with others (MPO), as of phones, it is the first.

  quality: of JPEG, 1 to 95.
  max_side: in pixels.
  kept_pixels: a picture that has more is scaled down to about so many; None: no limit.
  max_pixels: of the picture as it is in the file.

  Raises:
    InputError: the file cannot be read, is not a picture of one of FORMATS, is damaged, is larger,
      or moves.
  """
  try:
    with Image.open(path, formats=FORMATS) as image:
      video_file.check_size(path, *image.size, max_pixels)
      _check_still(path, image)
      upright = ImageOps.exif_transpose(image)
      width, height = upright.size
      side = upright_images.longest_side(upright.size, max_side, kept_pixels)
      pixels = _pixels(upright, max(1, round(side)))
  # Decoders of some formats raise SyntaxError or ValueError for damaged files.
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise bad_picture(path, error) from error
  return video_file.ExtractedVideo(
    jpegs=(video_file.encode(pixels, quality),),
    timestamps=np.zeros(1),
    ends=np.zeros(1),
    height=pixels.shape[0],
    width=pixels.shape[1],
    duration=0.0,
    original_height=height,
    original_width=width,
  )


def _check_still(path: Path, image: Image.Image) -> None:
  frames = getattr(image, "n_frames", 1)
  if frames > 1 and image.format != "MPO":
    raise InputError(
      f"{path}: moves ({frames} frames), and files of this name are read as stills; "
      "make it a video (NEW.mp4, NEW.gif), or a picture of one frame"
    )


def bad_picture(path: Path, error: Exception) -> InputError:
  """The error about a file that Pillow can't read."""
  problem = " ".join(str(error).removesuffix(f" {str(path)!r}").split())
  return InputError(
    f"{path}: cannot be read as a picture ({problem}); it is damaged or not a picture"
  )


def _pixels(image: Image.Image, max_side: int) -> UInt8[np.ndarray, "height width 3"]:
  if image.mode.startswith("I;16"):  # Pillow would clip it to 255
    image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  image = image.convert("RGB")
  image.thumbnail((max_side, max_side), Image.Resampling.BOX)
  return np.array(image)
