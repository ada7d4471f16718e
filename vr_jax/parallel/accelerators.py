"""Peak rates of accelerators by the name that JAX gives a device, for estimates of time."""

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """The peak rates of one device. flops: bfloat16 FLOP/s. bandwidth: of its memory, bytes/s."""

  flops: float
  bandwidth: float


# By a part of the name in lower case; the first one that fits counts.
# Sources: NVIDIA's data sheets, without sparsity; for TPUs those of launch/chips.py.
SPEEDS: Mapping[str, Speed] = {
  "b200": Speed(flops=2250e12, bandwidth=8e12),
  "h200": Speed(flops=989e12, bandwidth=4.8e12),
  "h100": Speed(flops=989e12, bandwidth=3.35e12),
  "a100": Speed(flops=312e12, bandwidth=2.04e12),
  "l40s": Speed(flops=362e12, bandwidth=864e9),
  "tpu v5 lite": Speed(flops=197e12, bandwidth=819e9),
  "tpu v5e": Speed(flops=197e12, bandwidth=819e9),
  "tpu v5": Speed(flops=459e12, bandwidth=2765e9),
  "tpu v6": Speed(flops=918e12, bandwidth=1638e9),
  "tpu7x": Speed(flops=2307e12 / 2, bandwidth=7380e9 / 2),
}


def find_speed(device_kind: str) -> Speed | None:
  """The peak rates of a device, by JAX's `device_kind`; None if they are not known."""
  name = device_kind.lower()
  return next((speed for part, speed in SPEEDS.items() if part in name), None)
