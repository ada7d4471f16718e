from google.protobuf.message import Message

class _Values:
  def add(self, *, tag: str, simple_value: float) -> None: ...

class Summary(Message):
  value: _Values
