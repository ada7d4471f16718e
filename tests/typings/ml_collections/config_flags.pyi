from typing import Any

def DEFINE_config_file(*args: Any, **kwargs: Any) -> Any: ...  # noqa: N802
def DEFINE_config_dict(*args: Any, **kwargs: Any) -> Any: ...  # noqa: N802
def get_override_values(config_flag: Any) -> dict[str, Any]: ...
