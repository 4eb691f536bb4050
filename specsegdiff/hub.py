"""Save and load models: ``config.json`` beside ``model.safetensors``, never a pickle, never code
from a file."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import types
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from specsegdiff.errors import CheckpointError, ConfigError, OutputError

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

LONGEST_SHOWN = 200
"Characters of a model's name that a message repeats."


def save_model(model: nn.Module, folder: str | Path, *, half: bool = False) -> None:
    """Write a model's configuration and tensors to ``folder``; with ``half``, floating tensors as
    float16.

    Both files are written to temporary names and then renamed. Raises `OutputError` where the
    folder cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    config = {"class": type(model).__name__, "config": dataclasses.asdict(model.config)}  # type: ignore[call-overload]
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(
            {
                folder / WEIGHTS_NAME: save(tensors),
                folder / CONFIG_NAME: json.dumps(config, indent=2).encode() + b"\n",
            }
        )
    except OSError as error:
        raise OutputError(
            f"cannot write a model to {folder}: {error}; choose a writable folder"
        ) from error


def load_model(
    kind: type[Model], config_kind: type[Config], source: str | Path, *, revision: str | None = None
) -> Model:
    """Load a model of class ``kind`` from a folder or a Hub id, tensors in float32, in evaluation
    mode; its ``name`` is that of the folder or id.

    Raises `CheckpointError` where the checkpoint is missing, damaged, of another class, holds
    other tensors or ones that are not finite, and `ConfigError` where its configuration has
    unknown, missing or invalid fields.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = resolve(source, revision=revision)
    try:
        stored = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        blob = (folder / WEIGHTS_NAME).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no readable {CONFIG_NAME} and {WEIGHTS_NAME} ({error}); "
            "pass a folder that save_pretrained wrote"
        ) from error
    if not isinstance(stored, dict) or stored.get("class") != kind.__name__:
        came = stored.get("class") if isinstance(stored, dict) else type(stored).__name__
        raise CheckpointError(
            f"{folder} holds a {came!r}, expected {kind.__name__!r}; load it with its own class"
        )
    config = from_dict(config_kind, stored.get("config"), where=str(folder / CONFIG_NAME))
    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} is damaged ({error}); fetch or save it again"
        ) from error
    try:
        model = kind(config)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"{folder / CONFIG_NAME} describes a model that could not be built ({error}); "
            "restore the file that was saved with the weights"
        ) from error
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected
        or name not in tensors
        or expected[name].shape != tensors[name].shape
        or expected[name].is_floating_point() != tensors[name].is_floating_point()
    )
    if wrong:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} does not fit its {CONFIG_NAME}: {len(wrong)} tensors "
            f"are missing, unknown or of another shape or kind, first {wrong[0]!r}; "
            "restore the pair of files that was saved together"
        )
    lost = [name for name, value in tensors.items() if not value.isfinite().all()]
    if lost:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} holds NaN or infinity in {len(lost)} tensors, first "
            f"{lost[0]!r}: the run that made it diverged; take an earlier checkpoint"
        )
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()})
    model.name = Path(source).resolve().name  # type: ignore[assignment]  # no module: plain text
    return model.eval()


def kind_of(source: str | Path, *, what: str = "model") -> str:
    """Name of the class whose model a folder or a Hub id holds; raises a `CheckpointError` that
    says it holds no ``what``."""
    folder = resolve(source, revision=None)
    try:
        return str(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} holds no {what} ({type(error).__name__}: {error}); pass a folder that "
            "save_pretrained wrote"
        ) from error


class Stored(nn.Module):
    """A model that is its configuration and its tensors: a folder or a Hub repository holds it."""

    config_kind: ClassVar[type[Any]]
    "Class of its ``config``."

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Load from a folder or a Hugging Face Hub id that `save_pretrained` wrote; raises
        `CheckpointError` or `ConfigError`."""
        return load_model(cls, cls.config_kind, source, revision=revision)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of all tensors, as of now."""
        return weights_hash(self)

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write ``config.json`` and ``model.safetensors``; with ``half`` the tensors are stored as
        float16."""
        save_model(self, folder, half=half)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's tensors by name, for provenance.

    It would take a third of the time of a short clip, so each model's last one is kept, with CRC-32
    sums that tell whether its tensors are still the same.
    """
    tensors = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    sums = {name: zlib.crc32(tensor.tobytes()) for name, tensor in tensors.items()}
    known, found = _HASHES.get(model, ({}, ""))
    if not found or known != sums:
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.tobytes())
        found = digest.hexdigest()
        _HASHES[model] = sums, found
    return found


_HASHES: WeakKeyDictionary[nn.Module, tuple[dict[str, int], str]] = WeakKeyDictionary()
"Sums of each model's tensors when it was hashed, and the hash."


def from_dict(kind: type[Config], values: Any, *, where: str) -> Config:
    """Build a configuration dataclass from plain data, nested ones too; every field must be there,
    and no other.

    Raises `ConfigError` that names the field. Only classes named in annotations are built: a file
    names none.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: expected the fields of {kind.__name__}, got {type(values).__name__}"
        )
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields, key=str):
        raise ConfigError(f"{where}: {kind.__name__} has no field {unknown[0]!r}; remove it")
    if missing := sorted(fields - values.keys()):
        raise ConfigError(f"{where}: field {missing[0]!r} of {kind.__name__} is missing; add it")
    hints = typing.get_type_hints(kind)
    made = {
        name: _typed(hints[name], value, where=f"{where}: {name}") for name, value in values.items()
    }
    return kind(**made)


def without_format(values: Any, wanted: str, *, where: str) -> dict[str, Any]:
    """Plain data without the word that names its layout; raises `ConfigError` for another layout.

    >>> without_format({"format": "answer 1", "text": "no"}, "answer 1", where="answer.json")
    {'text': 'no'}
    """
    came = values.get("format") if isinstance(values, dict) else type(values).__name__
    if came != wanted:
        raise ConfigError(f"{where}: expected format {wanted!r}, got {came!r}")
    return {key: value for key, value in values.items() if key != "format"}


def _typed(hint: Any, value: Any, *, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(hint)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_typed(k, v, where=where) for k, v in zip(kinds, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        key, inner_kind = typing.get_args(hint)
        return {
            _typed(key, k, where=where): _typed(inner_kind, v, where=where)
            for k, v in value.items()
        }
    elif origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
    elif origin in (typing.Union, types.UnionType):
        choices = typing.get_args(hint)
        if value is None and type(None) in choices:
            return None
        exact = [
            kind
            for kind in choices
            if (kind in (bool, int, float, str) and type(value) is kind)
            or (typing.get_origin(kind) is tuple and isinstance(value, list | tuple))
        ]
        others = [k for k in choices if k is not type(None)]
        return _typed((exact or others)[0], value, where=where)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        # a whole number in a file may be too large for a float
        with contextlib.suppress(OverflowError):
            return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {hint}, got {value!r}")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file to a temporary name in its folder and rename it; nothing half-written stays
    behind."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files as `write_atomic` does, and replace none unless all could be written."""
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            temporaries[path] = Path(name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            # temporary files are private, a model is not
            temporaries[path].chmod(0o644)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def resolve(source: str | Path, *, revision: str | None) -> Path:
    """Folder of a model, fetched from the Hub where the source is an id; raises `CheckpointError`
    where there is none."""
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"expected a folder or a hub id 'owner/name', got {source!r} "
            f"of type {type(source).__name__}"
        )
    folder = Path(source)
    name = str(source)
    shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    try:
        if folder.is_dir():
            return folder
    except OSError as error:
        raise CheckpointError(
            f"cannot look for a folder {shown} ({error.strerror}); "
            "pass one that save_pretrained wrote, or a hub id 'owner/name'"
        ) from error
    if not isinstance(source, str) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no folder {shown}; pass one that save_pretrained wrote, or a hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME])
        )
    except HFValidationError as error:
        raise CheckpointError(
            f"{shown!r} is neither a folder here nor a valid hub id; pass a folder that "
            "save_pretrained wrote, or an id 'owner/name' of letters, digits, '-', '_' and '.'"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{shown!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); check the name and the connection, or pass a folder"
        ) from error
