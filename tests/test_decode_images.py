"""Decoding prompts with images on a tiny random vision-language target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_targets import PlainTarget
from tiny_vision import image_part, picture, text_part
from tiny_vl import load_vision_model, save_vision_model

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import decode, positions_after, prompt_batch
from specdec_core.decode.text import PromptEncoder
from specdec_core.errors import UserError
from specdec_core.evaluate.compare import logit_gap
from specdec_core.nn.rotary import Rotary
from specdec_core.target.base import Target
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config
from specdec_medusa.algorithm import Medusa
from specdec_medusa.config import MedusaConfig
from specdec_ngram.drafter import LookupDrafter

PLAN = CapturePlan(layers=(3,), last_hidden=True, embeds=True)
LENGTH = 24


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, PromptEncoder]:
    return load_vision_model(save_vision_model(tmp_path_factory.mktemp("vl")), tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def target(loaded: tuple[Target, PromptEncoder]) -> Target:
    return loaded[0]


@pytest.fixture(scope="module")
def ask(loaded: tuple[Target, PromptEncoder], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Batch]:
    """Seeds of images -> a prompt that shows them and asks."""
    directory = tmp_path_factory.mktemp("images")

    def asked(*seeds: int) -> Batch:
        for seed in seeds:
            picture(50 + 9 * seed, 90 - 11 * seed, seed).save(directory / f"{seed}.png")
        parts = [image_part(f"{seed}.png") for seed in seeds]
        return loaded[1].encode([{"role": "user", "content": [*parts, text_part("the red apple?")]}], directory)

    return asked


class Watcher(Drafter):
    """Proposes what follows in `text`, of which every third token is wrong; keeps what it is given."""

    def __init__(self, text: list[int]) -> None:
        self.text = text
        self.given: list[Verified] = []

    def begin(self, verified: Verified) -> None:
        self.given = [verified]

    def accept(self, verified: Verified) -> None:
        self.given.append(verified)

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        end = sum(verified.ids.numel() - 1 for verified in self.given) + 1
        guesses = [token + (slot % 3 == 0) for slot, token in enumerate(self.text[end : end + num_tokens], end)]
        return Proposal(torch.tensor(guesses, dtype=torch.int64))


def written(target: Target, prompt: Batch, drafter: Drafter | None = None, plan: CapturePlan = PLAN) -> list[int]:
    emissions = decode(target, drafter, prompt, plan=plan, num_draft_tokens=3, max_new_tokens=LENGTH)
    return [token for emission in emissions for token in emission.tokens]


def built(algorithm: TrainedAlgorithm, target: Target) -> Drafter:
    torch.manual_seed(0)
    draft = algorithm.build_draft(algorithm.draft_config(target.facts, DraftSection()), target, None)
    algorithm.init_draft(draft, target)
    return algorithm.drafter(draft.eval(), target)


DRAFTERS: dict[str, Callable[[Target], tuple[Drafter, CapturePlan]]] = {
    "n-gram lookup": lambda target: (LookupDrafter(3, 1), CapturePlan()),
    "eagle3": lambda target: (built(e := Eagle3(Eagle3Config()), target), e.capture_plan(target.facts)),
    "eagle3 by slot": lambda target: (
        built(e := Eagle3(Eagle3Config(positions="sequential")), target),
        e.capture_plan(target.facts),
    ),
    "medusa": lambda target: (built(m := Medusa(MedusaConfig(tree=7)), target), m.capture_plan(target.facts)),
}


@pytest.mark.parametrize("seeds", [(), (1,), (2, 3)])
def test_the_text_is_what_the_model_itself_writes_of_the_images(
    target: Target, ask: Callable[..., Batch], seeds: tuple[int, ...]
) -> None:
    prompt = ask(*seeds)
    (own,) = target.generate([prompt.ids[0].tolist()], LENGTH, [prompt.extras])
    assert written(target, prompt) == own
    assert len(set(own)) > 5
    if seeds:
        assert written(target, ask(*(seed + 1 for seed in seeds))) != own


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafts_do_not_change_it(target: Target, ask: Callable[..., Batch], name: str) -> None:
    drafter, plan = DRAFTERS[name](target)
    for seeds in ((1,), (2, 3), ()):
        assert written(target, ask(*seeds), drafter, plan) == written(target, ask(*seeds))


@torch.no_grad()
def test_a_drafter_is_given_the_positions_and_embeddings_that_the_target_reads(
    target: Target, loaded: tuple[Target, PromptEncoder], ask: Callable[..., Batch]
) -> None:
    prompt = ask(2, 3)
    length = prompt.ids.shape[1]
    text = [*prompt.ids[0].tolist(), *written(target, prompt)]
    drafter = Watcher(text)
    assert written(target, prompt, drafter) == text[length:]
    assert len({verified.ids.numel() for verified in drafter.given[1:]}) > 1  # some guesses stood and some did not

    read = sum(verified.ids.numel() - 1 for verified in drafter.given)
    assert [verified.start for verified in drafter.given] == [
        0,
        *(length + before for before in _sums([v.ids.numel() - 1 for v in drafter.given[1:]])[:-1]),
    ]
    ids = torch.tensor(text[:read])
    media = loaded[1].media
    assert media is not None
    expected = media.positions(ids, prompt.extras)
    assert not torch.equal(expected[0], expected[2])
    assert expected.max() < read - 1  # an image takes fewer positions than tokens
    assert torch.equal(torch.cat([verified.positions for verified in drafter.given], dim=1), expected)

    whole = target.capture(prompt_batch(ids, expected, prompt.extras), PLAN)
    for name in ("embeds", "last_hidden"):
        given = torch.cat([getattr(verified.features, name) for verified in drafter.given], dim=1)
        torch.testing.assert_close(given, getattr(whole, name), rtol=1e-4, atol=1e-4)
    assert whole.embeds is not None
    placeholders = (whole.embeds - target.embed(ids)).abs().amax(-1) > 1e-6
    assert placeholders.sum() == prompt.extras["image_grid_thw"].prod(-1).sum() // 4


def test_a_draft_turns_by_the_angles_of_the_target(target: Target, ask: Callable[..., Batch]) -> None:
    prompt = ask(1, 3)
    config = Eagle3(Eagle3Config()).draft_config(target.facts, DraftSection())
    own = target.model.get_decoder().rotary_emb  # type: ignore[attr-defined]
    expected = own(torch.zeros(1), prompt.positions)
    found = Rotary(config)(prompt.positions)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def _sums(lengths: list[int]) -> list[int]:
    found = [0]
    for length in lengths:
        found.append(found[-1] + length)
    return found


def test_the_context_counts_tokens_and_not_positions(target: Target, ask: Callable[..., Batch]) -> None:
    prompt = ask(3)
    length = prompt.ids.shape[1]
    assert prompt.positions.max() + 1 < length
    whole, facts = written(target, prompt), target.facts
    try:
        target.facts = replace(facts, max_position_embeddings=length + 5)
        assert written(target, prompt) == whole[:5]
        target.facts = replace(facts, max_position_embeddings=length)
        with pytest.raises(UserError, match=f"prompt has {length} tokens and the target's context holds {length}"):
            written(target, prompt)
    finally:
        target.facts = facts


@torch.no_grad()
def test_the_gap_between_two_tokens_is_that_after_the_images(target: Target, ask: Callable[..., Batch]) -> None:
    prompt = ask(2)
    answer = written(target, prompt)
    session = target.decode(CapturePlan(), 99)
    logits = [session.prefill(prompt)[0]]
    for token in answer[:6]:
        logits.append(session.forward(torch.tensor([token]))[0][0])
    for count in (0, 1, 6):
        top, other = answer[count], (answer[count] + 5) % target.facts.vocab_size
        expected = float(logits[count].max() - logits[count][other])
        assert logit_gap(target, prompt, answer[:count], top, other) == pytest.approx(expected, abs=1e-4)


def test_positions_go_on_from_the_highest_on_every_axis() -> None:
    positions = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3], [0, 4, 4, 2]])
    prompt = prompt_batch(torch.arange(4), positions)
    assert prompt.positions.shape == (3, 1, 4)
    assert positions_after(prompt, 4, 3).tolist() == [[5, 6, 7]] * 3
    assert positions_after(prompt, 6, 1).tolist() == [[7]] * 3
    assert positions_after(prompt_batch(torch.arange(4)), 4, 2).tolist() == [4, 5]


def test_a_prompt_is_one_row() -> None:
    two = prompt_batch(torch.arange(4))
    two = replace(two, ids=two.ids.expand(2, -1))
    with pytest.raises(ValueError, match="a prompt is one row, the batch has 2"):
        next(decode(PlainTarget(lambda ids: torch.eye(9)[ids], 9), None, two))


class TestEncoding:
    def test_text_is_encoded_as_the_tokenizer_does(self, loaded: tuple[Target, PromptEncoder]) -> None:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the red apple"}]
        tokenizer = loaded[0].tokenizer
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        found = loaded[1].encode(messages)
        assert found.ids[0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not found.loss_mask.any()
        assert found.extras == {}

    def test_images_of_a_data_uri_and_of_a_path_are_the_same(
        self, loaded: tuple[Target, PromptEncoder], tmp_path: Path
    ) -> None:
        from base64 import b64encode

        path = tmp_path / "a.png"
        picture().save(path)
        uri = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
        relative, absolute, inline = (
            loaded[1].encode([{"role": "user", "content": [image_part(source), text_part("?")]}], directory)
            for source, directory in (("a.png", tmp_path), (path, Path()), (uri, Path()))
        )
        for other in (absolute, inline):
            assert torch.equal(relative.ids, other.ids)
            assert torch.equal(relative.extras["pixel_values"], other.extras["pixel_values"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([image_part("b.png"), text_part("?")], r"^image 1 \(b.png\) is missing: there is no file"),
            ([image_part("a.txt")], r"^image 1 \(a.txt\) is no image: its first bytes are those of no known format"),
            ("<|image_pad|>?", r"^a message holds <\|image_pad\|>, which stands for an image or a video"),
            ([{"type": "audio"}], r'^a message has a part of type "audio", and this target reads text and images'),
            (3, r"^messages\[0\].content must be a string or a list of parts, found a number"),
        ],
    )
    def test_what_cannot_be_read_is_said_in_a_sentence(
        self, loaded: tuple[Target, PromptEncoder], tmp_path: Path, content: Any, message: str
    ) -> None:
        (tmp_path / "a.txt").write_text("a")
        with pytest.raises(UserError, match=message):
            loaded[1].encode([{"role": "user", "content": content}], tmp_path)

    def test_a_target_of_text_refuses_images(self, tiny_target: Target) -> None:
        with pytest.raises(
            UserError, match=r'a part of type "image", and this target reads text only; remove the part'
        ):
            PromptEncoder(tiny_target).encode([{"role": "user", "content": [image_part("a.png")]}])
