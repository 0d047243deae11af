"""How transformers models read images and videos: through the family's own processor and its own positions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import PIL
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from specdec_core.config.run import TargetSection
from specdec_core.data.conversations import LineError
from specdec_core.data.media import LoadedMedium, MediaProcessor, MediumKind, ProcessedMedia
from specdec_core.errors import UserError
from specdec_core.target.hf_load import Location, explained, first_line
from specdec_core.target.hf_options import HFVisionOptions

if TYPE_CHECKING:
    from transformers import ProcessorMixin

OF_THE_TEXT = frozenset({"mm_token_type_ids", "text_replacement_offsets"})
"""What a processor gives besides a tokenizer's output and the media's inputs."""


class HFMediaProcessor(MediaProcessor):
    """A transformers processor with an `image_token`, and where it reads videos a `video_token`.

    The model class has `get_rope_index(input_ids, mm_token_type_ids, **grids)`, which gives positions [A, B, S].
    """

    def __init__(self, processor: ProcessorMixin, config: Any) -> None:
        """`config` is the target's whole transformers config."""
        self.processor = processor
        self.config = config
        self.markers: Mapping[MediumKind, str] = {"image": processor.image_token}
        if hasattr(processor, "video_processor"):
            self.markers = {**self.markers, "video": processor.video_token}

    def context(self, kind: MediumKind) -> str:
        """The marker of a medium with what must stand around it for the processor to take it. Default: nothing."""
        return self.markers[kind]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the processor's settings, what of the config decides positions, and the versions of what computes."""
        text = self.config.get_text_config(decoder=True)
        parts = [
            self.processor.to_json_string(),
            type(self.processor.image_processor).__name__,
            [*self.markers.items()],
            self.config.model_type,
            self.config.vision_config.to_json_string(),
            getattr(text, "rope_parameters", None),
            transformers.__version__,
            PIL.__version__,
        ]
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()

    def process(self, media: Sequence[LoadedMedium]) -> ProcessedMedia:
        """The model's inputs for the media of one text, and the text that stands for each.

        Raises LineError if the family cannot read one of them (too elongated).
        """
        if not media:
            return ProcessedMedia()
        images = [medium.frames[0] for medium in media if medium.kind == "image"]
        videos = [medium for medium in media if medium.kind == "video"]
        given: dict[str, Any] = {"images": images} if images else {}
        if videos:
            given["videos"] = [[*video.frames] for video in videos]
            # The frames of a conversation are those to be read; none is left out.
            given["videos_kwargs"] = {"video_metadata": [*map(_metadata, videos)], "do_sample_frames": False}
        try:
            output = self.processor(
                text=["".join(self.context(medium.kind) for medium in media)],
                return_tensors="pt",
                return_text_replacement_offsets=True,
                **given,
            )
        except ValueError as error:
            raise LineError("refused", f"cannot be read by the target: {first_line(error)}") from error
        replaced = output["text_replacement_offsets"][0]
        of_the_text = OF_THE_TEXT | {*self.processor.tokenizer.model_input_names}
        return ProcessedMedia(
            tuple(place["replacement"] for place in replaced),
            {name: torch.as_tensor(value) for name, value in output.items() if name not in of_the_text},
        )

    def positions(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """[A, n] int64: the rotary positions of one text's tokens [n], as the family itself counts them.

        `inputs` are those of its media.
        """
        types = torch.zeros_like(ids)[None]
        if inputs:  # else a placeholder's id is a token like any other, as it is to the model
            types = torch.tensor(self.processor.create_mm_token_type_ids([ids.tolist()]))
        positions: Tensor = self._bare_model.get_rope_index(ids[None], mm_token_type_ids=types, **inputs)[0]
        return positions[:, 0]

    @cached_property
    def _bare_model(self) -> Any:
        """The family's model without memory for its weights: its config is all that it counts positions by."""
        with torch.device("meta"):
            return AutoModel.from_config(self.config)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bare_model"}


def load_processor(target: TargetSection, where: Location, config: Any, options: HFVisionOptions) -> Any:
    """The transformers processor that lies at `where`, for a model of `config`, with the options' image sizes.

    Without torchvision images are read by Pillow, and videos are not read. Raises UserError if there is no processor.
    """
    kind = AutoProcessor if is_torchvision_available() else without_videos(PROCESSOR_MAPPING[type(config)])
    with explained(target, where):
        processor = kind.from_pretrained(
            where.name, revision=where.revision, trust_remote_code=target.trust_remote_code
        )
    size = processor.image_processor.size
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if (pixels := getattr(options, key)) is not None:
            size[edge] = pixels
    if size["shortest_edge"] > size["longest_edge"]:
        raise UserError(
            f"backbone.min_pixels and max_pixels: with what the target's files say, images would have at least "
            f"{size['shortest_edge']} pixels and at most {size['longest_edge']}; set both"
        )
    return processor


def without_videos(kind: type[ProcessorMixin]) -> Any:
    """The same class of processors for who has nothing to read videos with: transformers refuses to make it then."""

    class ImagesOnly(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        def __reduce__(self) -> Any:
            return _restored, (kind, vars(self))

    ImagesOnly.__name__ = kind.__name__  # which is what transformers writes and looks for
    return ImagesOnly


def _restored(kind: type[ProcessorMixin], state: dict[str, Any]) -> Any:
    """What `ImagesOnly` is unpickled as."""
    processor = object.__new__(without_videos(kind))
    vars(processor).update(state)
    return processor


def _metadata(video: LoadedMedium) -> VideoMetadata:
    count = len(video.frames)
    return VideoMetadata(
        total_num_frames=count,
        fps=video.fps,
        width=video.frames[0].width,
        height=video.frames[0].height,
        frames_indices=list(range(count)),
    )
