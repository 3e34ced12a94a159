"""Time a training step of a vision-language model in PyTorch: transformers' LLaVA with the sizes of a run's YAML.

    python scripts/vlm_step_torch.py --config configs/bench/vlm.yaml

As `hetjax bench step` does it of the same run: weights and AdamW (fused) in float32, products in bfloat16 (autocast),
the gradient clipped by its norm, attention by PyTorch's fused kernels. The vision tower is SigLIP's, which has the
layers of ours and biases of queries, keys and values beside; the loss is that of transformers, over the
positions behind pictures.
Random weights, random data. Prints one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from hetjax.config.optimizer_config import OptimizerConfig
from hetjax.config.run_config import TrainConfig, load_config


def make_model(config: TrainConfig, device: torch.device) -> LlavaForConditionalGeneration:
    """Return the model with random weights in float32. The last token id stands for a picture's tokens."""
    vision, llm = config.model.components["vision"], config.model.components["llm"]
    if vision.projector_width != llm.width:
        raise SystemExit(f"LLaVA's projector is {llm.width} wide inside; set model.vision.projector_width to that")
    tower = SiglipVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=llm.vocab_size,
        hidden_size=llm.width,
        intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        head_dim=llm.head_dim,
        max_position_embeddings=config.data.seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": llm.rope_theta},
        tie_word_embeddings=llm.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    whole = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=llm.vocab_size - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=llm.tie_embeddings,
    )
    with device:
        return LlavaForConditionalGeneration._from_config(
            whole, attn_implementation="sdpa", dtype=torch.float32
        ).train()


def make_batch(config: TrainConfig, device: torch.device) -> dict[str, torch.Tensor]:
    """Return samples with their pictures' tokens first; labels are the ids, which the loss shifts."""
    vision, llm, data = config.model.components["vision"], config.model.components["llm"], config.data
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, llm.vocab_size - 1, (data.batch_size, data.seq_len), generator=random)
    pictures = data.processor.images * vision.tokens_per_image
    labels = ids.clone()
    ids[:, :pictures], labels[:, :pictures] = llm.vocab_size - 1, -100
    shape = (data.batch_size * data.processor.images, vision.channels, vision.image_size, vision.image_size)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(shape, generator=random)}
    return {name: array.to(device) for name, array in batch.items()}


def make_optimizer(settings: OptimizerConfig, model: torch.nn.Module) -> torch.optim.AdamW:
    """Return AdamW as the run has it, at its peak learning rate."""
    arguments = settings.all_arguments
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(arguments["b1"], arguments["b2"]),
        eps=arguments["eps"],
        weight_decay=arguments["weight_decay"],
        fused=True,
    )


def time_steps(config: TrainConfig, device: torch.device, warmup: int, timed: int) -> dict[str, object]:
    """Return the figures of a step; each is waited for, as its loss would be read."""
    model, batch = make_model(config, device), make_batch(config, device)
    optimizer, largest_norm = make_optimizer(config.optimizer, model), config.optimizer.max_grad_norm
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        if largest_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    seconds = []
    for _ in range(warmup + timed):
        wait()
        start = time.perf_counter()
        loss = step()
        wait()
        seconds.append(time.perf_counter() - start)
    typical, tokens = statistics.median(seconds[warmup:]), config.data.batch_size * config.data.seq_len
    on_gpu = device.type == "cuda"
    return {
        "name": config.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device_kind": torch.cuda.get_device_name() if on_gpu else device.type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": timed,
        "seconds": typical,
        "seconds_min": min(seconds[warmup:]),
        "tokens": tokens,
        "tokens_per_second": tokens / typical,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": float(loss),
    }


def main() -> None:
    """Read the command line, time, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML of a run with a ViT and a decoder")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are timed")
    parser.add_argument("--timed_steps", type=int, default=10, help="steps that are timed")
    options = parser.parse_args()
    config, _ = load_config(["--config", options.config])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(time_steps(config, device, options.warmup, options.timed_steps)), flush=True)


if __name__ == "__main__":
    main()
