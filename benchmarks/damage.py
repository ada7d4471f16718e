"""Damages inputs at random: bytes of any file, JSON by its values, and texts by their words."""

from collections.abc import Callable
import dataclasses
import gzip
import json
import random
from typing import Any, cast

_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# What a JSON value is replaced by: of another kind, too large, or a name that leads elsewhere.
_ODD_VALUES = (
  *(None, True, False, 0, 1, -1, 7, 2**31, 2**53 + 1, -(2**63), 2**64, 10**30, 0.5, -1e300, 1e-320),
  *(float("inf"), float("-inf"), float("nan"), "", " ", "0", "-1", "nan", "null", "[]", "x" * 5000),
  *("../x", "../../../etc/passwd", "/etc/passwd", "a/../../b", "..", ".", "\x00", "\ud800", "\n\n"),
  *("٣", "\u2028", "A", "a.mp4", [], {}, [[]], [None], [1, 2], {"": None}, {"a": {"b": {}}}),
)
Damage = Callable[[random.Random, bytes], bytes]
_DEEP = 100_000  # brackets in each other, more than any parser has stack for
_LONG = 6000  # digits, more than Python makes a number of


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuzzedInput:
  """A valid input, and what reads a damaged copy of it.

  name: in reports.
  damage: makes a damaged copy.
  read: reads a copy, in the way of the project. Raises InputError where it refuses it.
  may_refuse: False for replies of models, which are always read, whatever they say.
  """

  name: str
  whole: bytes
  damage: Damage
  read: Callable[[bytes], None]
  may_refuse: bool = True


def _flip_bits(rng: random.Random, data: bytearray) -> None:
  for _ in range(rng.choice((1, 1, 2, 8, 64))):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
  del data[rng.randrange(1, len(data)) :]


def _block(rng: random.Random, data: bytearray) -> slice:
  """A random part of a file: of any size up to a quarter, often a small one."""
  size = min(len(data), max(1, int(len(data) / 4 * rng.random() ** rng.choice((1, 4)))))
  start = rng.randrange(len(data) - size + 1)
  return slice(start, start + size)


def _remove(rng: random.Random, data: bytearray) -> None:
  del data[_block(rng, data)]


def _double(rng: random.Random, data: bytearray) -> None:
  block = _block(rng, data)
  data[block.stop : block.stop] = data[block]


def _move(rng: random.Random, data: bytearray) -> None:
  block = _block(rng, data)
  moved = data[block]
  del data[block]
  place = rng.randrange(len(data) + 1)
  data[place:place] = moved


def _overwrite(rng: random.Random, data: bytearray) -> None:
  block = _block(rng, data)
  size = block.stop - block.start
  data[block] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _edit_header(rng: random.Random, data: bytearray) -> None:
  """Sets numbers near the start, or near the end, where some containers have their index."""
  for _ in range(rng.choice((1, 1, 2, 4))):
    size, order = rng.choice((1, 2, 4)), cast(Any, rng.choice(("big", "little")))
    near = min(len(data) - size, 2048)
    place = rng.randrange(near) if rng.random() < 0.6 else len(data) - size - rng.randrange(near)
    number = rng.choice((*_ODD_NUMBERS, rng.getrandbits(32))) % (1 << 8 * size)
    data[place : place + size] = number.to_bytes(size, order)


BYTES: tuple[Callable[[random.Random, bytearray], None], ...] = (
  *(_flip_bits, _cut, _remove, _double, _move, _overwrite, _edit_header, _edit_header),
)


def damage_bytes(rng: random.Random, whole: bytes) -> bytes:
  """Damages any file once, or twice."""
  data = bytearray(whole)
  for _ in range(rng.choice((1, 1, 1, 2))):
    if len(data) > 8:
      rng.choice(BYTES)(rng, data)
  return bytes(data)


def damage_json(rng: random.Random, whole: bytes) -> bytes:
  """Damages JSON: mostly one to three of its values, sometimes its text."""
  if rng.random() < 0.15:
    return damage_bytes(rng, whole)
  value = json.loads(whole)
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    value = _damage_value(rng, value)
  text = json.dumps(value)
  if rng.random() < 0.03:
    text = _insert_extreme(rng, text)
  return text.encode("utf-8", "surrogatepass")


def damage_json_lines(rng: random.Random, whole: bytes) -> bytes:
  """Damages one line of a file of JSON lines; sometimes its end, or bytes anywhere."""
  lines = whole.split(b"\n")
  place = rng.randrange(len(lines))
  if not lines[place].strip() or rng.random() < 0.1:
    return damage_bytes(rng, whole)
  lines[place] = damage_json(rng, lines[place])
  return b"\n".join(lines)


def damage_gzip(inside: Damage) -> Damage:
  """Damages what a gzip file holds, or the file itself."""

  def damage(rng: random.Random, whole: bytes) -> bytes:
    if rng.random() < 0.5:
      return damage_bytes(rng, whole)
    return gzip.compress(inside(rng, gzip.decompress(whole)), compresslevel=1, mtime=0)

  return damage


def damage_words(*words: str) -> Damage:
  """Damages a text with these words; see `damage_text`."""

  def damage(rng: random.Random, whole: bytes) -> bytes:
    return damage_text(rng, whole.decode(), words).encode("utf-8", "surrogatepass")

  return damage


def _damage_value(rng: random.Random, value: Any) -> Any:
  """Damages one node of a tree, any of them with the same chance."""
  places = list(_places(value))
  if not places:
    return rng.choice(_ODD_VALUES)
  path = rng.choice(places)
  owner, key = _owner(value, path), path[-1]
  action = rng.randrange(10)
  if action < 5:
    owner[key] = _copy(rng.choice(_ODD_VALUES))
  elif action == 5:
    del owner[key]
  elif action == 6:  # another part of the tree in its place
    other = rng.choice(places)
    owner[key] = _copy(_owner(value, other)[other[-1]])
  elif action == 7 and isinstance(owner, list):
    owner[key:key] = [_copy(owner[key])] * rng.choice((1, 2, 100))
  elif action == 7:
    owner[rng.choice(("", "x", f"{key} ", str(key).upper(), "../x"))] = owner.pop(key)
  elif action == 8:
    owner[key] = [owner[key]] if rng.random() < 0.5 else str(owner[key])
  else:
    owner[key] = _nudged(rng, owner[key])
  return value


def _nudged(rng: random.Random, value: Any) -> Any:
  """A value of the same kind that is a little, or much, unlike it."""
  if isinstance(value, bool) or value is None:
    return not value
  if isinstance(value, int | float):
    return rng.choice((value + 1, value - 1, -value, value * 1000, value / 3, value * 1e9))
  if isinstance(value, str):
    return rng.choice(
      (value[1:], value[:-1], value * 2, f"../{value}", f"{value}\x00", value * 500)
    )
  return value if not value or rng.random() < 0.5 else type(value)()


def _places(value: Any) -> Any:
  """Paths of all nodes below a value."""
  entries = value.items() if isinstance(value, dict) else ()
  for key, entry in enumerate(value) if isinstance(value, list) else entries:
    yield (key,)
    for path in _places(entry):
      yield (key, *path)


def _owner(value: Any, path: tuple) -> Any:
  """The list or object that the node at a path is in."""
  for key in path[:-1]:
    value = value[key]
  return value


def _copy(value: Any) -> Any:
  return json.loads(json.dumps(value))


def _insert_extreme(rng: random.Random, text: str) -> str:
  """Puts something that parsers can't take in the place of a number, a list or an object."""
  starts = [place for place, sign in enumerate(text) if sign in "[{0123456789"]
  place = rng.choice(starts or [0])
  extremes = ("[" * _DEEP, '{"a":' * _DEEP, "9" * _LONG, "[" * _DEEP + "]" * _DEEP, "1e99999")
  return text[:place] + rng.choice(extremes) + text[place + 1 :]


def damage_text(rng: random.Random, whole: str, words: tuple[str, ...]) -> str:
  """Damages a text some times: inserts words, repeats, moves and removes parts."""
  text = whole
  for _ in range(rng.choice((1, 1, 2, 3, 8))):
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.choice((0, 0, 0, 1, 4, 20, len(text))))
    part = text[start:stop]
    repeated = (part or rng.choice(words)) * rng.choice((2, 2, 10, 1000))
    new = rng.choice(
      ("", rng.choice(words), rng.choice(words), rng.choice(words), repeated[:20_000])
    )
    text = text[:start] + new + text[stop:]
  return text[:60_000]
