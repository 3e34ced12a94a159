"""A module that is called several times: its weights have one owner, and get the sum of all gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from flax import nnx

from hetjax.errors import GraphError
from hetjax.graph import input_ports, optional_ports, output_ports
from hetjax.models.stages import LayerCosts
from hetjax.stages.flat_state import Arrays


class Reused(nnx.Module):
    """Calls a module once for each use, on one mesh; a port "x" of it is "left_x" and "right_x" of uses left and right.

    The calls come one after the other in each program, and running state goes from one to the next. Each use has
    inputs and edges of its own, to and from any mesh. In pipeline stages all uses of a part run together.

    Args:
        module: a module as `hetjax.ModuleGraph` takes it.
        uses: names, two or more.

    Raises GraphError for fewer than two uses, or names that are no identifiers or not unique.
    """

    def __init__(self, module: nnx.Module, uses: Sequence[str]):
        self.uses = tuple(uses)
        if len(set(self.uses)) < max(len(self.uses), 2) or not all(use.isidentifier() for use in self.uses):
            raise GraphError(f"uses={uses!r}: give two or more names of letters and digits, each once")
        self.module = module

    def __call__(self, **inputs: object) -> Arrays:
        """Return the outputs of all uses."""
        found: dict[str, object] = {}
        for use in self.uses:
            given = {name: inputs[f"{use}_{name}"] for name in input_ports(self.module) if f"{use}_{name}" in inputs}
            outputs = self.module(**given)
            if not isinstance(outputs, Mapping):
                outputs = {"output": outputs}
            found |= {f"{use}_{name}": value for name, value in outputs.items()}
        return found

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Those of the module, once for each use."""
        return self._of_uses(input_ports(self.module))

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of the module, once for each use."""
        return self._of_uses(optional_ports(self.module))

    @property
    def output_ports(self) -> tuple[str, ...] | None:
        """Those of the module, once for each use; None where it does not say."""
        made = output_ports(self.module)
        return None if made is None else self._of_uses(made)

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """Those of the module, once for each use."""
        return self._by_use("port_dims")

    @property
    def input_ranges(self) -> dict[str, tuple[int, int]]:
        """Those of the module, once for each use."""
        return self._by_use("input_ranges")

    @property
    def counted_by(self) -> dict[str, str]:
        """Those of the module, once for each use."""
        found = getattr(self.module, "counted_by", {})
        return {f"{use}_{ids}": f"{use}_{weights}" for use in self.uses for ids, weights in found.items()}

    @property
    def independent_samples(self) -> bool:
        """What the module says."""
        return getattr(self.module, "independent_samples", False)

    @property
    def compares_samples(self) -> bool | str:
        """What the module says."""
        return getattr(self.module, "compares_samples", False)

    @property
    def layer_costs(self) -> LayerCosts:
        """Those of the module, where it has them."""
        return self.module.layer_costs

    @property
    def stage(self) -> Callable[..., Reused]:
        """What cuts the module, where it can be cut, with all uses of a part in one."""
        inner = self.module.stage
        return functools.wraps(inner)(lambda *place, **layers: Reused(inner(*place, **layers), self.uses))

    def end_of_step(self) -> None:
        """What the module does once a step."""
        if hasattr(self.module, "end_of_step"):
            self.module.end_of_step()

    def _of_uses(self, ports: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{use}_{port}" for use in self.uses for port in ports)

    def _by_use(self, attribute: str) -> dict[str, tuple]:
        found = getattr(self.module, attribute, {})
        return {f"{use}_{port}": value for use in self.uses for port, value in found.items()}
