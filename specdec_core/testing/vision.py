"""The contract of a backbone whose targets read images."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from specdec_core.capture.features import CapturePlan
from specdec_core.config.run import TargetSection
from specdec_core.data.batch import concatenated
from specdec_core.data.media import LoadedMedium
from specdec_core.nn.rotary import Rotary
from specdec_core.testing.backbone import BackboneContract
from specdec_core.testing.capturing import check_generation
from specdec_core.testing.compare import TOLERANCE, assert_all_same, assert_close, assert_same
from specdec_core.testing.family import Values, assert_features, everything, own_model, own_values
from specdec_core.testing.promises import promise
from specdec_core.testing.scenes import Inputs, Scene, VisionFamily, moving, pictures, words
from specdec_core.testing.sessions import Prompt


class VisionBackboneContract(BackboneContract):
    """What a backbone promises whose `media` gives a processor, besides all that a backbone promises:

        class TestMine(VisionBackboneContract):
            name = "my-family"

            def make_target(self, directory):
                tokens = {"image_token": "<image>"}
                tokenizer = save_tokenizer(directory, 512, special_tokens=tokens, shown={"image": "<image>"})
                config = MyConfig(..., image_token_id=tokenizer.image_token_id)
                save_random_model(config, directory)
                save_processor(directory, config, MyImageProcessorPil(...))

    `sizes` are heights and widths of its images: a few tokens each, and not all of one number. See docs/contracts.md.
    """

    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((24, 40), (16, 16), (32, 24))

    def processor(self, directory: Path) -> Any:
        """The family's own processor. Default: transformers', which says which tokens are of images or videos."""
        return own_processor(directory)

    def own_ids(self, directory: Path, scene: Scene) -> tuple[Tensor, Inputs]:
        """What the family's own processor makes of a scene: ids [n], and the model's further inputs."""
        from transformers.video_utils import VideoMetadata

        given: dict[str, Any] = {}
        if images := scene.of_kind("image"):
            given["images"] = [image.frames[0] for image in images]
        if videos := scene.of_kind("video"):
            given |= {"videos": [[*video.frames] for video in videos], "do_sample_frames": False}
            given["video_metadata"] = [
                VideoMetadata(len(video.frames), video.fps, frames_indices=[*range(len(video.frames))])
                for video in videos
            ]
        output = self.processor(directory)(text=[scene.text], return_tensors="pt", add_special_tokens=False, **given)
        inputs = {name: torch.as_tensor(output[name]) for name in scene.inputs if name in output}
        return output["input_ids"][0], inputs

    def own_inputs(self, directory: Path, ids: Sequence[int], inputs: Inputs) -> dict[str, Any]:
        """The keyword arguments besides ids by which transformers' model counts positions by itself."""
        types = torch.tensor(self.processor(directory).create_mm_token_type_ids([[*ids]]))
        return {"mm_token_type_ids": types, **inputs} if inputs else {}

    def own_positions(self, directory: Path, ids: Sequence[int], inputs: Inputs) -> Tensor:
        """The positions [A, n] that transformers' model gives its language model for one text."""
        model = own_model(directory)
        found: list[Tensor] = []
        handle = model.get_decoder().rotary_emb.register_forward_pre_hook(
            lambda _, args, kwargs: found.append(args[1] if len(args) > 1 else kwargs["position_ids"]),
            with_kwargs=True,
        )
        model(torch.tensor([list(ids)]), **self.own_inputs(directory, ids, inputs))
        handle.remove()
        return found[0][:, 0]

    def own_rotary(self, directory: Path, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [n, d] by which transformers' language model turns queries and keys at positions [A, n]."""
        cos, sin = own_model(directory).get_decoder().rotary_emb(torch.zeros(1), positions[:, None])
        return cos[0], sin[0]

    def reference(self, directory: Path, ids: Sequence[int], inputs: Inputs | None = None) -> Values:
        """What the model itself computes for a document; `inputs` are those of its images."""
        return own_values(own_model(directory), ids, **self.own_inputs(directory, ids, inputs or {}))

    @pytest.fixture
    def family(self, tmp_path_factory: pytest.TempPathFactory) -> VisionFamily:
        """The backbone with its tiny target, loaded once."""
        return self._vision_family(tmp_path_factory.getbasetemp())

    @pytest.fixture(params=["text", "images"])
    def prompt(self, request: pytest.FixtureRequest, family: VisionFamily) -> Prompt:
        """Prompts of text, and prompts with images."""
        if request.param == "text":
            return family.ids
        scenes = cache(lambda seed: family.scene([words(seed), *pictures(self.sizes[:1], seed), "?"]))
        return lambda _, seed: [*scenes(seed).ids]

    @classmethod
    @cache
    def _vision_family(cls, temporary: Path) -> VisionFamily:
        contract, family = cls(), cls._family(temporary)
        directory = Path(family.section.path)
        media = family.backbone.media(family.section)
        assert media is not None, f"the backbone gives no media processor for {family.section.path}"

        seen: dict[tuple[tuple[int, ...], int], Values] = {}

        def values(ids: Sequence[int], inputs: Inputs) -> Values:
            key = (tuple(ids), id(inputs) if inputs else 0)  # scenes are kept, and their inputs with them
            if key not in seen:
                seen[key] = contract.reference(directory, ids, inputs)
            return seen[key]

        seeing = VisionFamily(
            family.backbone,
            family.section,
            family.target,
            lambda ids: values(ids, seeing.inputs(ids)),
            lambda rows: seeing.rows(rows),
            media,
            lambda scene: contract.own_ids(directory, scene),
            lambda ids, inputs: contract.own_positions(directory, ids, inputs),
            values,
        )
        return seeing

    def scenes(self, family: VisionFamily) -> list[Scene]:
        """One image; several, with text between; one beside another of another size; an answer after them."""
        first, second, third = pictures((self.sizes * 3)[:3], seed=7)
        return [
            family.scene([first, words(1)]),
            family.scene([words(2), second, words(3), third, words(4)], answer=words(5)),
            family.scene([third, first, "?"], answer=words(6)),
        ]

    @promise("media")
    def test_images_become_what_the_familys_own_processor_makes_of_them(self, family: VisionFamily) -> None:
        """Tokens and inputs, of one image and of several."""
        for scene in self.scenes(family):
            self._check_own(family, scene)

    @promise("media")
    def test_videos_become_what_the_familys_own_processor_makes_of_them(self, family: VisionFamily) -> None:
        """Alone and among images, with and without a number of frames per second."""
        if "video" not in family.media.markers:
            pytest.skip("this target reads no videos here")
        for parts in self._with_videos():
            scene = family.scene(parts, answer=words(6))
            self._check_own(family, scene)
            self._check_positions(family, scene)
            self._check_captures(family, [[scene]])

    @promise("media")
    def test_an_image_is_the_same_beside_others(self, family: VisionFamily) -> None:
        """So that conversations can be cut, and rows be made of any of them."""
        media = [*pictures(self.sizes, seed=3)]
        together, alone = family.media.process(media), [family.media.process([medium]) for medium in media]
        found = [processed.replacements[0] for processed in alone]
        assert found == [*together.replacements], "what stands for an image depends on the images beside it"
        joined = concatenated(processed.inputs for processed in alone)
        assert_all_same(joined, together.inputs, "of images one by one, the input")
        nothing = family.media.process([])
        assert not [*nothing.replacements, *nothing.inputs], f"no media give {nothing}"

    @promise("media")
    def test_what_reads_media_can_be_sent_to_another_process(self, family: VisionFamily) -> None:
        """As data is prepared by several."""
        [scene, *_] = self.scenes(family)
        family.media.positions(torch.tensor(scene.ids), scene.inputs)
        other = pickle.loads(pickle.dumps(family.media))
        assert other.fingerprint == family.media.fingerprint, "in another process the fingerprint is another"
        assert_all_same(other.process(scene.media).inputs, scene.inputs, "in another process, the input")
        again = family.backbone.media(family.section)
        assert again is not None
        assert again.fingerprint == family.media.fingerprint, "the fingerprint of the same target changes"

    @promise("facts")
    def test_facts_say_which_axis_each_rotary_dimension_reads(self, family: VisionFamily) -> None:
        """A rotary embedding made of `rope_parameters` turns by the angles by which the model's own does."""
        facts, directory = family.target.facts, Path(family.section.path)
        axes = family.media.positions(torch.tensor([3]), {}).shape[0]
        positions = torch.randint(0, 50, (axes, 30), generator=torch.Generator().manual_seed(0))
        found = Rotary({"head_dim": facts.head_dim, "rope_parameters": facts.rope_parameters})(positions)
        expected = self.own_rotary(directory, positions)
        for name, ours, theirs in zip(("cos", "sin"), found, expected, strict=True):
            assert_close(ours, theirs, f"{name} by rope_parameters {facts.rope_parameters}")

    @promise("positions")
    def test_positions_are_the_models_own(self, family: VisionFamily) -> None:
        """Of texts with and without images; and an answer goes on from the last token."""
        for scene in self.scenes(family):
            self._check_positions(family, scene)
        ids = family.ids(9, 1)
        found = family.media.positions(torch.tensor(ids), {})
        expected = torch.arange(9).expand(found.shape)
        assert_same(found, expected, "positions of text")
        assert_same(family.own_positions(ids, {}), expected, "the model's own positions of text")

    @promise("images")
    def test_captures_of_images_are_the_models_own_states(self, family: VisionFamily) -> None:
        """Alone, beside texts, padded and packed, in any mixture, each has the states that the model gives it alone."""
        one, two, three = self.scenes(family)
        text, short = family.ids(17, 1), family.ids(3, 2)
        for rows in (
            [[one]],
            [[one], [two]],
            [[text], [three]],
            [[two], [short, text]],
            [[text, one, short, two], [three, three], [short]],
        ):
            self._check_captures(family, rows)

    @promise("images")
    def test_a_draft_may_read_images_or_placeholders(self, family: VisionFamily) -> None:
        """`embeds` has the images in place, `embed` has not; beside them they are the same."""
        _, scene, _ = self.scenes(family)
        embeds = family.target.capture(family.rows([[scene]]), CapturePlan(embeds=True)).embeds
        assert embeds is not None
        plain, at = family.target.embed(torch.tensor([scene.ids])), _places(scene)
        assert_close(embeds[:, ~at], plain[:, ~at], "beside the images, embeds and embed: the first")
        moved = (embeds[:, at] - plain[:, at]).abs().amax(-1)
        assert bool((moved > TOLERANCE).all()), "embeds has a placeholder where an image should be"

    @promise("images")
    def test_an_image_changes_what_comes_after_it_in_its_conversation_and_nothing_else(
        self, family: VisionFamily
    ) -> None:
        """One image of several is exchanged, in the middle of a row."""
        first, second, other = (
            next(pictures([size], seed))
            for size, seed in zip([self.sizes[0], self.sizes[1], self.sizes[1]], (1, 2, 3), strict=True)
        )
        before, scene, changed, after = (
            family.scene([first, words(1)]),
            family.scene([words(2), first, words(3), second, words(4)], answer=words(5)),
            family.scene([words(2), first, words(3), other, words(4)], answer=words(5)),
            family.scene([second, words(6)]),
        )
        rows = [family.rows([[before, middle, after], [after]]) for middle in (scene, changed)]
        assert torch.equal(rows[0].ids, rows[1].ids), "images of one size do not have the same number of tokens"
        plan = everything(family.target)
        found, expected = (family.target.capture(batch, plan) for batch in rows)
        start, (begin, end), stop = len(before.ids), scene.places[1], len(before.ids) + len(scene.ids)
        at = slice(start + begin, start + end)
        assert found.embeds is not None
        for name, state in {"embeds": found.embeds, **{f"layer {k}": x for k, x in found.hidden.items()}}.items():
            theirs = expected.embeds if name == "embeds" else expected.hidden[int(name.removeprefix("layer "))]
            assert theirs is not None
            moved = (state - theirs).abs().amax(-1) > TOLERANCE
            reach = slice(at.start, at.stop if name in ("embeds", "layer 0") else stop)
            assert bool(moved[0, at].any()), f"{name}: nothing changes where the image is"
            if name not in ("embeds", "layer 0"):
                assert bool(moved[0, at.stop : stop].all()), f"{name}: a token after the image does not see it"
            moved[0, reach] = False
            assert not bool(moved.any()), f"{name}: the image changes slots {moved.nonzero().tolist()} of other texts"

    @promise("generation")
    def test_generation_reads_images(self, family: VisionFamily) -> None:
        """A batch of prompts with one image, with several and with none."""
        [one, _, three] = self.scenes(family)
        check_generation(family, [[*one.ids], family.ids(5, 5), [*three.ids]])

    def _with_videos(self) -> list[list[str | LoadedMedium]]:
        image = next(pictures(self.sizes[:1], 5))
        first, second = moving(self.sizes[0], 4, 1), moving(self.sizes[1], 3, 2, fps=2.0)
        return [[words(1), first, words(2)], [second, words(1), image, words(2), first]]

    def _check_own(self, family: VisionFamily, scene: Scene) -> None:
        ids, inputs = family.own_ids(scene)
        assert [*scene.ids] == ids.tolist(), f"tokens are {[*scene.ids]}, the family's own are {ids.tolist()}"
        assert_all_same(scene.inputs, inputs, "input")

    def _check_positions(self, family: VisionFamily, scene: Scene) -> None:
        found = family.media.positions(torch.tensor(scene.ids), scene.inputs)
        assert_same(found, family.own_positions(scene.ids, scene.inputs), "positions")
        more = torch.tensor([*scene.ids, *family.ids(4, 1)])
        after = family.media.positions(more, scene.inputs)[:, -4:] - found[:, -1].max()
        assert bool((after == torch.arange(1, 5)).all()), f"after a text's last position come {after.tolist()} more"

    def _check_captures(self, family: VisionFamily, rows: Sequence[Sequence[Scene | list[int]]]) -> None:
        plan = everything(family.target)
        captured = family.target.capture(family.rows(rows), plan)
        for number, row in enumerate(rows):
            start = 0
            for document in row:
                ids, inputs = (document.ids, document.inputs) if isinstance(document, Scene) else (document, {})
                slots = slice(start, start := start + len(ids))
                found = captured.map(lambda x, n=number, s=slots: x[n : n + 1, s])  # type: ignore[misc]
                what = f"row {number}, slots {slots.start} to {slots.stop}"
                assert_features(found, family.values(ids, inputs).features, what)


@cache
def own_processor(directory: Path) -> Any:
    """Transformers' own processor of a directory."""
    from transformers import AutoConfig

    from specdec_core.target.hf_load import Location
    from specdec_core.target.hf_media import load_processor
    from specdec_core.target.hf_options import HFVisionOptions

    where = Location(str(directory), None, is_local=True)
    config = AutoConfig.from_pretrained(directory)
    return load_processor(TargetSection(path=str(directory)), where, config, HFVisionOptions())


def _places(scene: Scene) -> Tensor:
    """[n] bool: True where a medium stands."""
    at = torch.zeros(len(scene.ids), dtype=torch.bool)
    for start, end in scene.places:
        at[start:end] = True
    return at
