"""Every error the library raises on bad input: what came, what was expected, what to do."""


class SpecSegDiffError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all."""


class AudioError(SpecSegDiffError, ValueError):
    """A recording that cannot be read or used: missing, truncated, empty, NaN, complex, no rate."""


class ShapeError(SpecSegDiffError, ValueError):
    """A tensor whose shape or type does not fit its contract."""


class PairError(SpecSegDiffError, ValueError):
    """Two recordings that are not a real/vocoded pair: unequal rates, lengths or content."""


class CorpusError(SpecSegDiffError, ValueError):
    """A corpus whose files or lists are not laid out as its loader expects."""


class ConfigError(SpecSegDiffError, ValueError):
    """A setting outside its domain, or a configuration file with unknown or missing fields."""


class CheckpointError(SpecSegDiffError, ValueError):
    """A checkpoint of another class, with other tensors, or damaged."""


class OutputError(SpecSegDiffError, OSError):
    """A result that cannot be written where it was asked for."""


class DependencyError(SpecSegDiffError, ImportError):
    """An optional package or program that this call needs and that is not installed."""


class WorkerError(SpecSegDiffError, RuntimeError):
    """Worker processes that die or fail whatever the file."""
