"""The module graph: modules, and the edges between their ports."""

from __future__ import annotations

import dataclasses
import graphlib
import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
from flax import nnx

from hetjax.errors import GraphError

Builder = Callable[[nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True)
class Edge:
    """A tensor that goes from an output port to an input port, each written "module.port".

    With `gradient=False` nothing comes back: the source does not train through this edge. Integers need it.
    """

    source: str
    destination: str
    gradient: bool = True

    @property
    def name(self) -> str:
        """The edge in one word, for schedules and logs."""
        return f"{self.source}->{self.destination}"


@dataclasses.dataclass(frozen=True)
class Port:
    """One input or output of a module."""

    module: str
    name: str


class ModuleGraph:
    """The model as modules and edges: any directed graph without cycles that ends in a loss.

    A module is a Flax NNX module, or a function that builds one from `nnx.Rngs`. It is called with
    keyword arguments and returns a dict of arrays by port name (a bare array is the port "output").
    Inputs that no edge feeds come from the batch. The module without outgoing edges returns the port
    "loss": the sum of the loss over its tokens, which the trainer divides by the global token count.
    Beside it, it may return metrics: `hetjax.Sum`, or `hetjax.Mean` over tokens or samples.

    With `losses`, {module: weight}, several modules return a loss, each over a token count of its own: the loss of a
    step is the weighted sum of their means. All modules without outgoing edges are among them, and any others. The
    first of those that end the graph is `sink`, around which schedules are made: all others are its encoders.

    A module may say more by attributes or properties, each optional:
        input_ports: names of the inputs it takes (default: the parameters of `__call__`);
        optional_ports: those of them that may be left out (default: parameters with a default value);
        output_ports: names of the outputs that edges may leave from (default: any, and of several stages the last makes
            them all);
        port_dims: {port: dim names} where a port's dims are not ("batch", None, ...);
        input_ranges: {port: (least id, largest id)} of inputs that hold ids, checked on the host;
        counted_by: {port of ids: port of weights} where ids of weight 0 may be outside of their range;
        stage(index, count): the module's part for one pipeline stage; with a third parameter `layers` it is given
            how many layers each stage has. A part takes the inputs in its own `input_ports` and makes the outputs in
            its own `output_ports`: an edge goes straight to the stages whose layers read it, from the stage that makes
            it;
        layer_costs: `hetjax.models.stages.LayerCosts`, to balance stages by;
        independent_samples: True where no sample's outputs depend on another sample of the batch, so that gradients
            of the shards of `data` need to be summed only once a step (default: False);
        end_of_step(): called once a training step, after the last microbatch, on each part of a module that trains;
            it may set variables that are not `nnx.Param`, and read any.

    Layers that differ in training and inference, such as norms by statistics of the batch, ask
    `hetjax.models.mode.infers`.

    Attributes:
        order: the modules from inputs to losses, `sink` last.
        losses: the weight of the loss of each module that returns one.

    Raises GraphError for an edge to a module or input that does not exist, an input fed twice, a
    cycle, and more than one module at the end without `losses`.
    """

    def __init__(
        self,
        modules: Mapping[str, nnx.Module | Builder],
        edges: Sequence[Edge] = (),
        *,
        losses: Mapping[str, float] | None = None,
    ):
        if not modules:
            raise GraphError("a module graph needs at least one module")
        for name, module in modules.items():
            if not name.isidentifier():
                raise GraphError(f"module name {name!r} is no identifier; use letters, digits and underscores")
            if not (isinstance(module, nnx.Module) or callable(module)):
                raise GraphError(f"module '{name}' is {module!r}; give a Flax NNX module or a function that builds one")
        self.modules = dict(modules)
        self.edges = tuple(edges)
        self._abstract = {name: self._shapes(name) for name in self.modules}
        self._check_edges()
        order = self._topological_order()
        self.losses = self._checked_losses(losses, [name for name in order if not self.outputs(name)])
        self.sink = next(name for name in self.losses if not self.outputs(name))
        self.order = (*(name for name in order if name != self.sink), self.sink)

    def abstract(self, module: str) -> nnx.Module:
        """The module with shapes in place of weights."""
        return self._abstract[module]

    def is_concrete(self, module: str) -> bool:
        """Whether the module was given with weights, rather than as a builder."""
        return isinstance(self.modules[module], nnx.Module)

    def build(self, module: str, seed: int | jax.Array) -> nnx.Module:
        """The whole module: as given, or built from a seed. Its key depends on its name and the seed alone."""
        given = self.modules[module]
        if isinstance(given, nnx.Module):
            return given
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(module.encode()))
        with nnx.use_eager_sharding(False):
            return given(nnx.Rngs(key))

    def inputs(self, module: str) -> tuple[Edge, ...]:
        """Edges that end in a module."""
        return tuple(edge for edge in self.edges if port_of(edge.destination).module == module)

    def outputs(self, module: str) -> tuple[Edge, ...]:
        """Edges that start in a module."""
        return tuple(edge for edge in self.edges if port_of(edge.source).module == module)

    def _shapes(self, name: str) -> nnx.Module:
        given = self.modules[name]

        def make() -> nnx.Module:
            module = given if isinstance(given, nnx.Module) else given(nnx.Rngs(0))
            kind = type(module).__name__
            if not isinstance(module, nnx.Module):
                raise GraphError(f"module '{name}': its builder returned {kind}; return a Flax NNX module")
            if not callable(module):
                raise GraphError(
                    f"module '{name}': {kind} has no method __call__; add one that takes its inputs by name and "
                    "returns a dict of outputs"
                )
            return module

        with nnx.use_eager_sharding(False):
            return nnx.eval_shape(make)

    def _check_edges(self) -> None:
        fed: dict[str, Edge] = {}
        for edge in self.edges:
            for end in (edge.source, edge.destination):
                if port_of(end).module not in self.modules:
                    raise GraphError(
                        f"edge {edge.name}: there is no module '{port_of(end).module}'; "
                        f"the modules are {', '.join(self.modules)}"
                    )
            source = port_of(edge.source)
            made = output_ports(self.abstract(source.module))
            if made is not None and source.name not in made:
                raise GraphError(
                    f"edge {edge.name}: module '{source.module}' has no output '{source.name}'; its outputs are "
                    f"{', '.join(made) or '(none)'}, from the attribute output_ports"
                )
            module, port = dataclasses.astuple(port_of(edge.destination))
            known = input_ports(self.abstract(module))
            if port not in known:
                raise GraphError(
                    f"edge {edge.name}: module '{module}' has no input '{port}'; its inputs are "
                    f"{', '.join(known) or '(none)'}, from the attribute input_ports or the parameters of __call__"
                )
            if edge.destination in fed:
                raise GraphError(
                    f"edges {fed[edge.destination].name} and {edge.name} both feed one input; drop one of them"
                )
            fed[edge.destination] = edge

    def _topological_order(self) -> tuple[str, ...]:
        sorter = graphlib.TopologicalSorter({name: [] for name in self.modules})
        for edge in self.edges:
            sorter.add(port_of(edge.destination).module, port_of(edge.source).module)
        try:
            return tuple(sorter.static_order())
        except graphlib.CycleError as error:
            raise GraphError(f"modules {' -> '.join(reversed(error.args[1]))} form a cycle; drop one edge") from None

    def _checked_losses(self, losses: Mapping[str, float] | None, ends: Sequence[str]) -> dict[str, float]:
        """The weights of the losses, of which there is one for each module at the end."""
        if losses is None:
            if len(ends) > 1:
                raise GraphError(
                    f"modules {', '.join(ends)} have no outgoing edge, and only one module may end the graph and hold "
                    "the loss: connect the others with hetjax.Edge, or, where each returns a loss, weigh them: "
                    f"losses={ {name: 1.0 for name in ends} }"
                )
            return {ends[0]: 1.0}
        for name, weight in losses.items():
            if name not in self.modules:
                raise GraphError(
                    f"losses names module '{name}', which the graph lacks; its modules are {', '.join(self.modules)}"
                )
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and math.isfinite(weight) and weight):
                raise GraphError(f"losses gives module '{name}' the weight {weight!r}; give a number other than 0")
        for name in ends:
            if name not in losses:
                raise GraphError(
                    f"module '{name}' ends the graph, but losses={dict(losses)} has no weight for its loss; add one, "
                    f"or an edge from '{name}'"
                )
        return {name: float(weight) for name, weight in losses.items()}


def port_of(text: str) -> Port:
    """Parse "module.port". Raises GraphError."""
    module, dot, port = text.partition(".")
    if not (dot and module and port):
        raise GraphError(f'edge end {text!r} is not of the form "module.port", e.g. "vision.tokens"')
    return Port(module, port)


def input_ports(module: nnx.Module) -> tuple[str, ...]:
    """Names of the inputs that a module takes."""
    declared = getattr(module, "input_ports", None)
    return tuple(_parameters(module)) if declared is None else tuple(declared)


def optional_ports(module: nnx.Module) -> tuple[str, ...]:
    """Names of the inputs that may be left out."""
    declared = getattr(module, "optional_ports", None)
    if declared is not None:
        return tuple(declared)
    return tuple(name for name, parameter in _parameters(module).items() if parameter.default is not parameter.empty)


def output_ports(module: nnx.Module) -> tuple[str, ...] | None:
    """Names of the outputs that edges may leave from; None where the module does not say."""
    declared = getattr(module, "output_ports", None)
    return None if declared is None else tuple(declared)


def _parameters(module: nnx.Module) -> dict[str, inspect.Parameter]:
    """The named parameters of `__call__`, without self."""
    _, *parameters = inspect.signature(type(module).__call__).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
