from typing import Any

def DEFINE_config_file(*args: Any, **kwargs: Any) -> Any: ...  # noqa: N802
