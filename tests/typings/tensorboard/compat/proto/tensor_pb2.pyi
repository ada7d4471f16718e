from google.protobuf.message import Message

class TensorProto(Message):
  def __init__(self, *, dtype: int, string_val: list[bytes]) -> None: ...
