"""Load what a user's own file defines, by its import path, as settings name it: {class_path: my_file.Name}."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping

from hetjax.models.errors import ModelError


class OwnPart:
    """Settings {class_path, init_args}, checked; two are equal where they say the same. Raises ModelError."""

    def __init__(self, given: Mapping[str, object]):
        check_class_path(given, what="class_path")
        self.class_path: str = given["class_path"]
        self.init_args: dict[str, object] = dict(given.get("init_args") or {})

    def settings(self) -> dict[str, object]:
        """Return what a YAML says of it."""
        return {"class_path": self.class_path, "init_args": self.init_args}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.settings() == other.settings()

    def __hash__(self) -> int:
        return hash(self.class_path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings()})"


def load_class_path(path: str, *, what: str) -> Callable[..., object]:
    """Return the class or function that an import path names; files of the current directory are found, too.

    `what` opens the messages, such as "model.vision". Raises ModelError where there is none of that name; what the file
    itself raises while it is imported comes out as it is.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise ModelError(f"{what}: class_path is {path!r}; give the file and the name in it, such as my_file.MyEncoder")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # of an import inside of the user's file
        raise ModelError(
            f"{what}: class_path names {path}, and there is no module {error.name}; run in its folder, or add that to "
            "PYTHONPATH"
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ModelError(f"{what}: {module_name} ({module.__file__}) has no class or function {name}; it has {there}")
    return found


def call_class_path(given: Mapping[str, object], *arguments: object, what: str, **others: object) -> object:
    """Return what {class_path, init_args} makes, called with `arguments`, `init_args` and `others`.

    Raises ModelError for other keys, for a name that is not found, and for arguments that it does not take.
    """
    made, named = _loaded(given, what)
    try:
        # A metaclass, as that of NNX modules, hides what `__init__` takes.
        called, itself = (made.__init__, (None,)) if inspect.isclass(made) else (made, ())
        inspect.signature(called).bind(*itself, *arguments, **{**named, **others})
    except TypeError as error:
        raise ModelError(f"{what}: {given['class_path']} does not take these init_args: {error}") from None
    return made(*arguments, **{**named, **others})


def function_of(given: Mapping[str, object], *, what: str) -> Callable[..., object]:
    """Return the function that {class_path, init_args} stands for: an object of a class, or a function itself.

    An object is made with `init_args`, and a function is called with them beside its other arguments. Raises ModelError
    as `call_class_path`, and for objects that cannot be called.
    """
    made, named = _loaded(given, what)
    if not inspect.isclass(made):
        return functools.partial(made, **named)
    found = call_class_path(given, what=what)
    if not callable(found):
        raise ModelError(f"{what}: objects of {given['class_path']} cannot be called; give the class a method __call__")
    return found


def _loaded(given: Mapping[str, object], what: str) -> tuple[Callable[..., object], dict[str, object]]:
    """(what a class_path names, its init_args)."""
    check_class_path(given, what=what)
    return load_class_path(given["class_path"], what=what), dict(given.get("init_args") or {})


def check_class_path(given: object, *, what: str) -> None:
    """Raise ModelError unless settings are {class_path} or {class_path, init_args}."""
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise ModelError(f"{what} is {given!r}; give {{class_path: my_file.MyClass, init_args: {{...}}}}")
    if unknown := sorted(map(str, given.keys() - {"class_path", "init_args"})):
        raise ModelError(f"{what} has {unknown[0]} beside class_path; give what the class takes in init_args")
    if not isinstance(given.get("init_args") or {}, Mapping):
        raise ModelError(f"{what}.init_args is {given['init_args']!r}; give arguments by name")
