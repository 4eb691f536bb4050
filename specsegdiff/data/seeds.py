"""Seeds: one check for all that is drawn here."""

import operator

from specsegdiff.errors import ConfigError


def check_seed(seed: object, *, bits: int | None = None) -> int:
    """Return ``seed`` as int; raise `ConfigError` unless it is a whole number of at least 0.

    ``bits`` limits its size, for generators that ignore all higher bits.

    >>> check_seed(7)
    7
    """
    try:
        whole = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        whole = -1
    if whole < 0 or (bits is not None and whole >= 2**bits):
        limit = "of at least 0" if bits is None else f"within 0..2**{bits} - 1"
        raise ConfigError(f"a seed must be an integer {limit}, got {seed!r}")
    return whole
