from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_targets import PlainTarget, ScriptedDrafter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec_core.algorithm.proposal import Proposal, Sampling, Verified
from specdec_core.decode.loop import Emission, decode
from specdec_core.decode.text import TextStream
from specdec_core.decode.verify import accept_greedy
from specdec_core.errors import UserError

VOCAB = 29
STOPS = (3, 17)

Script = Callable[[list[int], int], Sequence[int]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,  # wide enough that greedy text wanders before it stops
        eos_token_id=list(STOPS),
        pad_token_id=0,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def target(model: LlamaForCausalLM) -> PlainTarget:
    return PlainTarget(lambda ids: model(ids.unsqueeze(0)).logits[0], VOCAB, stop_token_ids=STOPS)


def tokens_of(emissions: Sequence[Emission]) -> list[int]:
    return [token for emission in emissions for token in emission.tokens]


def counting_target(vocab: int = 50, context: int = 10**6) -> PlainTarget:
    """After token t comes t + 1."""
    return PlainTarget(lambda ids: torch.eye(vocab)[(ids + 1) % vocab], vocab, context=context)


def counting(text: list[int], n: int) -> list[int]:
    return [text[-1] + 1 + i for i in range(n)]


def wrong_at(position: int) -> Script:
    def script(text: list[int], n: int) -> list[int]:
        return [token + (i == position) for i, token in enumerate(counting(text, n))]

    return script


@pytest.fixture(scope="module")
def references(model: LlamaForCausalLM) -> list[tuple[list[int], int, list[int]]]:
    """Random prompts, a limit, and what transformers writes."""
    draw, cases = random.Random(0), []
    for _ in range(30):
        prompt = [draw.randrange(VOCAB) for _ in range(draw.randrange(1, 12))]
        limit = draw.randrange(1, 40)
        ids = torch.tensor([prompt])
        whole = torch.ones_like(ids)  # without it generate takes pad tokens in the prompt for padding
        text = model.generate(ids, attention_mask=whole, max_new_tokens=limit, do_sample=False)[0].tolist()
        cases.append((prompt, limit, text))
    assert 5 < sum(text[-1] in STOPS for _, _, text in cases) < 25  # both ways of ending are met
    return cases


def reference_drafter(kind: str, text: list[int], draw: random.Random) -> ScriptedDrafter | None:
    scripts: dict[str, Script] = {
        "perfect": lambda past, n: text[len(past) : len(past) + n],
        "one wrong": lambda past, n: [(t + (draw.random() < 0.3)) % VOCAB for t in text[len(past) : len(past) + n]],
        "random": lambda past, n: [draw.randrange(VOCAB) for _ in range(draw.randrange(n + 1))],
        "stops": lambda past, n: [draw.choice(STOPS) for _ in range(n)],
        "empty": lambda past, n: [],
        "too many": lambda past, n: [*text, *[0] * 60][len(past) : len(past) + n + 3],
    }
    return ScriptedDrafter(scripts[kind]) if kind in scripts else None


@pytest.mark.parametrize("kind", ["none", "perfect", "one wrong", "random", "stops", "empty", "too many"])
def test_greedy_text_is_what_generate_writes(
    target: PlainTarget, references: list[tuple[list[int], int, list[int]]], kind: str
) -> None:
    draw = random.Random(kind)
    for prompt, limit, text in references:
        k = draw.randrange(1, 7)
        drafter = reference_drafter(kind, text, draw)
        emissions = list(
            decode(target, drafter, prompt, num_draft_tokens=k, max_new_tokens=limit, stop_token_ids=STOPS)
        )
        assert prompt + tokens_of(emissions) == text
        assert all(0 <= e.accepted <= e.proposed <= k for e in emissions)
        assert all(e.accepted in (len(e.tokens), len(e.tokens) - 1) for e in emissions)


@given(st.integers(1, 6), st.integers(1, 40))
def test_a_perfect_draft_is_accepted_whole_and_the_length_is_exact(k: int, length: int) -> None:
    target = counting_target(vocab=100)
    emissions = list(decode(target, ScriptedDrafter(counting), [4, 5], num_draft_tokens=k, max_new_tokens=length))
    assert tokens_of(emissions) == [6 + i for i in range(length)]
    first, *rounds = emissions
    assert (first.prefill, first.tokens, first.accepted, first.proposed, first.nodes) == (True, (6,), 0, 0, 0)
    assert len(rounds) == -(-(length - 1) // (k + 1))
    assert not any(r.prefill for r in rounds)
    assert all(r.accepted == r.proposed == r.nodes == len(r.tokens) - 1 for r in rounds)
    assert target.session.forwards == [len(r.tokens) for r in rounds]


@pytest.mark.parametrize("position", range(4))
def test_acceptance_ends_at_the_first_wrong_token(position: int) -> None:
    drafter = ScriptedDrafter(wrong_at(position))
    emissions = list(decode(counting_target(100), drafter, [0], num_draft_tokens=4, max_new_tokens=30))
    assert tokens_of(emissions) == list(range(1, 31))
    assert all(e.accepted == min(position, e.proposed) for e in emissions[1:])
    assert max(e.proposed for e in emissions) == 4


def test_text_ends_at_a_stop_token_among_the_accepted() -> None:
    emissions = list(
        decode(
            counting_target(), ScriptedDrafter(counting), [0], num_draft_tokens=5, max_new_tokens=30,
            stop_token_ids=[9],
        )
    )  # fmt: skip
    assert [e.tokens for e in emissions] == [(1,), (2, 3, 4, 5, 6, 7), (8, 9)]
    assert (emissions[-1].accepted, emissions[-1].proposed, emissions[-1].nodes) == (2, 2, 2)


def test_a_stop_token_that_the_target_puts_after_the_draft_ends_the_text() -> None:
    emissions = list(decode(counting_target(), ScriptedDrafter(counting), [0], num_draft_tokens=2, stop_token_ids=[4]))
    assert [(e.tokens, e.accepted) for e in emissions] == [((1,), 0), ((2, 3, 4), 2)]


@pytest.mark.parametrize("ending", [{"stop_token_ids": [1]}, {"max_new_tokens": 1}])
def test_a_text_that_ends_with_its_first_token_asks_the_drafter_nothing(ending: dict[str, object]) -> None:
    drafter = ScriptedDrafter(counting)
    (only,) = decode(counting_target(), drafter, [0], **ending)  # type: ignore[arg-type]
    assert only.tokens == (1,)
    assert drafter.text == []


def test_no_more_is_asked_for_than_can_be_emitted() -> None:
    drafter = ScriptedDrafter(counting)
    list(decode(counting_target(), drafter, [0], num_draft_tokens=4, max_new_tokens=9))
    assert drafter.asked == [4, 2]


@pytest.mark.parametrize("length", [7, 8, 20])
def test_the_context_is_filled_and_not_passed(length: int) -> None:
    target = counting_target(context=10)
    emissions = decode(target, ScriptedDrafter(counting), [0, 1, 2], max_new_tokens=length)
    assert tokens_of(list(emissions)) == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("prompt", "length", "message"),
    [
        ([], 5, "the prompt is empty"),
        ([1] * 10, 5, "the prompt has 10 tokens and the target's context holds 10"),
        ([1], 0, "max_new_tokens is 0"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompt: list[int], length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(decode(counting_target(context=10), None, prompt, max_new_tokens=length))


class FixedDrafter(ScriptedDrafter):
    def __init__(self, proposal: Proposal) -> None:
        super().__init__(lambda text, n: [])
        self.proposal = proposal

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        return self.proposal


def test_a_proposal_needs_a_distribution_for_each_token() -> None:
    proposal = Proposal(torch.tensor([1, 2]), probs=torch.ones(1, 50))
    with pytest.raises(ValueError, match="2 tokens came with 1 distributions"):
        list(decode(counting_target(), FixedDrafter(proposal), [0]))


def test_tokens_stream_and_the_callers_gradients_are_left_alone() -> None:
    target = counting_target()
    emissions = decode(target, ScriptedDrafter(counting), [0], max_new_tokens=20)
    assert next(emissions).tokens == (1,)
    assert target.session.forwards == []
    next(emissions)
    assert len(target.session.forwards) == 1
    assert not torch.is_inference_mode_enabled()
    emissions.close()


def test_time_goes_to_whom_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class SlowDrafter(ScriptedDrafter):
        def begin(self, verified: Verified) -> None:
            spend(10)

        def accept(self, verified: Verified) -> None:
            spend(10)

        def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
            spend(100)
            return Proposal(torch.tensor([0]))

    def slow(ids: torch.Tensor) -> torch.Tensor:
        spend(1)
        return torch.eye(50)[ids + 1]

    monkeypatch.setattr("specdec_core.decode.clock.time.perf_counter", lambda: now)
    emissions = decode(PlainTarget(slow, 50), SlowDrafter(counting), [0], max_new_tokens=4)
    times = [(e.draft_seconds, e.target_seconds) for e in emissions]
    # The last round has one token left to emit and drafts nothing.
    assert times == [(10, 1), (100, 1), (110, 1), (10, 1)]


@given(st.data())
def test_greedy_acceptance_equals_a_plain_loop(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 6))
    ids = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    tokens = data.draw(ids)
    best = [*data.draw(ids), data.draw(st.integers(0, 2))]
    count = 0
    while count < n and tokens[count] == best[count]:
        count += 1
    accepted, token = accept_greedy(torch.tensor(tokens, dtype=torch.int64), torch.eye(3)[best])
    assert (accepted.tolist(), token.tolist()) == ([count], [best[count]])


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and a few merges that end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*alphabet, "<stop>"])}
    merges = [("Ã", "©"), ("ð", "Ł"), ("a", "ð"), ("Ġ", "a")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<stop>")


def pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(text=st.text())
def test_streamed_text_is_the_text(byte_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    streamed = pieces(byte_tokenizer, ids)
    assert "".join(streamed) == text
    assert text.find("\ufffd") >= 0 or not any("\ufffd" in piece for piece in streamed)


@given(ids=st.lists(st.integers(0, 260)))
@settings(max_examples=300)
def test_streamed_bytes_that_are_no_text_decode_as_a_whole(
    byte_tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    assert "".join(pieces(byte_tokenizer, ids)) == byte_tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_split_over_tokens_comes_once_and_a_stop_token_not_at_all(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    streamed = pieces(byte_tokenizer, [*byte_tokenizer.encode("a€!"), byte_tokenizer.eos_token_id])
    assert streamed == ["a", "", "", "€", "!", "", ""]


def test_an_unfinished_character_is_shown_at_the_end(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(byte_tokenizer, byte_tokenizer.encode("a€")[:-1]) == ["a", "", "", "\ufffd"]
