"""A compiled trainer of the parity problem."""

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer


def make_trainer(vision: Layout, llm: Layout, **options) -> Trainer:
    placement = Placement({"vision": vision, "llm": llm})
    trainer = Trainer(make_graph(), placement, optimizer=make_optimizer(), **{"microbatches": 2, **options})
    trainer.compile(make_batch())
    return trainer
