"""A jitted function on one mesh, for fixed shapes: traced, lowered, compiled, and run in the order of dispatch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, Sharding

from hetjax.compilation.compile_described import compile_described
from hetjax.compilation.dispatch_order import in_order
from hetjax.compilation.gpu_options import gpu_options
from hetjax.compilation.memory_use import MemoryUse, memory_use
from hetjax.meshes import is_described

ArrayTree = Any
"""Arrays in a pytree, or shapes in their place."""


class Program:
    """A function on a mesh, traced, lowered and compiled for fixed shapes, each when it is first asked for.

    Nothing is put on a device before the first call, so a program also compiles for devices that are only described
    (`jax.experimental.topologies`).

    Args:
        name: what it is called in reports, by stage where it belongs to one.
        function: the function to jit; positional arguments only.
        mesh: the mesh that all its arguments and results are on.
        arguments: for each argument a pytree of `jax.ShapeDtypeStruct`s with shardings, or values to take them from.
        donate: positions of the arguments whose memory a call reuses.
        out_shardings: shardings of the results, as for `jax.jit`; None leaves them to the compiler.
        compiler_options: as for `jax.jit`, beside those of `hetjax.compilation.gpu_options` on GPUs.
        nested_loops: whether loops over layers have such loops in them.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., ArrayTree],
        mesh: Mesh,
        *arguments: ArrayTree,
        donate: int | tuple[int, ...] = (),
        out_shardings: ArrayTree = None,
        compiler_options: dict[str, str | int | bool] | None = None,
        nested_loops: bool = False,
    ):
        self.name, self.mesh = name, mesh
        options = {**gpu_options(mesh.devices.flat[0], nested_loops=nested_loops), **(compiler_options or {})}
        self._jitted = jax.jit(
            _named(function, name), donate_argnums=donate, out_shardings=out_shardings, compiler_options=options or None
        )
        self._arguments = arguments
        self._run: Callable[..., ArrayTree] | None = None

    @functools.cached_property
    def traced(self) -> jax.stages.Traced:
        """The function as a jaxpr; `traced.out_info` are the shapes of its results."""
        return self._jitted.trace(*self._arguments)

    def trace(self) -> Program:
        """Trace now; raises what the function raises."""
        _ = self.traced
        return self

    def lower(self) -> jax.stages.Lowered:
        """The program as it is given to the compiler."""
        return self.traced.lower()

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The executable; of described devices that of an equal program on another mesh, if there is one."""
        lowered = self.lower()
        described = is_described(self.mesh.devices.flat[0])
        return compile_described(lowered, self.mesh) if described else lowered.compile()

    @property
    def is_compiled(self) -> bool:
        """Whether it has been compiled."""
        return "compiled" in self.__dict__

    def compile(self) -> Program:
        """Compile; harmless to call twice."""
        if self._run is None:
            self._run = in_order(self.compiled, self.mesh)
        return self

    @property
    def text(self) -> str:
        """The compiled program as text, which `hetjax.compilation.hlo` reads."""
        return self.compiled.as_text()

    @property
    def memory(self) -> MemoryUse:
        """Bytes that one device needs for a call."""
        return memory_use(self.compiled)

    @property
    def outputs(self) -> ArrayTree:
        """Shapes of the results, with the shardings that they were compiled with."""
        return jax.tree.map(
            lambda aval, sharding: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=self._on_mesh(sharding)),
            self.traced.out_info,
            self.compiled.output_shardings,
        )

    def _on_mesh(self, sharding: Sharding) -> Sharding:
        """Return a sharding of the executable, which may be that of another mesh, on this one."""
        if not isinstance(sharding, NamedSharding) or sharding.mesh == self.mesh:
            return sharding
        return NamedSharding(self.mesh, sharding.spec, memory_kind=sharding.memory_kind)

    def __call__(self, *arguments: ArrayTree) -> ArrayTree:
        """Dispatch a call; it compiles first where nobody has. Consumes the arguments that are donated."""
        if self._run is None:
            self.compile()
        return self._run(*arguments)


def _named(function: Callable[..., ArrayTree], name: str) -> Callable[..., ArrayTree]:
    """Return a function under the name that profiles and compiled texts show: "llm_forward" for "llm.0 forward".

    Without the numbers of stages, so that equal programs of a module have equal texts.
    """

    def named(*arguments: ArrayTree) -> ArrayTree:
        return function(*arguments)

    named.__name__ = named.__qualname__ = re.sub(r"\W+", "_", re.sub(r"\.\d+", "", name))
    return named
