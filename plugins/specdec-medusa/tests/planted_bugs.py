"""Mistakes that the contract must catch in a copy of this plugin: name, promise, contract class, edits."""

from __future__ import annotations

from planting import BETWEEN_THE_LEARNED, UP_TO_THE_LAST_LEARNED, bug

PLAIN, SMALL, JOINT, TREE, CHOSEN = "TestDefault", "TestDraftVocabulary", "TestTargetLearns", "TestTree", "TestOwnTree"
MODEL, FAST, SUPERVISION, DRAFTER, EXPORT, ALGORITHM, OWN = (
    f"specdec_medusa/{name}.py" for name in ("model", "fast", "supervision", "drafter", "export", "algorithm", "joint")
)
VOCABULARY = "specdec_core/algorithm/vocabulary.py"

BUGS = [
    # Heads.
    bug("residual block shared between heads", "own-parameters", PLAIN,
        MODEL, "nn.ModuleList([ResidualBlock(hidden, config[\"num_hidden_layers\"]) for _ in range(heads)])",
        "nn.ModuleList([ResidualBlock(hidden, config[\"num_hidden_layers\"])] * heads)"),
    bug("map shared between heads", "own-parameters", PLAIN,
        MODEL, '[Linear(hidden, config["draft_vocab_size"], bias=False) for _ in range(heads)]',
        '[Linear(hidden, config["draft_vocab_size"], bias=False)] * heads'),
    # Supervision.
    bug("heads one token early", "masked-tokens", PLAIN,
        SUPERVISION, "ahead(batch.loss_mask, 2 + head, False)", "ahead(batch.loss_mask, 1 + head, False)"),
    bug("labels one token early", "learns-to-guess", PLAIN,
        SUPERVISION, "ahead(rows, 2 + head, -1)", "ahead(rows, 1 + head, -1)"),
    bug("labels one token late", "masked-tokens", PLAIN,
        SUPERVISION, "ahead(rows, 2 + head, -1)", "ahead(rows, 3 + head, -1)"),
    bug("heads that look into the next document", "documents", PLAIN,
        SUPERVISION, "& batch.same_document(2 + head)", "& batch.same_document(1 + head)"),
    bug("heads that learn the questions", "masked-tokens", PLAIN,
        SUPERVISION, "import torch\n", "from dataclasses import replace\n\nimport torch\n",
        SUPERVISION, "    masks = []\n", UP_TO_THE_LAST_LEARNED),
    bug("heads that learn what lies between answers", "masked-tokens", PLAIN,
        SUPERVISION, "import torch\n", "from dataclasses import replace\n\nimport torch\n",
        SUPERVISION, "    masks = []\n", BETWEEN_THE_LEARNED),
    bug("heads averaged over masked slots", "padding", PLAIN,
        ALGORITHM, "heads = self._slots(draft, batch)[1].sum((1, 2)).float()",
        "heads = torch.full((self.options.heads,), float(batch.ids.numel()))"),
    bug("mean of each micro-batch's means", "micro-batches", PLAIN,
        ALGORITHM, "        denominator = denominator.clamp(min=1e-9)\n",
        "        denominator = self.denominator(draft, batch, features).clamp(min=1e-9)\n"),
    bug("heads not divided", "denominators", PLAIN,
        ALGORITHM, "/ denominator[: self.options.heads]", "/ 100"),
    # The step.
    bug("first head's block trained for all", "training-is-decoding", PLAIN,
        FAST, "draft.head_state(head, hidden[rows])", "draft.head_state(0 * head, hidden[rows])"),
    bug("a head's teacher one slot early", "training-is-decoding", PLAIN,
        FAST, "wanted = [rows + 1 + head for", "wanted = [rows + head for"),
    bug("weights of the heads in another order", "same-step", PLAIN,
        FAST, "weights=weights.flatten(1)[masks]", "weights=weights.flip(0).flatten(1)[masks]"),
    # A target that learns.
    bug("a target that learns detached", "target-learns", JOINT,
        ALGORITHM, "        supervised, learned = self._slots(draft, batch)\n",
        "        supervised, learned = self._slots(draft, batch)\n"
        "        features = features.map(torch.Tensor.detach)\n"),
    bug("the target's own loss detached", "same-step", JOINT,
        OWN, "target.label_loss(features.last_hidden[mask]", "target.label_loss(features.last_hidden.detach()[mask]"),
    bug("a target that learns the user's tokens", "masked-tokens", JOINT,
        OWN, "ahead(batch.loss_mask, 1, False)", "ahead(batch.document_ids >= 0, 1, False)"),
    bug("a target that learns what lies between answers", "masked-tokens", JOINT,
        OWN, "import torch\n", "from dataclasses import replace\n\nimport torch\n",
        OWN, "    return ahead(batch.loss_mask, 1, False)",
        BETWEEN_THE_LEARNED.replace("masks = []\n", "return ahead(batch.loss_mask, 1, False)")),
    bug("a denominator that needs features", "denominators", JOINT,
        ALGORITHM, "target_slots(batch).sum().float().unsqueeze(0)",
        "features.last_hidden.new_tensor([target_slots(batch).sum()])"),
    # Decoding.
    bug("no residual in decoding", "training-is-decoding", PLAIN,
        MODEL, "self.lm_heads[head](self.head_state(head, hidden))", "self.lm_heads[head](hidden)"),
    bug("residual layers in another order in decoding", "training-is-decoding", SMALL,
        DRAFTER, "import torch\n", "import torch\nfrom functools import reduce\n",
        DRAFTER, "self.draft.head_logits(head, self.hidden)",
        "self.draft.lm_heads[head](reduce(lambda x, layer: x + torch.nn.functional.silu(layer(x)), "
        "reversed(self.draft.blocks[head].layers), self.hidden))"),
    bug("each head's guess by the head before", "training-is-decoding", PLAIN,
        DRAFTER, "self.draft.head_logits(head, self.hidden)", "self.draft.head_logits(max(head - 1, 0), self.hidden)"),
    bug("state of the slot before", "training-is-decoding", PLAIN,
        DRAFTER, "verified.features.last_hidden[:, -1])", "verified.features.last_hidden[:, 0])"),
    bug("state kept on accept", "stale-guesses", PLAIN,
        DRAFTER, "self.hidden = self.draft.project_hidden_states(",
        "self.hidden = self.hidden if self.hidden is not None else self.draft.project_hidden_states("),
    bug("rows of the heads proposed", "training-is-decoding", SMALL,
        DRAFTER, "self.draft.target_ids(logits.argmax(-1))", "logits.argmax(-1)"),
    bug("d2t of the heads used as an index", "proposals", SMALL,
        VOCABULARY, "self.draft_ids[rows]",
        "(self.draft_ids - rows.new_ones(len(self.draft_ids)).cumsum(0) + 1)[rows]"),
    bug("probs of the heads over the draft vocabulary", "proposals", SMALL,
        DRAFTER, "probs=self.draft.over_target_vocabulary(distribution)", "probs=distribution"),
    bug("probs of the heads without temperature", "sampling", PLAIN,
        DRAFTER, "choice = distribution.multinomial(", "choice = logits.softmax(-1).multinomial("),
    bug("heads drawn by the global generator", "sampling", PLAIN,
        DRAFTER, "multinomial(1, generator=sampling.generator)", "multinomial(1)"),
    # Trees.
    bug("tree of draft ids", "proposals", TREE,
        DRAFTER, "self.draft.target_ids(top[layout.heads, layout.ranks])", "top[layout.heads, layout.ranks]"),
    bug("tree with its parents shifted", "proposals", TREE,
        DRAFTER, "place.get(path[:-1], -1)", "place.get(path, -1)"),
    bug("nodes below the wrong parents", "proposals", TREE,
        DRAFTER, "place.get(path[:-1], -1)", "place.get(path[1:], -1)"),
    bug("children before their parents", "proposals", CHOSEN,
        DRAFTER, "in_order([path for path in tree if len(path) <= depth])",
        "in_order([path for path in tree if len(path) <= depth])[::-1]"),
    bug("a tree deeper than asked for", "proposals", CHOSEN, DRAFTER, "if len(path) <= depth", "if path"),
    bug("ranks of a tree ignored", "proposals", TREE,
        DRAFTER, "top[layout.heads, layout.ranks]", "top[layout.heads, 0]"),
    bug("ranks of a tree mixed up", "training-is-decoding", TREE,
        DRAFTER, "torch.tensor([path[-1] for path in choices]",
        "torch.tensor([1 - min(path[-1], 1) for path in choices]"),
    bug("a tree's tokens by the wrong heads", "training-is-decoding", TREE,
        DRAFTER, "top[layout.heads, layout.ranks]", "top[layout.heads - 1, layout.ranks]"),
    # Saving.
    bug("biases dropped from the export", "export", PLAIN,
        EXPORT, "for name, parameter in draft.named_parameters()}",
        'for name, parameter in draft.named_parameters() if not name.endswith("bias")}'),
    bug("residual blocks renamed in the export", "export", PLAIN,
        EXPORT, "tensors = {name: parameter", 'tensors = {name.replace("blocks.", "block."): parameter'),
    bug("vocabulary of the heads not exported", "export", SMALL, EXPORT, "**draft.vocabulary_tensors()", ""),
]  # fmt: skip
