"""A closed-form start: the draft's linear parts solved by least squares before the first gradient.

With the MLP silent and each slot attending itself alone, a draft step is linear in the slot's state g and the
next token's embedding e, both RMS-normed: z = g + [e, g / |g|] J. So the best start is regression. With s_t the state
that the target's final norm makes of slot t, up to that norm's weights:

    transition    s_t M + e_(t+1) A  ~  z_(t+1)
    projection    (h_t F) M + e_(t+1) A  ~  z_(t+1)  while  h_t F  ~  s_t,
                  so that the first step and those that read the draft's own output agree

h are the captured states; fc takes F, values and output projection the J that M and A amount to, at the rank that
the value heads allow. Everything comes from one matrix of second moments, summed in one pass over a sample of the
training data. Gradient descent has a hard time finding this: the captured states' few huge coordinates make the
problem ill-conditioned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_core.nn.linear import linear
from specdec_core.target.base import Target
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Attention, DecoderLayer, Eagle3Draft
from specdec_eagle3.supervision import supervised_slots

# Shrinkage of the regressions, relative to each regressor's own variance.
_RIDGE = 1e-3
# What h F ~ s weighs beside the prediction.
_AGREEMENT = 0.3
# A slot's own key beats its left neighbour's by this many nats; farther ones by more.
_FOCUS = 3.5
# Rotary pairs that turn at least this fast (radians per slot) tell a slot from its neighbours.
_FAST_ROTATION = 0.05

Sample = Iterable[tuple[Batch, Features]]


@dataclass(frozen=True)
class Moments:
    """Mean products, float64, of the parts of one vector per supervised slot.

    parts: one [1], h [k*H] as fc reads them, e [H] the next token's normed embedding, s [H] and z [H] as above.
    """

    mean: Tensor
    parts: dict[str, slice]

    def __call__(self, left: str, right: str) -> Tensor:
        """[len(left), len(right)]; `left` and `right` name one or more parts."""
        rows, columns = (torch.cat([torch.arange(len(self.mean))[self.parts[p]] for p in n]) for n in (left, right))
        return self.mean[rows][:, columns]

    @classmethod
    def of(cls, draft: Eagle3Draft, target: Target, sample: Sample, options: Eagle3Config) -> Moments:
        """Sum over the sample. Raises UserError if nothing in it is supervised."""
        hidden, eps = int(draft.config["hidden_size"]), float(draft.config["rms_norm_eps"])
        weight = target.layer_state(target.facts.num_layers)["weight"].float()
        # A coordinate that the final norm silences says nothing of the state before it.
        unweigh = torch.where(weight.abs() > 1e-3 * weight.abs().mean(), 1 / weight, 0.0)
        total, count, parts = torch.zeros(()), 0, {}
        for batch, features in sample:
            assert features.last_hidden is not None
            slots = supervised_slots(batch, options)[0].flatten()
            if not slots.any():
                continue
            embeds = target.embed(batch.ids) if features.embeds is None else features.embeds
            captured = [features.hidden[layer] for layer in sorted(features.hidden)]
            if options.fc_norm:
                captured = [F.rms_norm(x.float(), (hidden,), eps=eps) for x in captured]
            last = features.last_hidden.float()
            says = last * unweigh.to(last.device)
            values = {
                "1": torch.ones_like(last[..., :1]),
                "h": torch.cat(captured, dim=-1),
                "e": F.rms_norm(_following(embeds).float(), (hidden,), eps=eps),
                "s": last if options.norm_output else says,
                "z": _following(says),
            }
            x = torch.cat([part.flatten(0, 1)[slots].float() for part in values.values()], dim=-1)
            total, count = total.to(x.device) + linear(x.T, x.T), count + len(x)
            ends = torch.tensor([part.shape[-1] for part in values.values()]).cumsum(0).tolist()
            parts = {name: slice(a, b) for name, a, b in zip(values, [0, *ends], ends, strict=False)}
        if not count:
            raise UserError('draft.init = "fitted" found nothing supervised in the training data; use "target"')
        return cls((total / count).double().cpu(), parts)


def _following(x: Tensor) -> Tensor:
    """[B, S, H] of the next slot; 0 past the row's end."""
    return F.pad(x[:, 1:], (0, 0, 0, 1))


@dataclass(frozen=True)
class Solution:
    """The linear draft step.

    fc       [k*H, H]
    step     [2H, H]  what attention adds to the residual, from [e, normed g]
    inputs   [2H, 2H] second moments of [e, normed g]
    mean     [2H]     their mean
    scale    what the normed output is multiplied by to be z's best estimate, less than 1
    """

    fc: Tensor
    step: Tensor
    inputs: Tensor
    mean: Tensor
    scale: float


def solve(m: Moments, norm_before_residual: bool) -> Solution:
    """The regressions of the module's head line."""
    size = m("z", "z").shape[0]
    identity = torch.eye(size, dtype=torch.float64)
    both = _regress(m("se", "se"), m("se", "z"))
    move, add = both[:size], both[size:]
    wanted = (m("h", "z") - m("h", "e") @ add) @ move.T + _AGREEMENT * m("h", "s")
    fc = _regress(m("h", "h"), wanted) @ torch.linalg.inv(move @ move.T + _AGREEMENT * identity)

    spread = fc.T @ m("h", "h") @ fc
    size_of_g = spread.diagonal().mean().sqrt()
    cross = m("e", "h") @ fc / size_of_g
    inputs = torch.cat([torch.cat([m("e", "e"), cross], 1), torch.cat([cross.T, spread / size_of_g**2], 1)])
    mean = torch.cat([m("1", "e"), m("1", "h") @ fc / size_of_g], 1).squeeze(0)
    own = size_of_g * (move - identity) if not norm_before_residual else size_of_g * move - identity

    output = torch.cat([add, size_of_g * move])  # from [e, normed g] to z, the residual included
    squared = (output.T @ inputs @ output).diagonal().mean()
    agreement = (m("h", "z") * (fc @ move)).sum() / size + (m("e", "z") * add).sum() / size
    return Solution(fc, torch.cat([add, own]), inputs, mean, float(agreement / squared.sqrt()))


def _regress(xx: Tensor, xy: Tensor) -> Tensor:
    """argmin |x W - y|^2 from second moments, with ridge."""
    shrink = xx.diagonal() * _RIDGE + xx.diagonal().mean() * 1e-6
    solved: Tensor = torch.linalg.solve(xx + torch.diag(shrink), xy)
    return solved


@torch.no_grad()
def fit(draft: Eagle3Draft, target: Target, sample: Sample, options: Eagle3Config) -> None:
    """Give the draft the closed-form start; what it does not set stays as it is.

    Raises UserError if nothing in the sample is supervised.
    """
    solution = solve(Moments.of(draft, target, sample, options), options.norm_before_residual)
    draft.fc.weight.copy_(solution.fc.T)
    draft.norm.weight.mul_(solution.scale)
    layers = [layer for layer in draft.layers if isinstance(layer, DecoderLayer)]
    first = layers[0]
    first.input_layernorm.weight.fill_(1)
    first.hidden_norm.weight.fill_(1)
    _attend_self(first.self_attn, draft.rotary.inv_freq, solution)
    for layer in layers:
        layer.mlp.down_proj.weight.zero_()
    for layer in layers[1:]:
        layer.self_attn.o_proj.weight.zero_()


def _attend_self(attention: Attention, rotation: Tensor, solution: Solution) -> None:
    """The first query head of each key head attends its own slot and carries its share of `solution.step`.

    Its query and key are one constant direction, placed on the fast rotary pairs only: their product falls off with
    distance. The other heads keep their queries, silent on those pairs, and start with no output.
    """
    dim = attention.head_dim
    keys = attention.k_proj.weight.view(-1, dim, attention.k_proj.in_features)
    queries = attention.q_proj.weight.view(-1, dim, attention.q_proj.in_features)
    group = len(queries) // len(keys)
    pairs = int((rotation >= _FAST_ROTATION).sum())
    fast = torch.cat([torch.arange(pairs), dim // 2 + torch.arange(pairs)])
    constant = _regress(solution.inputs, solution.mean)
    falloff = float((1 - rotation[:pairs].double().cos()).sum())
    direction = constant * (_FOCUS * dim**0.5 / falloff) ** 0.5
    keys[:, fast] = 0
    keys[:, :pairs] = direction.to(keys.dtype)
    queries[:, fast] = 0
    queries[::group] = 0
    queries[::group, :pairs] = direction.to(queries.dtype)

    # The best approximation at the value heads' rank, errors weighed by how the inputs vary.
    # Powers along axes in which a small sample does not vary are rounding errors, of either sign.
    powers, axes = torch.linalg.eigh(solution.inputs)
    root = powers.clamp(min=1e-6 * powers.mean()).sqrt().unsqueeze(1)
    left, strength, right = torch.linalg.svd(root * (axes.T @ solution.step), full_matrices=False)
    rank = min(len(keys) * dim, len(strength))
    half = strength[:rank].sqrt()
    value = torch.zeros_like(attention.v_proj.weight)
    value[:rank] = (axes @ (left[:, :rank] * half / root)).T.to(value.dtype)
    attention.v_proj.weight.copy_(value)
    attention.o_proj.weight.zero_()
    for index in range(len(keys)):
        rows = slice(index * dim, min((index + 1) * dim, rank))
        if rows.start < rank:
            start = index * group * dim
            attention.o_proj.weight[:, start : start + rows.stop - rows.start] = (half[rows, None] * right[rows]).T.to(
                value.dtype
            )
