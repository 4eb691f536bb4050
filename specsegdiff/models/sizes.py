"""How large a network a configuration may ask for."""

from specsegdiff.errors import ConfigError

LARGEST = 4096
"Most channels or blocks that a configuration may ask for; a damaged file asks for more."


def check_sizes(config: object, *names: str, least: int = 1) -> None:
    """Raise `ConfigError` unless these fields of ``config`` are integers from ``least`` to
    `LARGEST`."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= LARGEST:
            raise ConfigError(
                f"{type(config).__name__}.{name} must be an integer from {least} to {LARGEST}, "
                f"got {value!r}"
            )
