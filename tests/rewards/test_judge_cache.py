"""Verdicts on disk: shared by threads and processes, never overwritten; rejects other files."""

from concurrent import futures
import multiprocessing
import sqlite3
import threading

import pytest

from vr_jax import errors
from vr_jax.rewards import judge_cache

KEYS = [judge_cache.key(["judge", str(number)]) for number in range(40)]


def write(path, own):
  """Puts each key with a verdict of this process's own; gives what the file says then."""
  cache = judge_cache.VerdictCache(path)
  for key in KEYS:
    cache.put({key: own})
  found = cache.get(KEYS)
  cache.close()
  return found


@pytest.fixture
def path(tmp_path):
  return tmp_path / "new" / "verdicts.sqlite"


def test_verdicts_are_there_for_the_next_process(path):
  cache = judge_cache.VerdictCache(path)
  cache.put({KEYS[0]: True, KEYS[1]: False})
  cache.close()
  assert judge_cache.VerdictCache(path).get(KEYS[:3]) == {KEYS[0]: True, KEYS[1]: False}


def test_the_first_verdict_stays(path):
  cache = judge_cache.VerdictCache(path)
  cache.put({KEYS[0]: True})
  cache.put({KEYS[0]: False})
  assert cache.get(KEYS) == {KEYS[0]: True}


def test_keys_tell_parts_apart():
  assert len({judge_cache.key(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], [])}) == 4


def test_threads_may_share_one(path):
  cache, start = judge_cache.VerdictCache(path), threading.Barrier(8)

  def work(number):
    start.wait()
    for key in KEYS:
      cache.put({key: number % 2 == 0})
      assert key in cache.get([key])

  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(8)))
  assert set(cache.get(KEYS)) == set(KEYS)


def test_processes_may_share_the_file_from_its_first_moment(path):
  with futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
    found = list(pool.map(write, [path] * 2, [True, False]))
  assert found[0] == found[1]
  assert set(found[0]) == set(KEYS)


def test_the_file_holds_verdicts_and_hashes_alone(path):
  cache = judge_cache.VerdictCache(path)
  cache.put({judge_cache.key(["what was asked", "sk-secret"]): True})
  cache.close()
  rows = sqlite3.connect(path).execute("SELECT length(key), verdict FROM verdicts").fetchall()
  assert rows == [(32, "Yes")]
  assert b"asked" not in path.read_bytes()


def no_database(path):
  path.write_bytes(b"this is a text and no database" * 100)


def filled(path):
  cache = judge_cache.VerdictCache(path)
  cache.put({judge_cache.key([str(number)]): True for number in range(3000)})
  cache.close()
  return path.read_bytes()


def cut_short(path):
  content = filled(path)
  path.write_bytes(content[: len(content) // 2])


def overwritten_inside(path):
  content = filled(path)
  path.write_bytes(content[:8192] + b"\xff" * 4096 + content[12288:])


def another_database(path):
  file = sqlite3.connect(path)
  file.execute("CREATE TABLE verdicts (key, verdict)")
  file.commit()
  file.close()


def another_format(path):
  judge_cache.VerdictCache(path).close()
  file = sqlite3.connect(path)
  file.execute("PRAGMA user_version = 99")
  file.close()


def directory(path):
  path.mkdir()


@pytest.mark.parametrize(
  "damage",
  [no_database, cut_short, overwritten_inside, another_database, another_format, directory],
)
def test_a_damaged_or_foreign_file_is_named(path, damage):
  path.parent.mkdir()
  damage(path)
  with pytest.raises(errors.InputError, match=r"verdicts\.sqlite: ") as refused:
    judge_cache.VerdictCache(path)
  assert "\n" not in str(refused.value)


def test_a_file_damaged_under_a_running_judge_is_named(path):
  cache = judge_cache.VerdictCache(path)
  another = sqlite3.connect(path)
  another.execute("DROP TABLE verdicts")
  another.commit()
  with pytest.raises(errors.InputError, match=r"verdicts\.sqlite: "):
    cache.get(KEYS)
