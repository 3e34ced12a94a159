"""hetjax model: the parts of a model and their parameters, without its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from flax import nnx
from rich.tree import Tree

from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.models.components import ComponentConfig, build_component
from hetjax.models.huggingface.families import find_family
from hetjax.models.presets import PRESETS, find_preset
from hetjax.tools.outcome import Outcome

Branch: TypeAlias = "dict[str, int | Branch]"
"""{part: count of its parameters, or a branch of its own parts}."""


def model(name: str, *, depth: int = 3) -> Outcome:
    """Show the components of a model with their parameters.

    Args:
        name: A model by name, such as nemotron_3_nano_omni, the folder of a Hugging Face checkpoint, or the YAML file
            of a run.
        depth: Levels of parts that are shown below a component; 0 for none.
    """
    if depth < 0:
        raise ConfigError(f"depth is {depth}; give 0 or more")
    parts = {module: parameter_tree(config) for module, config in components_of(name).items()}
    counts = {module: count(branch) for module, branch in parts.items()}
    numbers = {
        "name": name,
        "parameters": sum(counts.values()),
        "components": {
            module: {"parameters": counts[module], "parts": dict(_flat(branch, depth))}
            for module, branch in parts.items()
        },
    }
    tree = Tree(f"{name}: {numbers['parameters']:,} parameters")
    for module, branch in parts.items():
        _grow(tree.add(f"{module}: {counts[module]:,}"), branch, depth)
    return Outcome(numbers=numbers, shown=(tree,))


def components_of(name: str) -> Mapping[str, ComponentConfig]:
    """Return the config of each module of a model by name, of a checkpoint's folder, or of a run's YAML file.

    Raises ModelError for a name that no model has, and ConfigError for a folder or file that cannot be read.
    """
    folder = Path(name)
    if name in PRESETS or not folder.exists():
        return find_preset(name)
    if folder.suffix in (".yaml", ".yml"):
        return load_config(["--config", name])[0].model.components
    try:
        hf = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be read: {error}; give a checkpoint's folder") from None
    return find_family(hf).configs(hf)


def parameter_tree(config: ComponentConfig) -> Branch:
    """Count the parameters of a module by part: weights alone, no running statistics."""
    module = nnx.eval_shape(lambda: build_component(config, nnx.Rngs(0)))
    tree: Branch = {}
    for path, weight in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        *parts, last = map(str, path)
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[last] = math.prod(weight.get_value().shape)
    return tree


def count(branch: Branch | int) -> int:
    """Return the count of all parameters of a branch."""
    return branch if isinstance(branch, int) else sum(map(count, branch.values()))


def _flat(branch: Branch, depth: int, ahead: str = "") -> Iterator[tuple[str, int]]:
    for part, below in branch.items() if depth else ():
        yield f"{ahead}{part}", count(below)
        if isinstance(below, dict):
            yield from _flat(below, depth - 1, f"{ahead}{part}/")


def _grow(tree: Tree, branch: Branch, depth: int) -> None:
    for part, below in branch.items() if depth else ():
        twig = tree.add(f"{part}: {count(below):,}")
        if isinstance(below, dict):
            _grow(twig, below, depth - 1)
