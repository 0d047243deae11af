"""What an algorithm promises of proposing tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import decode
from specdec_core.testing.batches import Document, batch_of, pack, random_ids, tree_paths
from specdec_core.testing.bench import IMAGE, Bench, Step, TrainedBench, recorded
from specdec_core.testing.compare import assert_close
from specdec_core.testing.promises import promise
from specdec_core.testing.step import OnTheBench, with_and_without_images
from specdec_core.testing.target import states_saying

PREFIXES = (2, 3, 8, 15)
"""Tokens known when a proposal is asked for."""
DRAWS = 60
NEW_TOKENS = 16
SURPRISE = 5.0
"""Standard deviations by which drawn tokens may be less or more likely than their distributions say."""


class DraftingContract(OnTheBench):
    """Of the drafter, alone and against the training step."""

    def training_states(self, draft: Draft, batch: Batch, features: Features) -> Tensor | None:
        """[K, S, H] what the training step computes of one row at each depth and slot for `draft.compute_logits` to
        read. Override it (see `specdec_core.testing.bench.recorded`) to have the drafter's own states compared with
        them. Default: None, only what is chosen and how probable it is are compared.
        """
        return None

    @promise("training-is-decoding")
    @with_and_without_images
    @torch.no_grad()
    def test_greedy_proposals_are_what_the_training_step_would_choose(self, images: bool) -> None:
        """The drafter continues a text greedily. On the text that it makes, for a target that says the same, the
        training step's `accuracy/d` of the slot where it began must be 1 for every depth d."""
        bench = self.trained(images=images)
        draft = bench.draft()
        depths = _depths(bench, draft, "accuracy")
        for count in _prefixes(bench):
            text = self._text(bench, count)
            drafter = bench.drafter(draft)
            drafter.begin(bench.verified(text))
            with recorded(draft) as states:
                chosen = _first_choices(drafter.propose(depths, Sampling()))
            assert chosen, f"after {count} tokens nothing is proposed"
            document = _agreeing(bench, bench.document(text + chosen), count)
            trained = self.training_states(draft, *pack([[document]]))
            for depth, state in enumerate(states if trained is not None else (), start=1):
                assert trained is not None
                what = f"after {count} tokens the drafter's state at depth {depth}, against the training step's,"
                assert_close(state.flatten(0, -2)[-1], trained[depth - 1, count - 2], what)
            slots = _Slots(bench, draft, document)
            for depth, token in enumerate(chosen, start=1):
                assert slots.at(count - 2, f"accuracy/{depth}") == 1, (
                    f"after {count} tokens the drafter's token at depth {depth} is {token}; the training step's choice "
                    "on the same text is another"
                )

    @promise("metrics")
    @torch.no_grad()
    def test_accuracy_counts_what_the_target_says_and_not_the_text(self) -> None:
        """The text goes on with another token than the drafter's first, which is the target's: `accuracy/1` is 1."""
        bench = self.trained()
        draft = bench.draft()
        _depths(bench, draft, "accuracy")
        for count in PREFIXES:
            text = self._text(bench, count)
            drafter = bench.drafter(draft)
            drafter.begin(bench.verified(text))
            first = _first_choices(drafter.propose(1, Sampling()))
            other = next(token for token in bench.sayable.tolist() if [token] != first)
            document = _agreeing(bench, bench.document(text + first), count)
            document = replace(document, ids=torch.tensor([*text, other]))
            assert _Slots(bench, draft, document).at(count - 2, "accuracy/1") == 1, (
                f"after {count} tokens draft and target say {first[0]}, the text goes on with {other}, and accuracy/1 "
                "is not 1 there"
            )

    @promise("training-is-decoding")
    @with_and_without_images
    @torch.no_grad()
    def test_sampled_proposals_come_from_the_distributions_of_the_training_step(self, images: bool) -> None:
        """The overlap of the proposal's `probs` with the target's distribution is the training step's `acceptance/d`
        on the text that the proposal makes."""
        bench = self.trained(images=images)
        draft = bench.draft()
        depths = _depths(bench, draft, "acceptance")
        for count in _prefixes(bench):
            text = self._text(bench, count)
            drafter = bench.drafter(draft)
            drafter.begin(bench.verified(text))
            proposal = drafter.propose(depths, Sampling(1.0, torch.Generator().manual_seed(count)))
            if proposal.probs is None:
                pytest.skip("its proposals are deterministic at temperature 1 too")
            document = bench.document(text + proposal.tokens.tolist())
            slots, logits = _Slots(bench, draft, document), bench.target.logits(_last_hidden(bench, document.ids))
            for depth, probs in enumerate(proposal.probs, start=1):
                overlap = torch.minimum(logits[count - 2 + depth].softmax(-1), probs).sum()
                found = slots.at(count - 2, f"acceptance/{depth}")
                what = f"after {count} tokens the training step's acceptance/{depth}, against the proposal's probs,"
                assert_close(torch.tensor(found), overlap, what)

    @promise("proposals")
    @torch.no_grad()
    def test_proposals_hold_target_ids_that_the_draft_can_say(self) -> None:
        """Chains and trees, greedy and sampled, of every length asked for."""
        bench = self.bench()
        sayable = {*bench.sayable.tolist()}
        propose = self._proposer(bench)
        for temperature in (0.0, 0.7):
            for count in (1, 2, 5):
                proposal = propose(count, temperature, count)
                tokens = proposal.tokens
                assert tokens.dtype == torch.int64, f"the tokens are {tokens.dtype}, not int64"
                assert tokens.ndim == 1, f"the tokens have shape {list(tokens.shape)}; they are one vector"
                depth = max(map(len, _paths(proposal)), default=0)
                assert depth <= count, f"asked for {count} tokens, the drafter proposes {depth} one after the other"
                strange = sorted({*tokens.tolist()} - sayable)
                assert not strange, f"the proposal holds {strange}, which are not ids of the draft vocabulary"
                self._check_probs(proposal, bench.facts.vocab_size)
                said = [tokens[path].tolist() for path in _paths(proposal)]
                twice = next((path for path in said if said.count(path) > 1), None)
                assert twice is None, f"the proposal holds the continuation {twice} twice; siblings must differ"

    @staticmethod
    def _check_probs(proposal: Proposal, vocab_size: int) -> None:
        if proposal.probs is None:
            return
        shape, wanted = list(proposal.probs.shape), [proposal.tokens.numel(), vocab_size]
        assert shape == wanted, f"probs have shape {shape}, expected {wanted}: one distribution a token, in target ids"
        assert_close(proposal.probs.sum(-1), torch.ones(shape[0]), "the sum of probs")
        own = proposal.probs.gather(1, proposal.tokens.unsqueeze(1))
        assert bool((own > 0).all()), "a token was proposed that has no probability in its probs"

    @promise("sampling")
    @torch.no_grad()
    def test_tokens_are_drawn_from_their_distributions(self) -> None:
        """Over many draws the mean of -log q(token) is the mean entropy of q, up to chance; above temperature 0 a
        proposal without probs is deterministic."""
        bench = self.bench()
        propose = self._proposer(bench)
        for temperature in (0.6, 1.5):
            excess, variance = 0.0, 0.0
            certain = set()
            for seed in range(DRAWS):
                proposal = propose(4, temperature, seed)
                if proposal.probs is None:
                    certain.add(tuple(proposal.tokens.tolist()))
                    continue
                for token, probs in zip(proposal.tokens.tolist(), proposal.probs.double(), strict=True):
                    surprise = -probs.clamp(min=1e-300).log()
                    entropy = float((probs * surprise).sum())
                    variance += float((probs * surprise.square()).sum()) - entropy**2
                    excess += float(surprise[token]) - entropy
            assert len(certain) <= 1, "without probs a proposal must be deterministic, and draws differ"
            off = abs(excess) / math.sqrt(variance) if variance > 1e-9 else 0.0
            assert off < SURPRISE, (
                f"at temperature {temperature} the tokens are {off:.1f} standard deviations less or more likely than "
                "their probs say; they are drawn from something else"
            )

    @promise("sampling")
    @torch.no_grad()
    def test_the_generator_given_is_the_only_source_of_chance(self) -> None:
        """The same generator gives the same tokens, whatever the global one does."""
        bench = self.bench()
        propose, found = self._proposer(bench), set()
        with torch.random.fork_rng(devices=[]):
            for seed in range(8):
                torch.manual_seed(seed)
                found.add(tuple(propose(4, 1.0, 5).tokens.tolist()))
        assert len(found) == 1, f"one generator gives {len(found)} different proposals"

    @promise("stale-guesses")
    @with_and_without_images
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @torch.no_grad()
    def test_after_accept_a_drafter_is_as_if_it_had_begun_on_the_longer_text(
        self, temperature: float, images: bool
    ) -> None:
        """Some, none or all of its guesses are accepted, several times over; it is also begun anew."""
        bench = self.bench(images=images)
        new, text = bench.drafters(), self._text(bench, 5)

        def propose(drafter: Drafter) -> Proposal:
            return drafter.propose(5, Sampling(temperature, torch.Generator().manual_seed(9)))

        drafter = new()
        for beginning in (self._text(bench, 14), text):
            drafter.begin(bench.verified(beginning))
            proposal = propose(drafter)
        for rounds, accepted in enumerate((5, 0, 2, 5, 1), start=1):
            guesses = _first_choices(proposal)
            start = len(text) - 1
            other = (guesses[accepted] if accepted < len(guesses) else text[-1]) + 1
            text = [*text, *guesses[:accepted], 3 + other % 90]
            drafter.accept(bench.verified(text, start))
            fresh = new()
            fresh.begin(bench.verified(text))
            proposal, expected = propose(drafter), propose(fresh)
            what = f"after {rounds} rounds, {accepted} of {len(guesses)} guesses accepted in the last,"
            assert proposal.tokens.tolist() == expected.tokens.tolist(), (
                f"{what} the drafter proposes {proposal.tokens.tolist()}, a fresh one {expected.tokens.tolist()}"
            )
            if proposal.probs is not None and expected.probs is not None:
                assert_close(proposal.probs, expected.probs, f"{what} probs")

    @promise("lossless")
    def test_greedy_decoding_writes_what_the_target_writes(self) -> None:
        """Token for token, for several prompts and lengths of proposals. The draft is trained on these texts first, so
        that some of its tokens stand."""
        bench = self.bench()
        prompts = [random_ids(length, bench.facts.vocab_size, length) for length in (1, 6, 11)]

        def written(drafter: Drafter | None, prompt: list[int], count: int) -> list[int]:
            emissions = decode(
                bench.target, drafter, prompt, plan=bench.plan, num_draft_tokens=count, max_new_tokens=NEW_TOKENS
            )
            return [token for emission in emissions for token in emission.tokens]

        texts = bench.target.generate(prompts, NEW_TOKENS)
        new = bench.drafters([bench.document([*prompt, *text]) for prompt, text in zip(prompts, texts, strict=True)])
        for prompt, count in zip(prompts, (3, 1, 6), strict=True):
            expected, found = written(None, prompt, count), written(new(), prompt, count)
            assert found == expected, f"the target alone writes {expected}, with the drafter {found}"

    @promise("stop-tokens")
    def test_a_draft_that_is_taught_to_stop_proposes_to_stop(self) -> None:
        """Trained on a text in which the stop token follows everything."""
        bench = self.trained()
        (stop,) = bench.facts.stop_token_ids
        text = self._text(bench, 3) + [stop] * 21
        document = _agreeing(bench, bench.document(text), 3)
        drafter = bench.drafters([document])()
        # A target that learns is captured in the step, and says by now what it was taught.
        features = bench.features(text) if bench.algorithm.trains_target else document.features
        with torch.no_grad():
            drafter.begin(Verified(document.ids[:12], features.select(slice(0, 11)), 0))
            found = _first_choices(drafter.propose(1, Sampling()))
        assert found == [stop], f"it proposes {found}, not the stop token {stop}"

    def _proposer(self, bench: Bench) -> Callable[[int, float, int], Proposal]:
        """(how many, temperature, seed) -> a proposal to follow one text, which is read anew for each."""
        drafter, verified = bench.drafters()(), bench.verified(self._text(bench, 9))

        def propose(count: int, temperature: float, seed: int) -> Proposal:
            drafter.begin(verified)
            return drafter.propose(count, Sampling(temperature, torch.Generator().manual_seed(seed)))

        return propose

    @staticmethod
    def _text(bench: Bench, count: int) -> list[int]:
        return random_ids(count, bench.facts.vocab_size, count)


def _prefixes(bench: Bench) -> list[int]:
    """Those of `PREFIXES` in which the whole image has been read."""
    return [count for count in PREFIXES if count > IMAGE.stop or not bench.images]


def _depths(bench: TrainedBench, draft: Draft, metric: str) -> int:
    """How many depths the training step measures; the test is skipped if none."""
    metrics = bench.rows(draft, [[bench.document(random_ids(40, 99, 1))]]).metrics
    depths = sum(name.startswith(f"{metric}/") for name in metrics)
    if not depths:
        pytest.skip(f"the training step has no metric {metric}/1")
    return depths


class _Slots:
    """The training step's metrics at one slot of a document at a time: what a metric's sum is with the first text in
    which the slot counts, less what it was one token before.

    Every token is learned, so each token more lets one slot more count at each depth.
    """

    def __init__(self, bench: TrainedBench, draft: Draft, document: Document) -> None:
        self.bench, self.draft, self.document = bench, draft, document
        self.steps: dict[int, Step] = {}

    def at(self, slot: int, metric: str) -> float:
        late = len(self.document) - int(self._first(len(self.document)).metrics[metric].count)
        before, after = (self._first(slot + late + more).metrics[metric] for more in (0, 1))
        counted = int(after.count) - int(before.count)
        assert counted == 1, f"one token more lets {metric} count {counted} slots more, expected 1"
        return float(after.sum) - float(before.sum)

    def _first(self, length: int) -> Step:
        """The step on the document's first tokens."""
        if length not in self.steps:
            self.steps[length] = self.bench.rows(self.draft, [[self.document.first(length)]])
        return self.steps[length]


def _agreeing(bench: Bench, document: Document, count: int) -> Document:
    """The document for a target that says its tokens from the `count`-th on."""
    said = slice(count - 1, len(document) - 1)
    features = document.features
    last_hidden, argmax = (None if x is None else x.clone() for x in (features.last_hidden, features.argmax))
    if last_hidden is not None:
        last_hidden[0, said] = states_saying(bench.target, document.ids[count:])
    if argmax is not None:
        argmax[0, said] = document.ids[count:]
    return replace(document, features=Features(features.hidden, last_hidden, features.embeds, argmax))


def _last_hidden(bench: Bench, ids: Tensor) -> Tensor:
    """[n, H] whatever the plan captures."""

    features = bench.target.capture(batch_of([[ids.tolist()]]), CapturePlan(last_hidden=True))
    assert features.last_hidden is not None
    return features.last_hidden[0]


def _paths(proposal: Proposal) -> list[list[int]]:
    """For each token of a proposal, the indices that lead to it."""
    return tree_paths(range(-1, proposal.tokens.numel() - 1) if proposal.parents is None else proposal.parents.tolist())


def _first_choices(proposal: Proposal) -> list[int]:
    """A chain's tokens; of a tree, those of the path through first children, which hold the draft's first choices."""
    chosen: list[int] = []
    for path in _paths(proposal):
        if path[:-1] == chosen:
            chosen = path
    return [int(proposal.tokens[index]) for index in chosen]
