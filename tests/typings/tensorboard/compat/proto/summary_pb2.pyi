from google.protobuf.message import Message
from tensorboard.compat.proto.tensor_pb2 import TensorProto

class SummaryMetadata(Message):
  class PluginData(Message):
    def __init__(self, *, plugin_name: str) -> None: ...

  def __init__(self, *, plugin_data: PluginData) -> None: ...

class _Values:
  def add(
    self,
    *,
    tag: str,
    simple_value: float = ...,
    metadata: SummaryMetadata = ...,
    tensor: TensorProto = ...,
    image: Summary.Image = ...,
  ) -> None: ...

class Summary(Message):
  class Image(Message):
    def __init__(
      self, *, height: int, width: int, colorspace: int, encoded_image_string: bytes
    ) -> None: ...

  value: _Values
