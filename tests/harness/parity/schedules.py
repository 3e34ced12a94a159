"""Layouts whose stages are uneven or several on a device, and the schedules that are tried on them by default."""

from hetjax.meshes import Layout

LAYERS = 4
VISION, COLOCATED = Layout(devices="0-3", data=4), Layout(data=8)
# {name: (vision layout, llm layout)}.
LAYOUTS = {
    "disjoint": (VISION, Layout(devices="4-7", stage=2, tensor=2)),
    "disjoint-uneven": (Layout(devices="0-1", data=2, stage=1), Layout(devices="2-5", stage=4, layers=[1, 1, 1, 1])),
    "disjoint-chunks": (VISION, Layout(devices="4-7", stage=2, data=2, chunks=2)),
    "colocated-stages": (COLOCATED, Layout(stage=2, data=2, tensor=2, layers=[1, 3])),
    "colocated-stage4": (COLOCATED, Layout(stage=4, tensor=2)),
    "colocated-chunks": (COLOCATED, Layout(stage=2, tensor=2, context=2, chunks=2)),
    "both-in-stages": (
        Layout(devices="0-3", stage=2, tensor=2),
        Layout(devices="2-7", stage=3, data=2, layers="balanced"),
    ),
}
QUICK = [
    ("disjoint-chunks", "interleaved_1f1b", 4),
    ("colocated-stages", "bubble_fill", 2),
    ("colocated-chunks", "zero_bubble", 2),
    ("both-in-stages", "zero_bubble", 4),
    ("disjoint", "zero_bubble", 4),
]
