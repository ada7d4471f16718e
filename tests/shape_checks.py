"""The type checker that the tests put on every function of the package."""

import beartype

# PEP 484: where a float is asked for, an int will do. beartype alone would refuse it.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
