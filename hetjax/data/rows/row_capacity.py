"""Compute the capacity of a row of the batch, and check what is to fill it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from hetjax.data.modalities import MODALITIES, Modality, Placeholder
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.rows.sample import RowUse, Sample
from hetjax.errors import ConfigError, DataError
from hetjax.models.kernels.attention_scores import Packed, Packing

UNLIMITED = 1 << 24
"""Amount of each resource while it is still open how much a prompt takes; no array is that long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowCapacity:
    """Static sizes of a row.

    Attributes:
        config: the settings they come from.
        modalities: every modality by name, fitted to the settings and to its encoder.
        most: the most that the samples of a row may take together.
        encoders_of: config of each module of the model, by name.
    """

    config: ProcessorConfig
    modalities: Mapping[str, Modality]
    most: RowUse
    encoders_of: Mapping[str, object]

    @staticmethod
    def of(config: ProcessorConfig, seq_len: int, encoders: Mapping[str, object]) -> RowCapacity:
        """Return the capacity of a row whose sequence has `seq_len` positions after pruning.

        `encoders` holds the config of each module of the model, by name. Raises ConfigError where the settings ask for
        what an encoder does not take.
        """
        for name in config.others:
            if name not in MODALITIES:
                raise ConfigError(f"processor.others names {name}; the modalities are {', '.join(MODALITIES)}")
        fitted = {
            name: modality(config, encoders.get(modality.placeholder.module))
            for name, modality in _for_encoders(encoders).items()
        }
        media = {name: amount for modality in fitted.values() for name, amount in modality.capacity.items()}
        dropped = sum(modality.dropped for modality in fitted.values())
        most = RowUse(tokens=seq_len, before_pruning=seq_len + dropped, media=media)
        return RowCapacity(config=config, modalities=fitted, most=most, encoders_of=encoders)

    @property
    def encoders(self) -> dict[Placeholder, list[Modality]]:
        """Return the modalities that a row has capacity for, by their encoder, whose tokens come in this order."""
        found: dict[Placeholder, list[Modality]] = {}
        for modality in self.modalities.values():
            if self.takes(modality):
                found.setdefault(modality.placeholder, []).append(modality)
        return found

    @property
    def packings(self) -> dict[str, Packing]:
        """Return by encoder module the segments of a row that is full of the largest media, as far as they are known.

        That is the most work that the settings may ask of attention.
        """
        found: dict[str, Packing] = {}
        for placeholder, modalities in self.encoders.items():
            if all(each.longest is not None for each in modalities):
                rows = [self.most.media[each.resources[0].name] for each in modalities]
                found[placeholder.module] = tuple(
                    Packed(positions, min(positions, each.longest))
                    for positions, each in zip(rows, modalities, strict=True)
                )
        return found

    def takes(self, modality: Modality) -> bool:
        """Return whether the settings take media of this kind at all."""
        return self.most.media[modality.resources[0].name] > 0

    @property
    def amounts(self) -> dict[tuple[str, str], int]:
        """Return the amounts that settings fix, by module and resource: "tokens", the first of each modality taken."""
        media = [each for each in self.modalities.values() if self.takes(each)]
        names = [(each.placeholder.module, each.resources[0].name) for each in media]
        return {("llm", "tokens"): self.most.tokens} | {name: self.most.media[name[1]] for name in names}

    def sized(self, amounts: Mapping[str, int]) -> RowCapacity:
        """Return the capacity of rows with other amounts, by the names of the resources in `amounts`."""
        config = self.config
        for modality in self.modalities.values():
            own = {resource.name: self.most.media[resource.name] for resource in modality.resources}
            config = modality.sized(config, {name: amounts.get(name, amount) for name, amount in own.items()})
        return RowCapacity.of(config, amounts["tokens"], self.encoders_of)

    def check(self, use: RowUse, where: str) -> None:
        """Raise DataError where samples do not fit, with every amount that is too large."""
        named = [
            ("tokens in the language model's sequence", "seq_len"),
            ("tokens before pruning", "seq_len or processor.video_rows"),
            *((resource.words, resource.setting) for each in self.modalities.values() for resource in each.resources),
        ]
        over = [
            f"{taken} {words}, more than {most} ({setting})"
            for (words, setting), taken, most in zip(named, use.amounts, self.most.amounts, strict=True)
            if taken > most
        ]
        if over:
            raise DataError(f"{where}: the sample takes {'; '.join(over)}; shorten it, or raise these settings")


def unlimited(config: ProcessorConfig, modalities: Iterable[str], encoders: Mapping[str, object]) -> ProcessorConfig:
    """Return the settings with all that one prompt may ever take of these modalities, and nothing of the others."""
    wanted = set(modalities)
    for modality in _for_encoders(encoders).values():
        amount = UNLIMITED if modality.name in wanted else 0
        config = modality.sized(config, {resource.name: amount for resource in modality.resources})
    return dataclasses.replace(config, packed=1)


def just_enough(config: ProcessorConfig, sample: Sample, encoders: Mapping[str, object]) -> ProcessorConfig:
    """Return the settings with exactly the amounts that a sample takes of every modality."""
    for modality in _for_encoders(encoders).values():
        amounts = {resource.name: sample.use.media[resource.name] for resource in modality.resources}
        config = modality.sized(config, amounts, [medium.array for medium in sample.media[modality.name]])
    return config


def _for_encoders(encoders: Mapping[str, object]) -> dict[str, type[Modality]]:
    """Return the class of each modality by its name, as the model's encoders take it."""
    return {
        name: modality.for_encoder(encoders.get(modality.placeholder.module)) for name, modality in MODALITIES.items()
    }
