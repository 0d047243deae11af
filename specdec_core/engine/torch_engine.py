"""Engine `torch`: one process, on the CPU or on one CUDA device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from specdec_core.algorithm.base import Metric
from specdec_core.capture.features import Features
from specdec_core.config.run import TrainSection
from specdec_core.data.batch import Batch
from specdec_core.engine.base import Engine, EngineState, NonFinite, StepModule, StepResult
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.device import choose_device
from specdec_core.engine.masters import MasterWeights
from specdec_core.engine.schedule import lr_factor
from specdec_core.errors import UserError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TorchEngine(Engine):
    """AdamW with warm-up, clipping and accumulation; float32, or bfloat16 with float32 masters."""

    options: TorchEngineConfig

    def start(self) -> None:
        """Choose the device. Raises UserError if there is none of that name."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.device = choose_device(self.options.device)

    def prepare(self, step: StepModule, train: TrainSection, total_steps: int) -> None:
        """Place the draft on the device and make the optimizer and the schedule."""
        self.step, self.train, self.total_steps = step, train, total_steps
        self.steps_done = 0
        step.draft.to(self.device)
        self.masters = MasterWeights(step.draft, getattr(torch, train.dtype))
        groups = self.masters.replace_in(step.algorithm.parameter_groups(step.draft, train.weight_decay))
        if not any(group["params"] for group in groups):
            raise UserError("nothing to train: the algorithm's options freeze every parameter of the draft")
        self.optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = train.lr * group.pop("lr_scale", 1.0)

    def train_step(self, window: Sequence[tuple[Batch, Features]]) -> StepResult:
        """Sum the denominators, run every micro-batch, clip, step.

        Raises NonFinite, before any weight has changed, if the loss or the gradient is not finite.
        """
        self.step.draft.train()
        denominator = _at_least_one(sum_denominators(self.step, window))
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        metrics: dict[str, Metric] = {}
        for batch, features in window:
            output = self.step(batch, features, denominator)
            if output.loss.requires_grad:
                output.loss.backward()
            self.masters.collect_gradients()
            loss += output.loss.detach()
            add_metrics(metrics, output.metrics)
        metrics["loss"] = Metric(loss, torch.ones_like(loss))
        norm = get_total_norm(self.masters.gradients())
        self._check_finite(float(loss), float(norm))
        limit = self.train.max_grad_norm
        if limit is not None and float(norm) > limit:
            clip_grads_with_norm_(list(self.masters.masters.values()), limit, norm)
        factor = lr_factor(self.steps_done, self.total_steps, self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.step()
        self.masters.clear_gradients()
        self.masters.publish()
        self.steps_done += 1
        return StepResult(metrics, lr=self.train.lr * factor, grad_norm=float(norm))

    @torch.no_grad()
    def validate(self, batches: Iterable[tuple[Batch, Features]]) -> Mapping[str, Metric]:
        """The same loss and metrics, without gradients, one batch at a time.

        Each batch's loss is weighted by the mean of its denominators: exact for a loss of one term, and for one of
        several if their denominators keep the same proportion.
        """
        self.step.draft.eval()
        metrics: dict[str, Metric] = {}
        for batch, features in batches:
            denominator = self.step.denominator(batch, features)
            output = self.step(batch, features, _at_least_one(denominator))
            weight = denominator.double().mean()
            add_metrics(metrics, output.metrics)
            add_metrics(metrics, {"loss": Metric(output.loss * weight, weight)})
        return metrics

    def draft_state(self) -> dict[str, Tensor]:
        """The draft's weights and persistent buffers, on the CPU; parameters as their float32 masters."""
        state = {**self.step.draft.state_dict(), **self.masters.masters}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def state(self) -> EngineState:
        """AdamW's moments as `NAME.exp_avg` and so on, and the number of steps done."""
        tensors = {
            f"{name}.{moment}": self.optimizer.state[master][moment].detach().to("cpu", copy=True)
            for name, master in self.masters.masters.items()
            if master in self.optimizer.state
            for moment in MOMENTS
        }
        return EngineState(tensors, {"steps_done": self.steps_done})

    def load_state(self, draft: Mapping[str, Tensor], state: EngineState) -> None:
        """Continue from a checkpoint."""
        self.step.draft.load_state_dict(draft)
        self.masters.load(draft)
        for name, master in self.masters.masters.items():
            if f"{name}.step" in state.tensors:
                self.optimizer.state[master] = {
                    moment: state.tensors[f"{name}.{moment}"].to(master.device, copy=True) for moment in MOMENTS
                }
        self.steps_done = state.values["steps_done"]

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        raise NonFinite(
            f"step {self.steps_done + 1}: {what}; no weight was changed by it. Try a lower train.lr "
            f"(now {self.train.lr:g}), a longer train.warmup_ratio or a smaller train.max_grad_norm"
            + (', or train.dtype = "float32"' if self.train.dtype != "float32" else "")
        )


def sum_denominators(step: StepModule, window: Sequence[tuple[Batch, Features]]) -> Tensor:
    """[K] over the whole window, before the first backward."""
    with torch.no_grad():
        return torch.stack([step.denominator(batch, features) for batch, features in window]).sum(dim=0)


def add_metrics(total: dict[str, Metric], more: Mapping[str, Metric]) -> None:
    """Add sums and counts by name, in float64."""
    for name, metric in more.items():
        sum_, count = metric.sum.detach().double(), metric.count.detach().double()
        if name in total:
            sum_, count = total[name].sum + sum_, total[name].count + count
        total[name] = Metric(sum_, count)


def _at_least_one(denominator: Tensor) -> Tensor:
    """A term that nothing supervises is 0 / 1, not 0 / 0."""
    return torch.where(denominator > 0, denominator, torch.ones_like(denominator))
