"""A layout's mesh and splits, as whoever runs a model puts them in force."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from hetjax.meshes import AXES, Layout
from hetjax.models.parallel.layout_in_force import Splits


def splits_of(layout: Layout) -> Splits:
    """The splits of a layout of one stage, on the first devices."""
    devices = np.array(jax.devices()[: layout.device_count]).reshape(layout.mesh_shape)
    return Splits(
        mesh=Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES)),
        axes_of=layout.activation_axes,
        weight_axes_of=layout.compute_axes,
        gradient_axes_of=layout.optimizer_axes,
        context_attention=layout.context_attention,
    )


def constraint_of(layout: Layout):
    """The constraint of activations under a layout."""
    mesh = splits_of(layout).mesh

    def constraint(x, dims):
        spec = layout.activation_spec(dims, x.shape, name="activation")
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constraint
