from google.protobuf.message import Message

class SessionLog(Message):
  START: int
  def __init__(self, *, status: int) -> None: ...

class Event(Message):
  def __init__(self, *, wall_time: float, step: int, **what: Message | str) -> None: ...
