"""Modalities, one file each: image, video and audio. `register` adds one."""

from collections.abc import Container

from hetjax.data.modalities.audio import Audio
from hetjax.data.modalities.image import Image
from hetjax.data.modalities.modality import Modality, Placeholder
from hetjax.data.modalities.video import Video

MODALITIES: dict[str, type[Modality]] = {modality.name: modality for modality in (Image, Video, Audio)}
"""Every modality by its name, in the order of their settings, ports and placeholders."""


def register(modality: type[Modality]) -> type[Modality]:
    """Add a modality of one's own, before any processor is made; also a decorator."""
    MODALITIES[modality.name] = modality
    return modality


def placeholders() -> list[Placeholder]:
    """Return the placeholders of each encoder, without repeats."""
    return list(dict.fromkeys(modality.placeholder for modality in MODALITIES.values()))


def placeholder_texts(tokens: Container[str] | None = None) -> dict[str, str]:
    """Return the text of every token that prompts with media need, by what it is for ("image", "image_start", ...).

    That of the built-in tokenizer, or as a tokenizer with these `tokens` has them; empty for one that it does without.
    """
    each = [one.texts if tokens is None else one.texts_in(tokens) for one in placeholders()]
    return {name: text for texts in each for name, text in texts.items()}


__all__ = [
    "MODALITIES",
    "Audio",
    "Image",
    "Modality",
    "Placeholder",
    "Video",
    "placeholder_texts",
    "placeholders",
    "register",
]
