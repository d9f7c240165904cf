"""Modules of libraries that are loaded when something in them is first used, and not with what imports them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def late(name: str, needed_by: Sequence[str] = ()) -> None:
    """Put off loading a module until something in it is asked for, or one of `needed_by` is imported.

    importlib.util.LazyLoader would not: it loads at any look, such as that of the next import statement at `__spec__`.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Late(name, needed_by))


def late_torch() -> None:
    """Do without what operators give on no device, a third of the import of torch; programs that are traced need it."""
    late("torch._meta_registrations", needed_by=("torch._dynamo",))


class _Module(ModuleType):
    """Becomes the module at the first look at what is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__["_late"].load()
        return getattr(self, name)


class _Late(MetaPathFinder, Loader):
    def __init__(self, name: str, needed_by: Sequence[str]) -> None:
        self._name, self._needed_by = name, needed_by
        self._loader: Loader | None = None
        self._module: ModuleType | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._needed_by:
            self.load()
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._name else None
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_late"], self._module = self, module

    def load(self) -> None:
        """Load it, if it was imported and is not loaded yet."""
        module, self._module = self._module, None
        if module is None or self._loader is None:
            return
        sys.meta_path.remove(self)
        del module.__dict__["_late"]
        module.__class__ = ModuleType
        self._loader.exec_module(module)
