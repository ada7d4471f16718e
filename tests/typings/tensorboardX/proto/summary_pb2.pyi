from typing import Any

from google.protobuf.message import Message

class Summary(Message):
  value: Any
