"""Conversations with images, videos and sound to ids with placeholders, and the media that these stand for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from hetjax.data.chat.chat_rendering import Piece, render_chat
from hetjax.data.chat.config import ProcessorConfig
from hetjax.data.chat.messages import Chat
from hetjax.data.chat.prompt_order import Item, Tokens, audio_items, image_items, video_items
from hetjax.data.chat.reading import Sound, cut_sound, read_part, whole_tubelets
from hetjax.data.chat.row_capacity import Room
from hetjax.data.chat.sample import Need, OmniSample
from hetjax.data.chat.special_tokens import OmniTokenizer
from hetjax.data.chat.template import ChatTemplate
from hetjax.data.media import Video
from hetjax.errors import DataError
from hetjax.models.parts.video_pruning import keep_count
from hetjax.models.patch_rows import PatchRows, normalize, resize


class Processor:
    """Makes samples of chats; `hetjax.data.chat.collate` makes batches of samples.

    Args:
        config: sizes and options.
        tokenizer: text to ids.
        template: turns to text.
        seq_len: rows of the language model's sequence, after pruning.
        image_rows, video_rows: how the vision encoder takes images and tubelets (`RadioConfig.image_rows`,
            `.video_rows`); None where it takes none.
        pruning_rate: share of a video's tokens that the encoder drops.

    Raises ConfigError where `config` has rows for what the encoder does not take, or patches of another size.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        tokenizer: OmniTokenizer,
        template: ChatTemplate,
        *,
        seq_len: int,
        image_rows: PatchRows | None = None,
        video_rows: PatchRows | None = None,
        pruning_rate: float = 0.0,
    ):
        self.config, self.tokenizer, self.template = config, tokenizer, template
        self.image_rows, self.video_rows, self.pruning_rate = image_rows, video_rows, pruning_rate
        rows = {"image_rows": image_rows, "video_rows": video_rows}
        self.room = Room.of(config, seq_len, pruning_rate=pruning_rate, **rows)
        names = [name for kind, used in (("image", self.room.sees), ("audio", self.room.hears)) if used
                 for name in (kind, f"{kind}_start", f"{kind}_end")]  # fmt: skip
        for name in names:
            tokenizer.placeholder(name)

    def sample(self, chat: Chat, *, training: bool = False) -> OmniSample:
        """Read the media of a chat and fuse them with its text; in `training` with what an assistant says, else
        asking for the next answer.

        Raises:
            DataError: a file cannot be read, the template refuses the chat, or it does not fit into a row.
        """
        pieces = render_chat(
            chat,
            self.template,
            specials=self.tokenizer.specials,
            training=training,
            **self.config.template_options,
        )
        media = [self._read(part, chat.where) for part in chat.media]
        fused = _Fused(self.tokenizer, chat.where)
        texts = [self.tokenizer.encode(piece.text) if piece.medium is None else [] for piece in pieces]
        items = [None if isinstance(medium, np.ndarray) else self._items(medium) for medium in media]
        taken = sum(map(len, texts)) + sum(_length(part, self.tokenizer) for part in items if part is not None)
        images = iter(self._resized([medium for medium in media if isinstance(medium, np.ndarray)], taken))
        for piece, ids in zip(pieces, texts, strict=True):
            if piece.medium is None:
                fused.add_text(ids, piece)
                continue
            medium = media[piece.medium]
            if isinstance(medium, np.ndarray):
                fused.add_image(next(images), self.image_rows)
            elif isinstance(medium, Sound):
                fused.add_media(items[piece.medium], clips=medium)
            else:
                video, sound = medium
                pixels = self._frames(video)
                fused.add_media(
                    items[piece.medium], clips=sound, video=(pixels, self._kept(video)), rows=self.video_rows
                )
        sample = fused.sample()
        self.room.check(sample.need, chat.where)
        return sample

    def _read(self, part, where: str):
        """An image as pixels, sound as clips, a video as (frames, its sound or None)."""
        config = self.config
        missing = {"image": config.image_rows, "video": config.video_rows, "audio": config.clips}
        if not missing[part.kind]:
            name = "clips" if part.kind == "audio" else f"{part.kind}_rows"
            raise DataError(
                f"{where}: there is {part.kind} in it, but processor.{name} is 0; raise it or remove the line"
            )
        with_sound = config.audio_in_video != "none"
        medium = read_part(part, where, frames=config.frames, with_sound=with_sound)
        if part.kind == "image":
            return medium
        if part.kind == "audio":
            return cut_sound(medium, config.clip_samples, where)
        heard = with_sound and medium.sound is not None and len(medium.sound)
        return medium, cut_sound(medium.sound, config.clip_samples, where) if heard else None

    def _items(self, medium) -> list[Item]:
        if isinstance(medium, Sound):
            return audio_items(sum(medium.tokens))
        video, sound = medium
        clips = list(zip(sound.ends, sound.tokens, strict=True)) if sound else []
        tokens = self.config.resolution.tokens(self._grid(video))
        options = dict(order=self.config.audio_in_video, prefix=self.config.video_prefix)
        return video_items(video.times, self.video_rows.frames, tokens, clips=clips, **options)

    def _grid(self, video: Video) -> tuple[int, int]:
        return self.config.resolution.video_grid(*video.frames.shape[1:3])

    def _kept(self, video: Video) -> int:
        tubelets = -(-len(video.frames) // self.video_rows.frames)
        return keep_count(tubelets, self.config.resolution.tokens(self._grid(video)), self.pruning_rate)

    def _frames(self, video: Video) -> np.ndarray:
        grid = self._grid(video)
        return np.stack([self._pixels(frame, grid) for frame in whole_tubelets(video.frames, self.video_rows.frames)])

    def _resized(self, images: list[np.ndarray], taken: int) -> list[np.ndarray]:
        context = self.config.context or self.room.need.tokens
        grids = self.config.resolution.image_grids([image.shape[:2] for image in images], context, taken)
        return [self._pixels(image, grid) for image, grid in zip(images, grids, strict=True)]

    def _pixels(self, image: Shaped[np.ndarray, "H W 3"], grid: tuple[int, int]) -> np.ndarray:
        size = self.config.resolution.patch_size
        return normalize(resize(image, grid[0] * size, grid[1] * size), self.config.pixel_mean, self.config.pixel_std)


def _length(items: list[Item], tokenizer: OmniTokenizer) -> int:
    return sum(item.count + 2 if isinstance(item, Tokens) else len(tokenizer.encode(item)) for item in items)


class _Fused:
    """A sample as it grows."""

    def __init__(self, tokenizer: OmniTokenizer, where: str):
        self._tokenizer, self._where = tokenizer, where
        self._ids: list[int] = []
        self._said: list[bool] = []
        self._media: dict[str, list] = {name: [] for name in ("images", "videos", "clips")}
        self._places: dict[str, list] = {name: [] for name in self._media}
        self._image_rows = self._video_rows = self._kept = 0

    def add_text(self, ids: list[int], piece: Piece) -> None:
        said = [piece.said] * len(ids)
        if piece.ends_answer and ids and ids[0] in self._tokenizer.special_ids:
            said[0] = True
        self._ids += ids
        self._said += said

    def add_image(self, pixels: np.ndarray, rows: PatchRows) -> None:
        height, width = (side // rows.patch_size for side in pixels.shape[:2])
        self._image_rows += rows.rows(height, width)
        (places,) = self._add_items(image_items(height * width // rows.merge**2))["image"]
        self._media["images"].append(pixels)
        self._places["images"].append(places)

    def add_media(
        self,
        items: list[Item],
        *,
        clips: Sound | None,
        video: tuple[np.ndarray, int] | None = None,
        rows: PatchRows | None = None,
    ) -> None:
        places = self._add_items(items)
        if video is not None:
            pixels, kept = video
            height, width = (side // rows.patch_size for side in pixels.shape[1:3])
            self._video_rows += len(pixels) // rows.frames * rows.rows(height, width)
            self._kept += kept
            self._media["videos"].append(pixels)
            self._places["videos"].append(np.concatenate(places["image"]))
        if clips is not None:
            heard = np.concatenate(places["audio"])
            self._places["clips"] += np.split(heard, np.cumsum(clips.tokens)[:-1])
            self._media["clips"] += clips.clips

    def _add_items(self, items: list[Item]) -> dict[str, list[np.ndarray]]:
        """Places of the placeholders of each run, by kind."""
        places: dict[str, list[np.ndarray]] = {"image": [], "audio": []}
        for item in items:
            if isinstance(item, str):
                new = self._tokenizer.encode(item)
            else:
                start, token, end = (
                    self._tokenizer.placeholder(name) for name in (f"{item.kind}_start", item.kind, f"{item.kind}_end")
                )
                first = len(self._ids) + 1
                places[item.kind].append(np.arange(first, first + item.count, dtype=np.int32))
                new = [start, *[token] * item.count, end]
            self._ids += new
            self._said += [False] * len(new)
        return places

    def sample(self) -> OmniSample:
        given = len(self._ids)
        shown = sum(map(len, self._places["videos"]))
        need = Need(
            tokens=given - shown + self._kept,
            given=given,
            image_rows=self._image_rows,
            video_rows=self._video_rows,
            kept=self._kept,
            clips=len(self._media["clips"]),
        )
        return OmniSample(
            ids=np.asarray(self._ids, np.int32),
            said=np.asarray(self._said, bool),
            **{name: tuple(values) for name, values in self._media.items()},
            image_places=tuple(self._places["images"]),
            video_places=tuple(self._places["videos"]),
            clip_places=tuple(self._places["clips"]),
            need=need,
            where=self._where,
        )
