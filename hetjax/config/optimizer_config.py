"""The settings of the optimizer: by its optax name, with a schedule, groups of weights and an average of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hetjax.config.limits import check_least
from hetjax.errors import ConfigError
from hetjax.optimizers.named import check_arguments, check_name, takes
from hetjax.optimizers.schedules import ScheduleKind

_ARGUMENTS = {"beta1": "b1", "beta2": "b2", "epsilon": "eps", "weight_decay": "weight_decay"}
"""Settings with a name of their own, and the argument of optax that each is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What is different for some of the weights; a weight belongs to the first group that names it.

    Args:
        paths: Weights by module and path, where * stands for any text, e.g. [vision.*, llm.embedding, "*norm*"]; the
            name of a part stands for all in it.
        learning_rate_scale: Factor on their learning rate, beside that of their module.
        weight_decay: Their weight decay, for vectors too; null for that of the others.
        frozen: Whether they do not train.
    """

    paths: list[str]
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self):
        check_least(self, 0, "learning_rate_scale", "weight_decay", section="optimizer.groups: ")
        if not self.paths:
            raise ConfigError("optimizer.groups: a group has no paths; give e.g. paths: [llm.embedding]")
        if self.frozen and (self.learning_rate_scale != 1 or self.weight_decay is not None):
            raise ConfigError(
                f"optimizer.groups: the group of {', '.join(self.paths)} is frozen and has a learning_rate_scale or "
                "weight_decay, which would change nothing; drop one of the two"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer of optax, and its learning rate over the run: docs/optimizers.md.

    Args:
        learning_rate: Peak learning rate.
        name: The optimizer by its name in optax or optax.contrib, e.g. adamw, muon, lion, adafactor, sgd.
        arguments: Its further arguments by their names in optax, e.g. {momentum: 0.9}.
        schedule: What the learning rate does after the warm-up: cosine or linear, to final_learning_rate; constant;
            wsd, constant until the last decay_steps and then linear; inverse_root, as 1 / sqrt(step).
        final_learning_rate: Learning rate at the last step; the least one of inverse_root.
        warmup_steps: Steps over which the learning rate rises from zero.
        decay_steps: Steps at the end of wsd over which the learning rate falls; null for a tenth of the run.
        beta1: Argument b1: decay of the gradient's running mean; null for 0.9 in adamw, elsewhere for optax's.
        beta2: Argument b2: decay of the squared gradient's running mean; null for 0.95 in adamw, elsewhere for optax's.
        epsilon: Argument eps, added to the root of the latter; null for 1e-8 in adamw, elsewhere for optax's.
        weight_decay: Decoupled weight decay, for matrices; scales and biases have none.
        groups: What is different for some of the weights.
        ema: Decay of a running average of the weights, e.g. 0.999, which eval.weights and `hetjax convert` can take;
            null for none.
        max_grad_norm: Largest norm of the gradient over all modules, or null for no clipping.
        learning_rate_scale: Factor on the learning rate of a module, e.g. {vision: 0.1}.
        frozen: Modules that do not train, or parts of them, e.g. [audio, vision.layers].
        trained: The only modules that train, or parts of them, e.g. [vision.projector]; null for all but `frozen`.
    """

    learning_rate: float
    name: str = "adamw"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: ScheduleKind = "cosine"
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay_steps: int | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float = 0.0
    groups: list[GroupConfig] = dataclasses.field(default_factory=list)
    ema: float | None = None
    max_grad_norm: float | None = 1.0
    learning_rate_scale: dict[str, float] = dataclasses.field(default_factory=dict)
    frozen: list[str] = dataclasses.field(default_factory=list)
    trained: list[str] | None = None

    def __post_init__(self):
        names = ("learning_rate", "final_learning_rate", "warmup_steps", "weight_decay", "beta1", "beta2", "epsilon")
        check_least(self, 0, *names, section="optimizer.")
        check_least(self, 1, "decay_steps", section="optimizer.")
        check_name(self.name)
        check_arguments(self.name, self.arguments)
        self._check_course()
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"optimizer.ema is {self.ema}; give a decay between 0 and 1, e.g. 0.999, or null")
        for setting, argument in _ARGUMENTS.items():
            self._check_setting(setting, argument)
        for group in self.groups:
            if group.weight_decay and not takes(self.name, "weight_decay"):
                raise ConfigError(
                    f"optimizer.groups: weight_decay of {', '.join(group.paths)}, but optax's {self.name} takes none"
                )

    def _check_course(self) -> None:
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ConfigError(f"optimizer.decay_steps is for schedule wsd, and schedule is {self.schedule}; drop one")
        if self.final_learning_rate and self.schedule == "constant":
            raise ConfigError("optimizer.final_learning_rate changes nothing with schedule constant; drop one")

    def _check_setting(self, setting: str, argument: str) -> None:
        value = getattr(self, setting)
        if not value:
            return
        if argument in self.arguments:
            raise ConfigError(f"optimizer.{setting} and optimizer.arguments.{argument} are the same; give one of them")
        if not takes(self.name, argument):
            raise ConfigError(
                f"optimizer.{setting} is {value}, but optax's {self.name} has no argument {argument}; drop it and give "
                "what the optimizer takes in optimizer.arguments"
            )

    @property
    def all_arguments(self) -> Mapping[str, Any]:
        """The arguments of the optimizer by their names in optax, but for the learning rate and masks."""
        given = {
            argument: getattr(self, setting)
            for setting, argument in _ARGUMENTS.items()
            if getattr(self, setting) is not None and takes(self.name, argument)
        }
        ours = {"b1": 0.9, "b2": 0.95, "eps": 1e-8} if self.name == "adamw" else {}
        return {**ours, **given, **self.arguments}
