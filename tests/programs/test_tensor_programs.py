"""What the whole programs of a language model and an encoder send where `tensor` splits them."""

from collections import Counter

import pytest

from hetjax import Trainer
from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout, Placement
from tests.harness.compiled_trainer import compile_some
from tests.harness.parity import problem

# Bytes of one microbatch, float32: rows of the residual stream, one number a row, tokens of images.
SAMPLES = problem.SAMPLES // 2
ROWS = SAMPLES * problem.ROWS * problem.LLM.width * 4
NUMBERS = SAMPLES * problem.ROWS * 4
PATCHES = SAMPLES * 2 * 4 * problem.VISION.width * 4
TOKENS = SAMPLES * 2 * 4 * problem.LLM.width * 4


@pytest.fixture(scope="module", params=[True, False], ids=["sequence parallel", "tensor alone"])
def programs(request):
    layout = Layout(devices="0-1", tensor=2, sequence_parallel=request.param)
    trainer = Trainer(
        problem.make_graph(),
        Placement({"vision": layout, "llm": layout}),
        optimizer=problem.make_optimizer(),
        microbatches=2,
    )
    return request.param, compile_some(trainer, problem.make_batch(), programs=["vision", "llm"]).programs


def moved(text: str) -> Counter:
    """{(kind, bytes of the result): how many}; the compiler may sum several arrays in one operation."""
    return Counter((each.kind, each.result_bytes) for each in collectives(text))


def test_the_language_model_sums_numbers_of_the_loss_and_never_gathers_logits(programs):
    sequence_parallel, of_stage = programs
    found = moved(of_stage["llm"].programs["forward"].text)
    # Largest logit; sum of exponentials and the label's logit together.
    loss = Counter({("all-reduce", NUMBERS): 1, ("all-reduce", 2 * NUMBERS): 1})
    if sequence_parallel:
        # The table's rows and two sums of a layer; two gathers of a layer and one for the head.
        assert found == loss + Counter({("reduce-scatter", ROWS // 2): 3, ("all-gather", ROWS): 3})
    else:
        assert found == loss + Counter({("all-reduce", ROWS): 3})


def test_its_backward_gathers_rows_and_no_logits(programs):
    sequence_parallel, of_stage = programs
    found = moved(of_stage["llm"].programs["backward"].text)
    # The logarithm of the sum of exponentials is kept: nothing is sent for the loss.
    assert not found["all-reduce", NUMBERS]
    if sequence_parallel:
        # Six in a layer, two of the head, and the gradient for the table's rows.
        assert found["all-gather", ROWS] == 4 + 1 + 1
        assert found["reduce-scatter", ROWS // 2] == 2 + 1
        # Gradients of norm scales, in a layer two and at the end one beside those of image tokens.
        scale = problem.LLM.width * 4
        assert found["all-reduce", 2 * scale] == found["all-reduce", TOKENS + scale] == 1
    else:
        assert found == Counter({("all-reduce", ROWS): 3})


def test_the_encoder_hands_out_whole_tokens_by_one_sum(programs):
    sequence_parallel, of_stage = programs
    found = moved(of_stage["vision"].programs["forward"].text)
    tokens = Counter({("all-reduce", TOKENS): 1})
    if sequence_parallel:
        assert found == tokens + Counter({("all-gather", PATCHES): 3, ("reduce-scatter", PATCHES // 2): 2})
    else:
        assert found == tokens + Counter({("all-reduce", PATCHES): 2})
