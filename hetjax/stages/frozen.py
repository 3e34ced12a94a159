"""Find the weights that are frozen, from names of modules and of their parts."""

from __future__ import annotations

from collections.abc import Collection

from hetjax.errors import ConfigError, GraphError
from hetjax.graph import ModuleGraph
from hetjax.stages.flat_state import flatten_module


def frozen_paths(
    graph: ModuleGraph, frozen: Collection[str] = (), trained: Collection[str] | None = None
) -> dict[str, frozenset[str]]:
    """Return the paths of each module's weights that do not train.

    A name is that of a module, "vision", or of a part of one by its path, "vision.projector" or "vision.layers.block".
    With `trained`, only what it names trains; of that, too, nothing that `frozen` names. Weights that are frozen
    by their own metadata, as those beside low-rank maps (`hetjax.models.lora`), do not train whatever is named.

    Raises ConfigError for a name that stands for no weights, GraphError where nothing is left to train.
    """
    for option, names in (("frozen", frozen), ("trained", trained)):
        if isinstance(names, str):
            raise ConfigError(f"{option}={names!r} is one string; give a collection of names, e.g. [{names!r}]")
    skeletons = {module: flatten_module(graph.abstract(module))[0] for module in graph.modules}
    weights = {module: skeleton.params for module, skeleton in skeletons.items()}
    named_trained = weights if trained is None else _named(weights, trained, "trained")
    named_frozen = _named(weights, frozen, "frozen")
    frozen_of = {
        module: (paths - named_trained[module]) | named_frozen[module] | skeletons[module].frozen
        for module, paths in weights.items()
    }
    if frozen_of == weights:
        raise GraphError(
            f"all modules of {', '.join(graph.modules)} are frozen or without weights (nnx.Param); "
            "leave at least one to train"
        )
    return frozen_of


def _named(weights: dict[str, frozenset[str]], names: Collection[str], option: str) -> dict[str, frozenset[str]]:
    """The paths of the weights that an option names, by module; `weights` has all paths."""
    found = dict.fromkeys(weights, frozenset())
    for name in names:
        module, _, part = name.partition(".")
        if module not in weights:
            raise ConfigError(
                f"{option} names module '{module}', which the graph lacks; its modules are {', '.join(weights)}"
            )
        part = part.replace(".", "/")
        paths = {path for path in weights[module] if not part or path == part or path.startswith(f"{part}/")}
        if part and not paths:
            parts = sorted({path.partition("/")[0] for path in weights[module]})
            raise ConfigError(
                f"{option} names {name}, but module '{module}' has no weights of that path; its parts are "
                f"{', '.join(parts)}"
            )
        found[module] |= paths
    return found
