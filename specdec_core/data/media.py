"""Images and videos within conversations: what a line names, what a family makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MediumKind = Literal["image", "video"]


@dataclass(frozen=True)
class Medium:
    """An image, or a video as its frames, that a conversation names.

    sources  paths, URLs or data URIs: one of an image, the frames of a video
    fps      frames per second of a video, where the line says so
    """

    kind: MediumKind
    sources: tuple[str, ...]
    fps: float | None = None


@dataclass(frozen=True)
class LoadedMedium:
    """The same with its pictures read: RGB, one of an image, the frames of a video."""

    kind: MediumKind
    frames: tuple[Image, ...]
    fps: float | None = None


@dataclass(frozen=True)
class ProcessedMedia:
    """What the media of one text are to a target.

    replacements  for each medium, in the text's order, what stands for it in the text in place of its marker
    inputs        the model's inputs by keyword (pixel values, grids); along dim 0 they hold medium after medium of
                  their kind, so that those of several texts are concatenated
    """

    replacements: tuple[str, ...] = ()
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


class MediaProcessor(ABC):
    """How a family reads images and videos. A backbone makes one for a target, without loading its weights.

    It is pickled for worker processes, and may be called in a thread.
    """

    markers: Mapping[MediumKind, str]
    """What the chat template writes where a medium stands, for each kind that the family reads; all different."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides what `process` gives."""

    @abstractmethod
    def process(self, media: Sequence[LoadedMedium]) -> ProcessedMedia:
        """The model's inputs for the media of one text, and the text that stands for each.

        What a medium gives does not depend on those beside it, so that any of them may be left out. Raises LineError if
        the family cannot read one of them (too small, too elongated): words that go on from the medium's name.
        """

    @abstractmethod
    def positions(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """[n] or [A, n] int64: the rotary positions of one text's tokens [n] on each of the A axes that the target has.

        `inputs` are those of its media. What the target writes after the text goes on from the highest position of its
        last token, by one a token on every axis.
        """
