"""From the media that a conversation names to what a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specdec_core.data.conversations import LineError
from specdec_core.data.images import ImageReader
from specdec_core.data.media import LoadedMedium, MediaProcessor, Medium, ProcessedMedia
from specdec_core.data.sources import shown

if TYPE_CHECKING:
    from torch import Tensor

Digests = tuple[str, ...]


@dataclass(frozen=True)
class SeenMedium:
    """A medium that was looked at: the text that stands for it, and a digest of the bytes of each of its frames."""

    replacement: str
    digests: Digests


@dataclass(frozen=True)
class MediaReader:
    """Reads the media of conversations for one target. `directory` is where relative paths of a line begin."""

    processor: MediaProcessor
    images: ImageReader

    @property
    def fingerprint(self) -> str:
        """Of all that decides what is read and what becomes of it."""
        return f"{self.processor.fingerprint}/{self.images.policy}/{self.images.max_pixels}"

    def look(self, media: Sequence[Medium], directory: Path) -> list[SeenMedium]:
        """Read every medium once and keep no pixels. Raises LineError that names the one that cannot be used."""
        seen: list[SeenMedium] = []
        for number, medium in enumerate(media, start=1):
            loaded, digests = self._load(medium, number, directory)
            (replacement,) = self._processed([loaded], _name(medium, number)).replacements
            seen.append(SeenMedium(replacement, digests))
        return seen

    def read(self, media: Sequence[Medium], directory: Path) -> ProcessedMedia:
        """What the media of one text are to the target. Raises LineError that names the one that cannot be used."""
        loaded = [self._load(medium, number, directory)[0] for number, medium in enumerate(media, start=1)]
        return self._processed(loaded, "an image") if loaded else ProcessedMedia()

    def inputs(
        self, media: Sequence[Medium], directory: Path, digests: Sequence[Digests] | None = None
    ) -> Mapping[str, Tensor]:
        """The target's inputs for the media of one text.

        Raises LineError if one of them cannot be read, or if it is not what `digests` say, those of `look`.
        """
        loaded: list[LoadedMedium] = []
        for number, medium in enumerate(media, start=1):
            read, found = self._load(medium, number, directory)
            if digests is not None and found != digests[number - 1]:
                raise LineError(
                    "changed image",
                    f"{_name(medium, number)} has changed since the data was tokenised; "
                    "restore it, or start again to tokenise anew",
                )
            loaded.append(read)
        return self._processed(loaded, "an image").inputs if loaded else {}

    def positions(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `MediaProcessor.positions`."""
        return self.processor.positions(ids, inputs)

    def _load(self, medium: Medium, number: int, directory: Path) -> tuple[LoadedMedium, Digests]:
        frames, digests = [], []
        for index, source in enumerate(medium.sources, start=1):
            try:
                frame, digest = self.images.read(source, directory)
            except LineError as error:
                raise LineError(error.reason, f"{_name(medium, number, index)} {error.message}") from error
            frames.append(frame)
            digests.append(digest)
        return LoadedMedium(medium.kind, tuple(frames), medium.fps), tuple(digests)

    def _processed(self, loaded: Sequence[LoadedMedium], name: str) -> ProcessedMedia:
        try:
            return self.processor.process(loaded)
        except LineError as error:
            raise LineError(error.reason, f"{name} {error.message}") from error
        except ValueError as error:  # how processors of models say that they cannot take an image
            raise LineError("refused image", f"{name} is refused by the target's processor: {error}") from error


def _name(medium: Medium, number: int, frame: int = 0) -> str:
    """A medium, or a frame of a video, as messages name it: the `number`th of its text."""
    if medium.kind == "image":
        return f"image {number} ({shown(medium.sources[0])})"
    return f"frame {frame} of video {number} ({shown(medium.sources[frame - 1])})" if frame else f"video {number}"
