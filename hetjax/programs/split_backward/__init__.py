"""Splits the backward of a stage into two programs: gradients of inputs first, gradients of weights later.

How a backward is split:

1. `jaxpr` reads the traced backward into a list of equations whose values are numbered. It is the only file that
   knows JAX's private parameters of primitives.
2. `equations` splits the list: an equation that a gradient of inputs depends on goes to the first part, everything
   else that a gradient of weights depends on to the second. Values that the second part reads of the first cross.
3. Two kinds of equation have a body, through which the split goes: `scan` (a loop over layers becomes two loops) and
   `shard_map` (a function of each device becomes two). Any other equation goes to one part whole.
4. `halves` returns both parts as functions, the second also in pieces that have nothing to do with each other.
5. `additions` adds gradients to those of earlier microbatches inside of the loops that make them, split or not.
6. `weight_program` compiles the second part with these additions.
"""

from hetjax.programs.split_backward.equations import Equations, Values, split
from hetjax.programs.split_backward.jaxpr import equations_of

__all__ = ["Equations", "Values", "equations_of", "split"]
