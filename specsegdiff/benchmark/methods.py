"""Methods by name, as installed packages register them, and the detector that they explain.

A package offers a method as an entry point of the group `GROUP`: a factory that takes a detector
and returns an `Explainer`. A method that asks no detector ignores it. In its ``pyproject.toml``::

    [project.entry-points."specsegdiff.explainers"]
    my-method = "my_package:MyMethod"       # MyMethod(detector)(wave) -> map

No method is known to this library by name: those in ``baselines`` are registered the same way.
"""

import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeAlias

from specsegdiff.errors import ConfigError, DependencyError
from specsegdiff.explanation import Explainer

GROUP = "specsegdiff.explainers"
"Group of the entry points."

Factory: TypeAlias = Callable[[Any], Explainer]
"What an entry point names: from a detector (`models.detector.Detector`) to a method."

CHECKOUT = Path(__file__).parents[2] / "pyproject.toml"
"Beside the package in a source checkout, which may not be installed at all; absent in a wheel."


def available() -> dict[str, EntryPoint]:
    """Entry points of all methods, by name.

    A source checkout's own table counts as well as what is installed, since metadata of an editable
    installation are as old as it is. Raises `ConfigError` where two packages register one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in [*_of_checkout(), *entry_points(group=GROUP)]:
        if found.setdefault(entry.name, entry).value != entry.value:
            raise ConfigError(
                f"two packages register the method {entry.name!r}, as {found[entry.name].value!r} "
                f"and {entry.value!r}; uninstall one, or install an editable checkout anew"
            )
    return dict(sorted(found.items()))


def load_methods(names: Sequence[str], detector: Any) -> dict[str, Explainer]:
    """Build methods by name for a detector, in the order of the names.

    Raises `ConfigError` on a name that no package registers, `DependencyError` where a method needs
    a package that is not installed, and what a factory raises.
    """
    there = available()
    if unknown := [name for name in names if name not in there]:
        raise ConfigError(
            f"no method {unknown[0]!r} is installed; there are {', '.join(there)}. "
            f"A package adds one as an entry point of the group {GROUP!r}"
        )
    return {name: _factory(there[name])(detector) for name in names}


def _factory(entry: EntryPoint) -> Factory:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"the method {entry.name!r} is registered as {entry.value!r}, which cannot be imported "
            f"({error}); install what it needs, or mend its entry point"
        ) from error


def _of_checkout() -> list[EntryPoint]:
    if not CHECKOUT.is_file():
        return []
    project = tomllib.loads(CHECKOUT.read_text("utf-8")).get("project", {})
    if project.get("name") != __name__.partition(".")[0]:
        return []
    table = project.get("entry-points", {}).get(GROUP, {})
    return [EntryPoint(name, value, GROUP) for name, value in table.items()]
