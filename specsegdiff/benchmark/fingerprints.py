"""What tells a detector or a method from others, so that no journal's rows are taken for theirs."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specsegdiff.hub import weights_hash

LONGEST = 300
"Characters of a fingerprint that is readable; of a longer one, the SHA-256 is taken."


def fingerprint(value: object) -> str:
    """What tells a detector or a method from others: its class, its weights and its settings.

    Settings are the fields of a dataclass; the public attributes of any other object, and of every
    part of a module, such as its ``config``; what a function has as defaults and from the functions
    around it; and the object of a bound method. Attributes that begin with an underscore are taken
    for caches, and code is not compared. A module is named by class and SHA-256 of its weights,
    with a sum of its settings behind.

    >>> from functools import partial
    >>> fingerprint(partial(max, key=abs))
    'functools.partial(builtins.max, (), {key: builtins.abs})'
    """
    if value is None or isinstance(value, str):
        return str(value)
    description = _Description()
    text = description.of(value)
    if isinstance(value, nn.Module):
        weights = description.weights[id(value)]
        return f"{type(value).__name__} {weights} {_digest(text.encode())[:12]}"
    if len(text) <= LONGEST:
        return text
    kind = value if isinstance(value, types.FunctionType | types.MethodType) else type(value)
    return f"{_name(kind)} {_digest(text.encode())}"


class _Description:
    """A text of an object that is the same in every process; one a fingerprint."""

    def __init__(self) -> None:
        self.inside: set[int] = set()
        self.modules: dict[int, str] = {}
        self.weights: dict[int, str] = {}

    def of(self, value: Any) -> str:
        """Text of any value; an object within itself is ``...``."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if isinstance(value, type | types.BuiltinFunctionType):
            return _name(value)
        if isinstance(value, PurePath | enum.Enum | torch.dtype | torch.device):
            return f"{type(value).__name__}({value})"
        if id(value) in self.inside:
            return "..."
        self.inside.add(id(value))
        try:
            return self._of_object(value)
        finally:
            self.inside.discard(id(value))

    def _of_object(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return self._of_array(value.detach().cpu())
        if isinstance(value, np.ndarray):
            return self._of_array(torch.from_numpy(np.atleast_1d(value).copy()))
        if isinstance(value, torch.Generator):
            return f"Generator({value.initial_seed()})"
        if isinstance(value, nn.Module):
            if id(value) not in self.modules:
                self.modules[id(value)] = self._of_module(value)
            return self.modules[id(value)]
        if isinstance(value, Mapping):
            return f"{{{', '.join(sorted(f'{_key(k)}: {self.of(v)}' for k, v in value.items()))}}}"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(self.of, value)))}}}"
        if isinstance(value, list | tuple):
            return f"({', '.join(map(self.of, value))})"
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return f"functools.partial({', '.join(map(self.of, parts))})"
        if isinstance(value, types.MethodType):
            return f"{self.of(value.__self__)}.{value.__name__}"
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        return f"{_name(type(value))}({self._of_attributes(_attributes(value).items())})"

    def _of_array(self, value: Tensor) -> str:
        content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"Tensor({tuple(value.shape)}, {value.dtype}, {_digest(content)[:12]})"

    def _of_module(self, module: nn.Module) -> str:
        parts = (
            f"{path}={_name(type(part))}({self._of_attributes(_attributes(part).items())})"
            for path, part in module.named_modules()
        )
        weights = self.weights[id(module)] = weights_hash(module)
        return f"{_name(type(module))} {weights} [{', '.join(parts)}]"

    def _of_function(self, function: types.FunctionType) -> str:
        kept: dict[str, Any] = dict(function.__kwdefaults__ or {})
        if function.__defaults__:
            kept["defaults"] = function.__defaults__
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            # one is empty until its variable is set
            with contextlib.suppress(ValueError):
                kept[name] = cell.cell_contents
        return _name(function) + (f"({self._of_attributes(kept.items())})" if kept else "")

    def _of_attributes(self, pairs: Iterable[tuple[str, Any]]) -> str:
        return ", ".join(f"{name}={self.of(value)}" for name, value in sorted(pairs))


def _attributes(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.compare]
        return {name: getattr(value, name) for name in names}
    slots = (getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
    listed = [name for own in slots for name in ((own,) if isinstance(own, str) else own)]
    found = {name: getattr(value, name) for name in listed if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    # whether it trains is no setting: methods and measurements evaluate
    return {
        name: member
        for name, member in found.items()
        if not name.startswith("_") and not (name == "training" and isinstance(value, nn.Module))
    }


def _key(key: object) -> str:
    return key if isinstance(key, str) else repr(key)


def _name(kind: type | Callable[..., Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
