"""Mistakes that the contract must catch in a copy of this plugin: name, promise, contract class, edits."""

from __future__ import annotations

from planting import bug

PLAIN, SMALL, TREE = "TestDefault", "TestDraftVocabulary", "TestTree"
MODEL, FAST, SUPERVISION, DRAFTER, EXPORT, ALGORITHM, JOINT = (
    f"specdec_medusa/{name}.py" for name in ("model", "fast", "supervision", "drafter", "export", "algorithm", "joint")
)

BUGS = [
    bug("residual block shared between heads", "own-parameters", PLAIN,
        MODEL, "nn.ModuleList([ResidualBlock(hidden, config[\"num_hidden_layers\"]) for _ in range(heads)])",
        "nn.ModuleList([ResidualBlock(hidden, config[\"num_hidden_layers\"])] * heads)"),
    bug("first head's block trained for all", "training-is-decoding", PLAIN,
        FAST, "draft.head_state(head, hidden[rows])", "draft.head_state(0 * head, hidden[rows])"),
    bug("no residual in decoding", "training-is-decoding", PLAIN,
        MODEL, "self.lm_heads[head](self.head_state(head, hidden))", "self.lm_heads[head](hidden)"),
    bug("heads one token early", "masked-tokens", PLAIN,
        SUPERVISION, "ahead(batch.loss_mask, 2 + head, False)", "ahead(batch.loss_mask, 1 + head, False)"),
    bug("labels one token early", "learns-to-guess", PLAIN,
        SUPERVISION, "ahead(rows, 2 + head, -1)", "ahead(rows, 1 + head, -1)"),
    bug("heads that look into the next document", "documents", PLAIN,
        SUPERVISION, "& batch.same_document(2 + head)", "& batch.same_document(1 + head)"),
    bug("mean of each micro-batch's means", "micro-batches", PLAIN,
        ALGORITHM, "        denominator = denominator.clamp(min=1e-9)\n",
        "        denominator = self.denominator(draft, batch, features).clamp(min=1e-9)\n"),
    bug("a target that learns detached", "target-learns", "TestTargetLearns",
        JOINT, "target.label_loss(features.last_hidden[mask]", "target.label_loss(features.last_hidden.detach()[mask]",
        FAST, "features.last_hidden.flatten(0, 1), supervised",
        "features.last_hidden.detach().flatten(0, 1), supervised"),
    bug("state of the slot before", "training-is-decoding", PLAIN,
        DRAFTER, "verified.features.last_hidden[:, -1])", "verified.features.last_hidden[:, 0])"),
    bug("tree of draft ids", "proposals", TREE,
        DRAFTER, "return rows if self.draft.draft_ids is None else self.draft.draft_ids[rows]", "return rows"),
    bug("tree with its parents shifted", "proposals", TREE,
        DRAFTER, "place.get(path[:-1], -1)", "place.get(path, -1)"),
    bug("ranks of a tree mixed up", "training-is-decoding", TREE,
        DRAFTER, "torch.tensor([path[-1] for path in choices]",
        "torch.tensor([1 - min(path[-1], 1) for path in choices]"),
    bug("heads dropped from the export", "export", PLAIN,
        EXPORT, "for name, parameter in draft.named_parameters()}",
        'for name, parameter in draft.named_parameters() if not name.endswith("bias")}'),
]  # fmt: skip
