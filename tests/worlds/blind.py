"""Text-only predictors: how well can an answer be guessed without seeing a frame?"""

import collections
import re

import numpy as np


def template(question):
  """The question's text with its values masked, so that questions of one template are equal."""
  text = question.text
  for word in {question.value, question.plan.asked[0][0]} - {""}:
    text = text.replace(word, "_")
  return text


def majority(train, test):
  """For each template, the answer most often right in training."""
  counts = collections.defaultdict(collections.Counter)
  for question in train:
    counts[template(question)][question.answer] += 1
  hits = []
  for question in test:
    seen = counts[template(question)]
    hits.append(max(question.choices, key=lambda answer: seen[answer]) == question.answer)
  return np.array(hits)


def naive_bayes(train, test):
  """Words of the question and of the options, with their letter, as evidence for the answer."""
  prior, words = collections.Counter(), collections.defaultdict(collections.Counter)
  for question in train:
    prior[question.answer] += 1
    words[question.answer].update(_words(question))
  return np.array([_most_likely(question, prior, words) == question.answer for question in test])


def option_scores(train, test):
  """Logistic regression: how often an option text was right, given the question's words.

  Features are the option's text, its letter, and each pair of question word and option text. The
  weights are fitted by gradient descent. Without options, every choice is scored as an option.
  """
  index: dict[str, int] = {}
  data = [[_features(question, answer, index) for answer in question.choices] for question in train]
  right = [question.choices.index(question.answer) for question in train]
  weights = np.zeros(len(index))
  for epoch in range(3):
    for rows, answer in zip(data, right, strict=True):
      scores = np.array([weights[row].sum() for row in rows])
      slopes = np.exp(scores - scores.max())
      slopes /= slopes.sum()
      slopes[answer] -= 1
      for row, slope in zip(rows, slopes, strict=True):
        weights[row] -= 0.1 / (1 + epoch) * slope
  hits = []
  for question in test:
    rows = [_features(question, answer, index, grow=False) for answer in question.choices]
    best = int(np.argmax([weights[row].sum() for row in rows]))
    hits.append(question.choices[best] == question.answer)
  return np.array(hits)


def margin(hits, questions):
  """How far accuracy is above chance, in units of half the width of chance's 99 % interval."""
  chance = np.array([1 / len(question.choices) for question in questions])
  half = 2.576 * np.sqrt((chance * (1 - chance)).sum()) / len(chance)
  return (hits.mean() - chance.mean()) / half


def _words(question):
  return [*re.findall(r"\w+", question.text.lower()), *question.options]


def _most_likely(question, prior, words):
  def score(answer):
    counts, total = words[answer], words[answer].total() + 1000
    return np.log(prior[answer] + 1) + sum(
      np.log((counts[word] + 1) / total) for word in _words(question)
    )

  return max(question.choices, key=score)


def _features(question, answer, index, *, grow=True):
  text = answer
  if question.options:
    text = question.options["ABCD".index(answer)][3:]
  names = [f"={text}", f"@{answer}"]
  names += [f"{word}={text}" for word in re.findall(r"\w+", question.text.lower())]
  if grow:
    return [index.setdefault(name, len(index)) for name in names]
  return [index[name] for name in names if name in index]
