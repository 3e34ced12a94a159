"""The whole omni model beside transformers: logits, loss, the gradient of every weight, and answers.

In float64 the reference runs with all its casts to float32 taken for casts to float64 (see `wide`): norms, softmax and
router of the language model, norms of the projectors, and the interpolation of positions would be float32 otherwise.
"""

import dataclasses

import numpy as np
import optax
import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from tests.harness.huggingface.omni_cases import (
    WHOLE,
    Case,
    hf_config,
    logits,
    loss_and_gradients,
    make_inputs,
    our_batch,
    our_modules,
)
from tests.harness.parity.oracle import relative_error

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.harness.transformers import omni_reference as reference

pytestmark = pytest.mark.live

FRAME = 160
CASES = {
    "image and clip": Case(grids=((4, 6),), clips=(37 * FRAME,)),
    "images of several sizes": Case(grids=((4, 6), (2, 2), (8, 6), (2, 10)), words=5),
    "video": Case(tubelets=3),
    "pruned video": Case(tubelets=5, rate=0.6, words=9),
    "image and pruned video": Case(grids=((2, 4),), tubelets=5, rate=0.5, clips=(19 * FRAME + 3,)),
    "odd lengths": Case(grids=((2, 6),), clips=(37 * FRAME + 77, 9 * FRAME + 1, 50 * FRAME + 159), words=11),
    "frames by eights": Case(clips=(64 * FRAME,), words=4),
    "everything": WHOLE,
}
# Of logits and loss, and of gradients, relative to the largest of each.
TOLERANCES = {"float32": (2e-5, 1e-4), "float64": (1e-9, 1e-9)}


def say(kind, error):
    print(f"{kind}: {error:.1e}")
    return error


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_transformers(name, dtype, request):
    wide = dtype == "float64"
    if wide:
        request.getfixturevalue("float64")
    case, hf, (tolerance, of_gradients) = CASES[name], hf_config(), TOLERANCES[dtype]
    given = make_inputs(case, np.dtype(dtype).type)
    with reference.width(wide):
        model = reference.build(hf, wide=wide)
        want = reference.run(model, case, given)
        weights = reference.tensors(model)
    assert str(want["logits"].dtype) == dtype
    assert (len(want["rows"]) < len(given["tokens"])) == bool(case.rate)
    modules = our_modules(hf, weights, case.rate)
    batch = our_batch(modules, given)
    assert say("logits", relative_error(logits(modules, batch, want["rows"]), want["logits"])) < tolerance
    loss, gradients = loss_and_gradients(modules, batch)
    assert str(loss.dtype) == dtype
    assert say("loss", relative_error(loss, want["loss"])) < tolerance
    errors = {name: relative_error(each, want["gradients"][name]) for name, each in gradients.items()}
    worst = max(errors, key=errors.get)
    assert say(f"gradient of {worst}", errors[worst]) < of_gradients, worst
    reached = [name for name, each in gradients.items() if each.any()]
    parts = {"vision_model": case.grids or case.tubelets, "mlp1": case.grids or case.tubelets}
    parts |= {"sound_encoder": case.clips, "sound_projection": case.clips, "language_model": True}
    for part, used in parts.items():
        assert any(name.startswith(part) for name in reached) == bool(used), part


def test_answers_equal_those_of_transformers():
    case = Case(grids=((4, 6), (2, 4)), clips=(37 * FRAME,))
    given, hf, count = make_inputs(case), hf_config(), 6
    model = reference.build(hf)
    want = reference.continue_greedily(model, case, given, count)
    modules = our_modules(hf, reference.tensors(model))
    edges = [Edge("vision.tokens", "llm.image_tokens"), Edge("audio.tokens", "llm.audio_tokens")]
    places = {"vision": Layout(devices="0"), "audio": Layout(devices="1"), "llm": Layout(devices="2-3", tensor=2)}
    trainer = Trainer(ModuleGraph(modules, edges), Placement(places), optimizer=optax.sgd(0.1))
    batch = our_batch(modules, given)
    batch["llm"] = {port: each for port, each in batch["llm"].items() if port not in ("labels", "loss_weights")}
    generator = Generator(trainer, max_new_tokens=count, stop_token=-1)
    got = generator.generate(trainer.init(), batch, np.array([len(given["tokens"])]))
    assert got[0].tolist() == want
    assert len(set(want)) > 1, dataclasses.asdict(case)
