"""Opens the weights that a first state starts from: of a Hugging Face folder, a converted checkpoint or another run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from hetjax.checkpoint.frozen_bases import base_stamps, changed_bases
from hetjax.checkpoint.merged_weights import A, MergedWeights
from hetjax.checkpoint.saved_weights import HUGGING_FACE, SavedWeights, is_checkpoint
from hetjax.config.build import build_graph
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.tensor_files.json_file import read_json
from hetjax.state.train_state import TrainState
from hetjax.state.weight_source import ModuleWeights, WeightSource
from hetjax.trainer import Trainer


def open_weights(directory: str | os.PathLike[str]) -> WeightSource:
    """Open the weights in a folder: a Hugging Face checkpoint, a converted one, or a run's own.

    Raises ConfigError where it is none of these, ModelError or CheckpointError where it cannot be read.
    """
    folder = Path(directory)
    if is_checkpoint(folder):
        return open_checkpoint(folder)
    if (folder / "config.json").exists():
        return HuggingFaceCheckpoint(folder)
    raise ConfigError(
        f"{folder} holds no weights to start from; give a Hugging Face folder, one that `hetjax convert` made, or the "
        "folder of a run with checkpoints"
    )


def open_checkpoint(directory: str | os.PathLike[str], *, average: bool = False) -> SavedWeights | MergedWeights:
    """Open a checkpoint of ours; where a run trained low-rank maps, these added to the weights that it began with.

    By the settings of the run, config.yaml beside its folder of checkpoints, these are in the folders of `warm_start`,
    or come from the seed. `average` as in `SavedWeights`. Raises CheckpointError and ConfigError.
    """
    saved = SavedWeights(directory, average=average)
    if not any(path.endswith(A) for module in saved.modules for path in saved.infos(module)):
        return saved
    settings = saved.folder.parent.parent / "config.yaml"
    if not settings.exists():
        raise ConfigError(
            f"{saved.name} holds low-rank maps without the weights beside them, and there is no {settings} that says "
            "where these are; give the checkpoint in the folder of its run"
        )
    config, _ = load_config(["--config", os.fspath(settings)])
    bases: dict[str, WeightSource] = open_warm_start(config.warm_start, tuple(saved.modules))
    if others := changed_bases(saved.extra.get("bases", {}), base_stamps(bases, config.model.lora)):
        raise ConfigError(
            f"{saved.name}: the weights of {', '.join(others)} in warm_start ({config.warm_start}) are not those "
            "beside which the low-rank maps were trained; put those back"
        )
    lacking = [module for module in config.model.lora if module not in bases]
    seeded = build_graph(dataclasses.replace(config.model, lora={})) if lacking else None
    bases |= {module: ModuleWeights(module, seeded.build(module, config.seed)) for module in lacking}
    return MergedWeights(saved, config.model.lora, bases)


def open_warm_start(setting: str | Mapping[str, str] | None, modules: tuple[str, ...]) -> dict[str, WeightSource]:
    """Open the weights that each module named in the setting starts from; one folder serves all modules that it holds.

    Raises ConfigError for a module that the model or the folder lacks, and whatever `open_weights` raises.
    """
    if setting is None:
        return {}
    if isinstance(setting, str):
        source = open_weights(setting)
        shared = [module for module in modules if module in source.modules]
        if not shared:
            raise ConfigError(
                f"warm_start: {source.name} holds modules {', '.join(source.modules)}, and the model consists of "
                f"{', '.join(modules)}; give the folder for one module, e.g. warm_start: {{llm: {setting}}}"
            )
        return dict.fromkeys(shared, source)
    if unknown := sorted(setting.keys() - set(modules)):
        raise ConfigError(f"warm_start names module '{unknown[0]}'; the model consists of {', '.join(modules)}")
    opened = {folder: open_weights(folder) for folder in dict.fromkeys(setting.values())}
    return {module: opened[folder] for module, folder in setting.items()}


def differences(source: WeightSource, module: str, config: object) -> list[str]:
    """Describe the settings of a module that differ from those in the config.json of its weights, where they have one.

    `config` is the module's own dataclass. Some settings are free to differ, such as the factor of the loss that
    balances experts; shapes are checked by `check_source`.
    """
    made_for = _configs(source).get(module)
    if type(made_for) is not type(config):
        return []
    model, weights = dataclasses.asdict(config), dataclasses.asdict(made_for)
    return [
        f"{name} is {model[name]!r} in the model, {weights[name]!r} in the weights"
        for name in model
        if name != "type" and model[name] != weights[name]
    ]


def _configs(source: WeightSource) -> Configs:
    """The config of each module that config.json describes; none for a run's own checkpoint."""
    if isinstance(source, HuggingFaceCheckpoint):
        return source.configs
    path = Path(source.name) / HUGGING_FACE / "config.json"
    if not path.exists():
        return {}
    hf = read_json(path)
    return find_family(hf, source.extra.get("family") if isinstance(source, SavedWeights) else None).configs(hf)


def load_into(trainer: Trainer, folder: str | os.PathLike[str], *, seed: int = 0) -> TrainState:
    """Return a trainer's first state, in which the modules that a folder holds start from its weights.

    `trainer.init(seed, warm_start=...)` for one folder. Raises ConfigError, ModelError or CheckpointError.
    """
    return trainer.init(seed, warm_start=open_warm_start(os.fspath(folder), tuple(trainer.graph.modules)))
