"""Writes rewards.json with the reference packages of the extra parity.

It has rouge-score's stems and scores, also of other scripts with BERT's words; dtaidistance's
distances; and numbers in words as Whisper's normalizer of transformers reads them.

python -m tests.golden.rewards
"""

import json
from pathlib import Path
import random

from dtaidistance import dtw
from nltk.stem import porter
import numpy as np
from rouge_score import rouge_scorer
from transformers.models.whisper import english_normalizer

from tests.rewards import number_words, scripts

SUFFIXES = [
  "ational",
  "tional",
  "enci",
  "anci",
  "izer",
  "bli",
  "alli",
  "entli",
  "eli",
  "ousli",
  "ization",
  "ation",
  "ator",
  "alism",
  "iveness",
  "fulness",
  "ousness",
  "aliti",
  "iviti",
  "biliti",
  "fulli",
  "logi",
  "icate",
  "ative",
  "alize",
  "iciti",
  "ical",
  "ful",
  "ness",
  "al",
  "ance",
  "ence",
  "er",
  "ic",
  "able",
  "ible",
  "ant",
  "ement",
  "ment",
  "ent",
  "ion",
  "sion",
  "tion",
  "ou",
  "ism",
  "ate",
  "iti",
  "ous",
  "ive",
  "ize",
  "e",
  "ll",
  "ed",
  "ing",
  "eed",
  "ies",
  "ied",
  "sses",
  "s",
  "ss",
  "y",
  "at",
  "bl",
  "iz",
  "ying",
]
IRREGULAR = [
  "sky",
  "skies",
  "dying",
  "lying",
  "tying",
  "news",
  "innings",
  "inning",
  "outings",
  "outing",
  "cannings",
  "canning",
  "howe",
  "proceed",
  "exceed",
  "succeed",
]
VOCABULARY = [
  "the",
  "a",
  "circle",
  "circles",
  "square",
  "moves",
  "moving",
  "moved",
  "left",
  "right",
  "red",
  "redder",
  "colour",
  "Happily,",
  "relational",
  "7",
  "12",
  "2s",
  "at",
  "box.",
  "opening",
  "opened",
  "BIG",
  "grows",
  "growing",
  "vanishes",
  "x",
]


def made_up_word(rng):
  """Letters that stemming rules care about, then up to three suffixes."""
  root = "".join(rng.choice("aeiouyybcdflstwxz0") for _ in range(rng.randint(1, 5)))
  return root + "".join(rng.choice(SUFFIXES) for _ in range(rng.randint(0, 3)))


def text(rng):
  return " ".join(rng.choice(VOCABULARY) for _ in range(rng.choice((0, 1, 2, 5, 12, 31, 33, 66))))


def rouge_f1(a, b, tokenizer=None):
  kinds = ["rouge1", "rouge2", "rougeL"]
  scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True, tokenizer=tokenizer)
  return [score.fmeasure for score in scorer.score(a, b).values()]


def script_pairs(rng):
  """Pairs of random texts from the words of a language."""
  languages = ("Chinese", "Russian", "Arabic", "Hindi", "Korean", "Greek", "French")
  for language in languages * 6:
    tokens = scripts.BertWords().tokenize(" ".join(scripts.SENTENCES[language]))
    yield [" ".join(rng.choices(tokens, k=rng.choice((1, 2, 5, 12, 33)))) for _ in range(2)]


def warping(a, b):
  """Total cost of |a - b| along the whole of both series, and of a along any part of b."""
  whole = dtw.distance_fast(a, b, inner_dist="euclidean")
  part = dtw.distance_fast(a, b, inner_dist="euclidean", psi=(0, 0, len(b), len(b)))
  return [whole, part]


def main():
  rng = random.Random(0)
  words = [made_up_word(rng) for _ in range(1500)] + IRREGULAR
  stems = [[word, porter.PorterStemmer().stem(word)] for word in words]
  pairs = [(text(rng), text(rng)) for _ in range(60)]
  rouge = [[a, b, rouge_f1(a, b)] for a, b in pairs]
  series = np.random.default_rng(0)
  warped = []
  for _ in range(40):
    a, b = (series.random(series.integers(1, 12)).round(3) for _ in range(2))
    warped.append([a.tolist(), b.tolist(), warping(a, b)])
  other_scripts = [[a, b, rouge_f1(a, b, scripts.BertWords())] for a, b in script_pairs(rng)]
  normalizer = english_normalizer.EnglishNumberNormalizer()
  in_words = [number_words.write(rng) for _ in range(200)]
  numbers = [[text, normalizer(text).rstrip("%")] for text in in_words]
  parts = {"stems": stems, "rouge": rouge, "dtw": warped}
  parts |= {"rouge_of_other_scripts": other_scripts, "numbers": numbers}
  blocks = [
    f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in parts.items()
  ]
  Path(__file__).with_suffix(".json").write_text("{\n" + ",\n".join(blocks) + "\n}\n")


if __name__ == "__main__":
  main()
