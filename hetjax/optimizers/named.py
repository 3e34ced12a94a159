"""Makes an optax optimizer from its name and arguments, as settings give them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from hetjax.errors import ConfigError

# Those that need more of a step than its gradients and its loss, or random numbers.
_NOT_THESE = frozenset({"lbfgs", "polyak_sgd", "noisy_sgd", "dpsgd", "sophia"})


def optimizer_names() -> tuple[str, ...]:
    """Return the optimizers that settings may name: the functions of optax and `optax.contrib` with a learning rate."""
    return tuple(sorted(_functions()))


def _functions() -> dict[str, Callable[..., optax.GradientTransformation]]:
    found = {}
    for home in (optax.contrib, optax):
        for name, function in vars(home).items():
            if inspect.isfunction(function) and not name.startswith(("_", "scale_by_")) and name not in _NOT_THESE:
                parameters = inspect.signature(function).parameters
                if "learning_rate" in parameters and next(iter(parameters)) == "learning_rate":
                    found[name] = function
    return found


def check_name(name: str) -> None:
    """Raise ConfigError for an optimizer that does not exist, with the likely one."""
    names = optimizer_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        likely = f"; did you mean '{near[0]}'?" if near else "."
        raise ConfigError(f"optimizer.name is '{name}'{likely} The optimizers are those of optax: {', '.join(names)}")


def takes(name: str, argument: str) -> bool:
    """Return whether an optimizer has an argument."""
    return argument in inspect.signature(_functions()[name]).parameters


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError for an argument that an optimizer does not take, with the likely one."""
    known = [each for each in inspect.signature(_functions()[name]).parameters if each != "learning_rate"]
    for argument in arguments:
        if argument == "learning_rate":
            raise ConfigError("optimizer.arguments has learning_rate; give it as optimizer.learning_rate")
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1, cutoff=0.5)
            likely = f"; did you mean '{near[0]}'?" if near else "."
            raise ConfigError(
                f"optimizer.arguments has '{argument}', which optax's {name} does not take{likely} Its arguments are "
                f"{', '.join(known)}"
            )


def make_named(name: str, rate: optax.Schedule, arguments: Mapping[str, Any]) -> optax.GradientTransformation:
    """Return an optimizer of optax by its name. Raises ConfigError where it refuses its arguments."""
    # A list in YAML stands for a tuple.
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        return _functions()[name](rate, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.name {name}: optax refuses its arguments {dict(arguments)}: {error}") from None
