"""Reading what the text of a compiled program says: products, arrays in memory, and what is sent between devices.

`program_text` takes a text apart, `calls` counts how often each part runs; the other files each read one thing.
"""

from hetjax.compilation.hlo.arrays import MadeArrays, largest_arrays, oversized
from hetjax.compilation.hlo.collective_operations import Collective, bytes_received, collectives
from hetjax.compilation.hlo.products import Product, Products, matrix_products
from hetjax.compilation.hlo.program_text import ProgramText, read_program
from hetjax.compilation.hlo.shapes import Shape

__all__ = [
    "Collective",
    "MadeArrays",
    "Product",
    "Products",
    "ProgramText",
    "Shape",
    "bytes_received",
    "collectives",
    "largest_arrays",
    "matrix_products",
    "oversized",
    "read_program",
]
