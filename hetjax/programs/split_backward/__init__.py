"""A traced function as numbered equations, which can be cut in two and run.

`read` takes apart what `jax.make_jaxpr` returned, `steps` says what equations are and how they are cut, and
`loop` and `mapped` are the two kinds of step with a body, through which a cut goes. Everything else is one
equation and goes to one side. What is used of JAX's own format is named in `read`.
"""

from hetjax.programs.split_backward.equations import Equations, Values, cut
from hetjax.programs.split_backward.jaxpr import equations_of

__all__ = ["Equations", "Values", "cut", "equations_of"]
