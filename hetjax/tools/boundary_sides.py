"""Read one side of a boundary as a command line writes it, and its tiling, without any device."""

from __future__ import annotations

import dataclasses

from hetjax.boundary.tiling import Tiling
from hetjax.errors import BoundaryError
from hetjax.meshes import AXES, Layout, PlacementError, parse_devices

EXAMPLE = "data=4,tensor=2@0-7:batch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a boundary.

    Attributes:
        layout: degrees and devices of its mesh.
        dims: name of each dim of the array, None for one that is not split.
    """

    layout: Layout
    dims: tuple[str | None, ...]

    def tiling(self, shape: tuple[int, ...], *, name: str = "side") -> Tiling:
        """Return how it tiles an array of this shape; dims beyond those named are not split."""
        if len(self.dims) > len(shape):
            raise BoundaryError(
                f"{name} names {len(self.dims)} dims ({', '.join(map(str, self.dims))}), but the shape {shape} has "
                f"{len(shape)}; name each dim of the array once"
            )
        dims = (*self.dims, *[None] * (len(shape) - len(self.dims)))
        return tiling_of_layout(self.layout, dims, shape, name=name)


def tiling_of_layout(layout: Layout, dims: tuple[str | None, ...], shape: tuple[int, ...], *, name: str) -> Tiling:
    """Return the tiling of an activation whose dims carry these names, on a layout of one stage.

    Equals `tiling_of` of the sharding that such a layout gives on the devices with these numbers; devices="all"
    means the first ones. Raises PlacementError, with `name`, where degrees, devices, dims and shape do not fit.
    """
    layout.validate(name)
    spec = layout.activation_spec(dims, shape, name=name)
    devices = parse_devices(layout.devices, module=name)
    return Tiling(
        axes=tuple(zip(AXES, layout.mesh_shape, strict=True)),
        devices=devices or tuple(range(layout.device_count)),
        spec=tuple((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec),
    )


def parse_side(text: str, *, name: str = "side") -> Side:
    """Read `degrees@devices:dims`, e.g. "data=4,tensor=2@0-7:batch,seq", "@0" for one device.

    Degrees are `axis=number` over the axes of a mesh; devices are written as in a layout; dims are the names
    of the array's dims in order, and ride on axes as those of activations do in a layout. A dim may also be
    called by the axis that splits it ("tensor"), and is not split where its name is empty or left out.

    Raises BoundaryError or PlacementError with `name` in front for a side that makes no sense.
    """
    degrees, at, rest = text.partition("@")
    devices, _, dims = rest.partition(":")
    if not at or not devices.strip():
        raise BoundaryError(f"{name}: '{text}' names no devices; write degrees@devices:dims, e.g. {EXAMPLE}")
    layout = Layout(devices=devices.strip(), rules={axis: axis for axis in AXES}, **_degrees(degrees, name))
    try:
        layout.validate(name)
    except PlacementError as error:
        raise BoundaryError(str(error).replace(f"module '{name}'", name)) from None
    names = tuple(dim.strip() or None for dim in dims.split(",")) if dims.strip() else ()
    for dim in names:
        _check_dim(dim, name)
    return Side(layout=layout, dims=names)


def _degrees(text: str, name: str) -> dict[str, int]:
    degrees: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, number = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise BoundaryError(f"{name}: '{part}' gives no degree of an axis; the axes are {', '.join(AXES)}")
        if axis in degrees:
            raise BoundaryError(f"{name}: axis '{axis}' has two degrees in '{text}'; give it one")
        if not number.isdecimal() or int(number) < 1:
            raise BoundaryError(f"{name}: '{part}' is no degree; write {axis}= and a whole number of 1 or more")
        degrees[axis] = int(number)
    return degrees


def _check_dim(dim: str | None, name: str) -> None:
    """Raise BoundaryError for a name that no layout knows: a slip would quietly mean a dim that is not split."""
    everything = Layout(rules={axis: axis for axis in AXES}, **dict.fromkeys(AXES, 2))
    specs = everything.activation_spec, everything.weight_spec
    if dim is not None and not any(spec([dim], [2 ** len(AXES)], name=name)[0] for spec in specs):
        raise BoundaryError(
            f"{name}: no axis splits a dim called '{dim}'; name it batch, seq, heads, mlp, vocab or experts, or after "
            f"one of the axes {', '.join(AXES)}, or leave its name empty if it is not split"
        )
