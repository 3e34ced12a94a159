"""hetjax generate: ask a trained model."""

from __future__ import annotations

import time

import jax
import optax

from hetjax.checkpoint.warm_start import load_into
from hetjax.config.build import build_graph
from hetjax.config.model_config import ModelConfig
from hetjax.errors import ConfigError
from hetjax.generation.answer_text import answer_length, answer_text
from hetjax.generation.generator import Generator
from hetjax.generation.model_folder import open_model_folder
from hetjax.generation.prompt import ask
from hetjax.meshes import Layout, Placement
from hetjax.models.sampling import Sampling
from hetjax.tools.outcome import Outcome, busy
from hetjax.trainer import Trainer


def generate(
    *,
    checkpoint: str,
    prompt: str,
    image: list[str] | None = None,
    audio: list[str] | None = None,
    video: list[str] | None = None,
    files: dict[str, list[str]] = {},  # noqa: B006 (only read)
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    placement: dict[str, Layout] = {},  # noqa: B006 (only read)
    fake_devices: int | None = None,
) -> Outcome:
    """Ask a trained model a question, with images, audio and videos.

    Files stand before the question, or where it has the marks <image>, <audio> and <video>.

    Args:
        checkpoint: A run's folder, what `hetjax convert` made, or a Hugging Face folder.
        prompt: The question.
        image: Image files.
        audio: Audio files.
        video: Video files.
        files: Files of further modalities, e.g. {depth: [a.npy]}.
        max_new_tokens: Longest answer, in tokens.
        temperature: Divides the logits before a token is drawn; 0 takes the most likely one.
        top_p: Probability of the most likely tokens that are kept; 1 keeps all.
        top_k: Number of the most likely tokens that are kept; 0 for all.
        seed: Seed of what is drawn.
        placement: A layout for each module; the first device alone for those without.
        fake_devices: Run on this many CPU devices; null for those there are.
    """
    if not temperature and (top_p != 1 or top_k):
        raise ConfigError("--temperature is 0, so that top_p and top_k change nothing; give a temperature too")
    if fake_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices)
    model = open_model_folder(checkpoint)
    if model.param_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    question = ask(model, prompt, {"image": image or [], "video": video or [], "audio": audio or [], **files})
    model.check_length(int(question.lengths[0]), max_new_tokens)
    unknown = sorted(set(placement) - set(model.components))
    if unknown:
        raise ConfigError(f"--placement names {unknown[0]}; the model consists of {', '.join(model.components)}")
    components = {name: model.components[name] for name in question.modules}
    layouts = {name: layout for name, layout in placement.items() if name in components}
    trainer = Trainer(
        build_graph(ModelConfig.of(components)),
        Placement({name: Layout(devices="0") for name in components} | layouts),
        optimizer=optax.sgd(0.0),  # which keeps nothing beside the weights
        param_dtype=model.param_dtype,
    )
    generator = Generator(
        trainer,
        max_new_tokens=max_new_tokens,
        stop_token=question.tokenizer.stop_ids,
        sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k),
        check_every=16,
    )
    with busy("compiling"):
        generator.compile(question.arrays)
    with busy("reading weights"):
        state = load_into(trainer, model.source.name)
    started = time.perf_counter()
    with busy("answering"):
        ids = generator.generate(state, question.arrays, question.lengths, seed)[0]
    seconds = time.perf_counter() - started
    answer, made = answer_text(ids, question.tokenizer), answer_length(ids, question.tokenizer)
    return Outcome(numbers={"answer": answer, "tokens": made, "seconds": round(seconds, 3)}, shown=(answer,))
