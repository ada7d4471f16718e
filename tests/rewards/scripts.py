"""Sentences in languages of many scripts, for tests of what their words are worth."""

import unicodedata

import tokenizers

SENTENCES = {
  "English": ("The red circle moves to the left.", "It turns blue after 3 seconds!"),
  "French": ("Le café à côté s’ouvre à 8 heures.", "Où va l’élève ? Là-bas."),
  "Chinese": ("红色的圆向左移动。", "它在3秒后变成蓝色！"),
  "Japanese": ("赤い円が左に動く。", "そのボールは青くなった。"),
  "Russian": ("Красный круг движется влево.", "Он становится синим через 3 секунды!"),
  "Arabic": ("الدائرة الحمراء تتحرك إلى اليسار.", "تصبح زرقاء بعد 3 ثوان!"),
  "Hindi": ("लाल गोला बाईं ओर जाता है।", "वह 3 सेकंड बाद नीला हो जाता है।"),
  "Thai": ("วงกลมสีแดงเลื่อนไปทางซ้าย", "มันเปลี่ยนเป็นสีน้ำเงินหลังจาก 3 วินาที"),
  "Korean": ("빨간 원이 왼쪽으로 움직인다.", "3초 후에 파란색이 된다!"),
  "Greek": ("Ο κόκκινος κύκλος κινείται αριστερά.", "Γίνεται μπλε σε 3 δευτερόλεπτα."),
}


class BertWords:
  """BERT's words without punctuation, as a tokenizer of rouge-score.

  Chinese is split into characters, all else at white space and punctuation.
  """

  def __init__(self):
    self._lower = tokenizers.normalizers.BertNormalizer(strip_accents=False)
    self._split = tokenizers.pre_tokenizers.BertPreTokenizer()

  def tokenize(self, text: str) -> list[str]:
    """The words of a text."""
    pieces = self._split.pre_tokenize_str(self._lower.normalize_str(text))
    words = [unicodedata.normalize("NFKC", piece) for piece, _ in pieces]
    return [word for word in words if any(map(str.isalnum, word))]
