"""Files whose times, ends, streams or orientation are unusual: the right frames, or one right line.

The files are written by FFmpeg's command, which is also the independent decoder.
"""

import io
import re
import shlex

import numpy as np
from PIL import Image
import pytest

from tests.data import ffmpeg
from vr_jax.data import video_file
from vr_jax.errors import InputError


@pytest.fixture(scope="module")
def index(tmp_path_factory):
  return ffmpeg.index_video(tmp_path_factory.mktemp("index"))


def cut(path, fps=8.0):
  return video_file.extract(path, fps=fps, quality=95, max_side=448)


def pixels(jpeg):
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)


def numbers(result):
  """Which frame of index.mp4 each kept frame is."""
  return [round((pixels(jpeg).mean() - 20) / 2.5) for jpeg in result.jpegs]


def assert_whole(result, seconds=1 / 8):
  assert numbers(result) == list(range(80))
  np.testing.assert_allclose(result.timestamps, np.arange(80) * seconds, atol=2e-3)
  assert result.duration == pytest.approx(80 * seconds, abs=2e-3)


def test_the_file_itself_is_read_frame_by_frame(index):
  assert_whole(cut(index))


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".ts", ".flv", ".webm", ".mpg"])
def test_frames_keep_their_places_in_every_container(index, tmp_path, suffix):
  codec = {".webm": ("libvpx-vp9", "-crf", "4"), ".mpg": ("mpeg2video", "-q:v", "1", "-r", "25")}
  path = tmp_path / f"a{suffix}"
  ffmpeg.run("-i", index, "-c:v", *codec.get(suffix, ("libx264", "-qp", "4", "-bf", "3")), path)
  if suffix == ".mpg":  # MPEG-2 has no 8 frames a second: frames are repeated
    assert numbers(cut(path, fps=1.0)) == pytest.approx(list(range(0, 80, 8)), abs=1)
  else:
    assert_whole(cut(path))


def test_times_in_the_order_of_decoding_are_put_in_order(index, tmp_path):
  path = tmp_path / "reordered.avi"
  ffmpeg.run(*("-i", index, "-vf", "setpts=8*PTS", "-r", "1"), *("-c:v", "libx264"),
             *("-qp", "4", "-bf", "3", "-g", "30", "-color_range", "pc"), path)  # fmt: skip
  assert_whole(cut(path, fps=1.0), seconds=1)


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_where_a_recorder_dropped_frames_the_others_keep_their_times(index, tmp_path, b_frames):
  path = tmp_path / "dropped.avi"  # of the first five seconds every fifth frame
  dropping = ("-vf", "select='not(mod(n,5))+gt(n,40)'", "-fps_mode", "passthrough")
  codec = ("-enc_time_base", "1:8", "-c:v", "libx264", "-qp", "4", "-bf", b_frames)
  ffmpeg.run("-i", index, *dropping, *codec, path)
  result = cut(path)
  kept = [*range(0, 40, 5), *range(40, 80)]
  assert numbers(result) == kept
  np.testing.assert_allclose(result.timestamps, np.array(kept) / 8, atol=2e-3)
  assert result.duration == pytest.approx(10)


def test_an_avi_without_its_first_frame_is_refused(index, tmp_path):
  path = tmp_path / "a.avi"
  for codec in (("mpeg4", "-sc_threshold", "1000000000"), ("libx264", "-qp", "4")):
    ffmpeg.run("-i", index, "-c:v", *codec, "-bf", "0", "-g", "16", path)
    data = bytearray(path.read_bytes())
    place = data.index(b"movi") + 4
    data[place : place + 4] = b"JUNK"  # the frame that the next 15 need
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.avi: is damaged"):
      cut(path)


def test_of_a_stream_without_times_the_advice_works(index, tmp_path):
  raw, mended, copied = (tmp_path / name for name in ("my raw.h264", "NEW.mp4", "copied.mp4"))
  ffmpeg.run("-i", index, "-c", "copy", "-bsf:v", "h264_mp4toannexb", raw)
  with pytest.raises(InputError, match=r"my raw\.h264: its frames have no times") as error:
    cut(raw)
  advice = shlex.split(str(error.value).partition("ffmpeg ")[2].replace("RATE", "8"))
  advice = [str(raw) if word == raw.name else word for word in advice]
  ffmpeg.run(*advice[:-1], "-qp", "4", mended)
  assert_whole(cut(mended))
  ffmpeg.run("-i", raw, "-c", "copy", copied)  # loses the first frame
  with pytest.raises(
    InputError, match=r"copied\.mp4: its times go back after 0\.12 s .* from its source"
  ):
    cut(copied)


def test_recordings_that_were_joined_follow_each_other(index, tmp_path):
  first, second, joined = (tmp_path / name for name in ("1.ts", "2.ts", "joined.ts"))
  plain = ("-c:v", "libx264", "-qp", "4", "-g", "8", "-bf", "0")
  ffmpeg.run("-i", index, "-t", "5", *plain, first)
  again = ("-mpegts_flags", "initial_discontinuity")
  ffmpeg.run("-ss", "5", "-i", index, *plain, *again, second)
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  assert_whole(cut(joined))


def test_a_clock_that_jumps_an_hour_ahead_is_joined_as_well(index, tmp_path):
  first, second, joined = (tmp_path / name for name in ("1.ts", "2.ts", "joined.ts"))
  plain = ("-c:v", "libx264", "-qp", "4", "-g", "8", "-bf", "0")
  ffmpeg.run("-i", index, "-t", "5", *plain, first)
  again = ("-mpegts_flags", "initial_discontinuity", "-output_ts_offset", "3600")
  ffmpeg.run("-ss", "5", "-i", index, *plain, *again, second)
  joined.write_bytes(first.read_bytes() + second.read_bytes())
  assert_whole(cut(joined))


def test_slides_that_last_longer_than_a_jump_of_the_clock_keep_their_times(tmp_path):
  path = tmp_path / "slides.ts"
  ffmpeg.run("-f", "lavfi", "-i", "testsrc=s=64x64:r=1/30:d=120", "-c:v", "libx264", path)
  np.testing.assert_allclose(cut(path, fps=1.0).timestamps, [0, 30, 60, 90], atol=1e-3)


def test_each_frame_ends_where_the_next_one_starts(index, tmp_path):
  every = cut(index)
  np.testing.assert_allclose(every.ends, np.arange(1, 81) / 8, atol=2e-3)
  slides = tmp_path / "slides.mp4"
  ffmpeg.run("-f", "lavfi", "-i", "color=s=64x64:r=1/30:d=90", "-c:v", "libx264", slides)
  np.testing.assert_allclose(cut(slides, fps=1.0).ends, [30, 60, 90], atol=2e-3)
  np.testing.assert_allclose(cut(index, fps=1.0).ends, np.arange(10) + 1 / 8, atol=2e-3)


def test_a_picture_that_freezes_between_two_ticks_is_kept_until_it_moves(index, tmp_path):
  path = tmp_path / "frozen.mkv"  # frames 0 to 5, the last for 4 s; then 6, 7, …
  times = "setpts='(if(lte(N,5),N,N+31)/8)/TB'"
  ffmpeg.run("-i", index, "-vf", times, "-fps_mode", "vfr", "-c:v", "libx264", "-qp", "4", path)
  result = cut(path, fps=1.0)
  assert numbers(result)[:4] == [0, 5, 6, 9]
  np.testing.assert_allclose(result.timestamps[:4], [0, 5 / 8, 37 / 8, 5], atol=2e-3)
  np.testing.assert_allclose(result.ends[:2], [1 / 8, 37 / 8], atol=2e-3)
  shown = ffmpeg.picture_at(path, 3.0, 64, 64)  # the screen at 3 s
  assert np.abs(pixels(result.jpegs[1]) - shown).mean() < 4


@pytest.fixture(scope="module")
def with_sound(index, tmp_path_factory):
  """Writes index.mp4 with sound in another container; the suffix may have options after a space."""
  root = tmp_path_factory.mktemp("sound")

  def write(name):
    suffix, _, options = name.partition(" ")
    path = root / f"{len(list(root.iterdir()))}{suffix}"
    webm = ("-c:v", "libvpx-vp9", "-crf", "4", "-c:a", "libopus", "-g", "16")
    codecs = webm if suffix == ".webm" else ("-c:v", "libx264", "-qp", "4", "-c:a", "aac")
    sound = ("-f", "lavfi", "-i", "sine=duration=10")
    ffmpeg.run("-i", index, *sound, *codecs, *options.split(), path)
    return path

  return write


WITHOUT_LENGTH = [
  ".mp4 -g 16 -movflags frag_keyframe+empty_moov+default_base_moof",
  ".flv -flvflags no_duration_filesize",
]


@pytest.mark.parametrize(
  "name", [".mkv", ".webm", ".flv", ".avi", ".mp4 -movflags faststart", *WITHOUT_LENGTH]
)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_cut_file_with_sound_is_refused(with_sound, name, part):
  whole = with_sound(name)
  assert_whole(cut(whole))
  whole.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
  with pytest.raises(InputError, match=r"truncated|damaged") as error:
    cut(whole)
  assert len(str(error.value).splitlines()) == 1 and whole.name in str(error.value)


@pytest.mark.parametrize("name", [".ts", ".m2ts"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_a_transport_stream_that_is_cut_within_a_packet_is_refused(with_sound, name, part):
  path, packet = with_sound(name), 192 if name == ".m2ts" else 188
  data = path.read_bytes()
  packets = int(part * len(data)) // packet
  path.write_bytes(data[: packets * packet + 100])
  with pytest.raises(InputError, match=r"truncated|damaged"):
    cut(path)
  path.write_bytes(data[: packets * packet])  # which can't be told from a shorter recording
  shorter = cut(path)
  assert numbers(shorter)[:20] == list(range(20))
  assert shorter.duration == pytest.approx(10 * part, abs=0.8)


def test_of_fragmented_mp4_a_missing_part_of_a_fragment_is_told_and_a_missing_fragment_is_not(
  with_sound,
):
  path = with_sound(WITHOUT_LENGTH[0])
  data = path.read_bytes()
  third = [place.start() - 4 for place in re.finditer(b"moof", data)][2]
  within = data.index(b"mdat", third) - 4
  path.write_bytes(data[:third])
  assert numbers(cut(path)) == list(range(32))  # two fragments of 16 frames
  for end in (third + 4, third + 50, within, within + 8, within + 500):
    path.write_bytes(data[:end])
    with pytest.raises(InputError, match=r"truncated|damaged"):
      cut(path)


@pytest.mark.parametrize("name", [".mkv", ".mkv -live 1", ".flv", ".ts", WITHOUT_LENGTH[0]])
def test_a_file_without_its_middle_is_refused(with_sound, name):
  path = with_sound(name)
  assert_whole(cut(path))
  data = path.read_bytes()
  for start, end in ((0.5, 0.6), (0.4, 0.401)):
    path.write_bytes(data[: int(start * len(data))] + data[int(end * len(data)) :])
    with pytest.raises(InputError, match=r"truncated|damaged"):
      cut(path)


PACKS = ".mpg -c:v mpeg2video -r 25 -c:a mp2"


@pytest.mark.parametrize("name", [PACKS, ".wmv -c:v wmv2 -c:a wmav2"])
def test_packs_and_windows_media_without_a_part_are_refused(with_sound, name):
  path = with_sound(name)
  data = path.read_bytes()
  assert cut(path).duration == pytest.approx(10, abs=0.3)
  for start, end in ((0.5, 0.6), (0.4, 0.401), (0.7, 1.0)):
    path.write_bytes(data[: int(start * len(data))] + data[int(end * len(data)) :])
    with pytest.raises(InputError, match=r"truncated|damaged"):
      cut(path)


def test_what_stands_behind_the_last_pack_is_no_part_of_the_video(with_sound):
  path = with_sound(PACKS)
  data = path.read_bytes()
  for more in (bytes(3000), b"\0\0\1\xb9", b"\0\0\1\xb9" + b"a tag of the program"):
    path.write_bytes(data + more)
    assert cut(path).duration == pytest.approx(10, abs=0.3)


def test_a_picture_that_ends_before_its_sound_is_whole(index, tmp_path):
  path = tmp_path / "a.mkv"
  ffmpeg.run("-i", index, "-f", "lavfi", "-i", "sine=duration=15", "-c:v", "copy", path)
  assert_whole(cut(path))


def test_whole_parts_of_a_segmented_recording_are_read(index, tmp_path):
  copied = ("-c:v", "libx264", "-qp", "4", "-g", "16", "-bf", "2")
  cutting = ("-f", "segment", "-segment_time", "4")
  ffmpeg.run("-i", index, *copied, *cutting, tmp_path / "part%03d.mkv")
  parts = [cut(path) for path in sorted(tmp_path.glob("part*.mkv"))]
  assert len(parts) == 3
  assert [n for part in parts for n in numbers(part)] == list(range(80))
  assert all(part.timestamps[0] == 0 for part in parts)


def test_a_cut_part_of_a_segmented_recording_is_refused(index, tmp_path):
  cutting = ("-f", "segment", "-segment_time", "4")
  ffmpeg.run("-i", index, "-c", "copy", *cutting, tmp_path / "part%03d.mkv")
  path = tmp_path / "part001.mkv"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(InputError, match=r"truncated|damaged"):
    cut(path)


def test_of_two_streams_the_one_that_ffmpeg_chooses_is_read(tmp_path):
  path = tmp_path / "thumbnail_first.mp4"
  sources = ("-f", "lavfi", "-i", "testsrc=size=32x24:rate=1:duration=4")
  sources += ("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=8:duration=4")
  default = ("-disposition:v:0", "0", "-disposition:v:1", "default")
  ffmpeg.run(*sources, "-map", "0:v", "-map", "1:v", *("-c:v", "libx264"), *default, path)
  result = cut(path, fps=1.0)
  assert (result.width, result.height) == (320, 240)
  shown = ffmpeg.first_picture(path, 320, 240)
  assert np.abs(pixels(result.jpegs[0]) - shown).mean() < 4


def test_of_streams_that_are_alike_the_one_of_larger_pictures_is_read(tmp_path):
  path = tmp_path / "both_default.mkv"  # the first has the higher rate and more frames
  sources = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=4")
  sources += ("-f", "lavfi", "-i", "color=gray:size=320x240:rate=1:duration=4")
  default = ("-disposition:v:0", "default", "-disposition:v:1", "default")
  ffmpeg.run(
    *sources, "-map", "0:v", "-map", "1:v", *("-c:v", "libx264", "-g", "1"), *default, path
  )
  result = cut(path, fps=1.0)
  assert (result.width, result.height, len(result.jpegs)) == (320, 240, 4)
  shown = ffmpeg.first_picture(path, 320, 240)
  assert np.abs(pixels(result.jpegs[0]) - shown).mean() < 4


def test_a_photo_in_tiles_is_refused(tmp_path):
  path = tmp_path / "IMG_1.HEIC"
  ffmpeg.run("-f", "lavfi", "-i", "testsrc2=size=64x48", "-frames:v", "1", "-f", "avif", path)
  path.write_bytes(path.read_bytes().replace(b"ftypavif", b"ftypheic", 1))
  with pytest.raises(InputError, match=r"IMG_1\.HEIC: is a HEIF picture"):
    cut(path)


# The eight ways to show a picture by quarter turns and mirrors: a, b, c, d of the matrix.
ORIENTATIONS = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
ORIENTATIONS += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_frames_are_turned_and_mirrored_as_ffmpeg_shows_them(tmp_path, matrix):
  path = tmp_path / "a.mp4"
  corners = "color=c=gray:s=96x64:r=8:d=1,drawbox=0:0:24:24:red:fill"
  corners += ",drawbox=72:0:24:24:lime:fill,drawbox=0:40:24:24:blue:fill"
  ffmpeg.run("-f", "lavfi", "-i", corners, *("-c:v", "libx264", "-qp", "4"), path)
  ffmpeg.write_matrix(path, *matrix)
  height, width = (64, 96) if matrix[0] else (96, 64)
  shown = ffmpeg.first_picture(path, width, height)
  result = cut(path)
  assert (result.height, result.width) == (height, width)
  assert np.abs(pixels(result.jpegs[0]) - shown).mean() < 4


def test_a_picture_that_is_to_be_shown_aslant_is_refused(index, tmp_path):
  path = tmp_path / "a.mp4"
  ffmpeg.run("-display_rotation", "30", "-i", index, "-c", "copy", path)
  with pytest.raises(InputError, match=r"a\.mp4: is to be shown aslant .* ffmpeg -i a\.mp4"):
    cut(path)
