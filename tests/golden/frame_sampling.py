"""Writes frame_sampling.json: the frame indices of PyTorch's linspace and round (extra parity).

python tests/golden/frame_sampling.py
"""

import json
from pathlib import Path

import torch


def main():
  cases = []
  for first in (0, 7, 1001):
    for total in (2, 9, 16, 31, 64, 100, 257):
      for count in (2, 4, 6, 8, 14, 16, 32, 62):
        if count <= total:
          last = first + total - 1
          indices = torch.linspace(first, last, count).round().long().tolist()
          cases.append({"first": first, "last": last, "indices": indices})
  lines = ",\n".join(json.dumps(case) for case in cases)
  Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
  main()
