"""Stands in for transformers, which takes most of its import to list what it has.

Importing transformers reads the sources of all its models, some 1,700 files, for a table of which
module defines which name: more than half of what the start of a worker costs. A worker needs three
of those names, and loads the modules that define them by themselves. Whoever asks the package for
any other name is given the whole of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

PACKAGE = "transformers"
MODELS = "transformers.models"
"""Its models, which are listed once more for this one's sake."""
_DEFINED_IN = {
    "AutoTokenizer": "models.auto.tokenization_auto",
    "PreTrainedTokenizer": "tokenization_python",
    "PreTrainedTokenizerFast": "tokenization_utils_tokenizers",
}
"""What mlx-lm takes from the package itself, and where transformers 5 defines it."""
_MAJOR = "5."
_replacing = threading.RLock()


class StandIn(ModuleType):
    """A package whose modules can be imported, and which is replaced when that is not enough."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        found = _defined(name) if self.__name__ == PACKAGE else None
        if found is None:
            found = getattr(whole(self.__name__), name)
        setattr(self, name, found)
        return found


class _LastFinder:
    """Asked for a module that nobody has found: transformers knows more, under older names."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name.startswith(f"{PACKAGE}.") and isinstance(sys.modules.get(PACKAGE), StandIn):
            whole(PACKAGE)  # it adds a finder of its own behind this one
        return None


def install() -> None:
    """From now on `import transformers` gives the stand-in, unless it may not fit."""
    if PACKAGE in sys.modules:
        return
    try:
        number = version(PACKAGE)
        spec = importlib.util.find_spec(PACKAGE)
    except (PackageNotFoundError, ImportError, ValueError):
        return
    if not number.startswith(_MAJOR) or spec is None or spec.submodule_search_locations is None:
        return
    _place(spec, number)
    sys.meta_path.append(_LastFinder())
    models = importlib.util.find_spec(MODELS)
    if models is not None:
        _place(models, number)


def whole(package: str) -> ModuleType:
    """The package itself, which replaces its stand-in."""
    with _replacing:
        found = sys.modules[package]
        if isinstance(found, StandIn):
            del sys.modules[package]
            try:
                importlib.import_module(package)
            except BaseException:
                sys.modules[package] = found
                raise
        return sys.modules[package]


def _defined(name: str) -> Any:
    """None where only the whole package can tell."""
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{_DEFINED_IN[name]}"), name)
    except (KeyError, ImportError, AttributeError):
        return None


def _place(spec: ModuleSpec, number: str) -> None:
    module = StandIn(spec.name)
    module.__file__ = spec.origin
    module.__path__ = list(spec.submodule_search_locations or ())
    module.__package__ = spec.name
    module.__spec__ = spec
    module.__version__ = number  # type: ignore[attr-defined]
    sys.modules[spec.name] = module
    parent, _, name = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], name, module)
