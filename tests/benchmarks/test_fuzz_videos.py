"""The short form of benchmarks/fuzz_videos.py: a few damaged files of each container."""

import random

import pytest

from benchmarks import damage, fuzz_videos


@pytest.mark.parametrize("container", fuzz_videos.CONTAINERS)
def test_damaged_files_are_refused_or_read_as_ffmpeg_reads_them(container):
  outcome = fuzz_videos.run(container, 3)
  assert outcome["violations"] == []
  assert outcome["accepted"] + outcome["refused"] == 3
  assert outcome["ended the decoder"] == 0


def test_every_damage_changes_a_file_and_is_the_same_in_each_run():
  whole = random.Random(1).randbytes(5000)
  for damages in damage.BYTES:
    first, second = bytearray(whole), bytearray(whole)
    damages(random.Random(2), first)
    damages(random.Random(2), second)
    assert first == second != whole
  assert fuzz_videos.damaged(whole, "mp4", 7, 0) == fuzz_videos.damaged(whole, "mp4", 7, 0)
  assert fuzz_videos.damaged(whole, "mp4", 7, 0) != fuzz_videos.damaged(whole, "mp4", 8, 0)


def test_help_is_printed_and_a_container_that_it_does_not_have_is_refused(capsys):
  with pytest.raises(SystemExit) as ended:
    fuzz_videos.main(["--help"])
  assert ended.value.code == 0
  printed = capsys.readouterr().out
  assert "Damaged video files through our reader" in printed and "--keep" in printed
  with pytest.raises(SystemExit) as ended:
    fuzz_videos.main(["--only=mp4,mp5"])
  assert ended.value.code == 2
  assert "argument --only: 'mp5' is none of mp4," in capsys.readouterr().err
