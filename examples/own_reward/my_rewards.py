"""A reward of one's own: a number for each reply."""


def brevity(replies, examples):
  """1 for an empty reply, less the longer it is."""
  return [1 / (1 + len(reply) / 100) for reply in replies]


def in_words(replies, examples):
  """1 where a reply has a word that the annotation's own field `must_say` lists."""
  return [
    float(any(word in reply for word in example.extra.get("must_say", ())))
    for reply, example in zip(replies, examples, strict=True)
  ]
