"""Engine `torch`: one process, on the CPU or on one CUDA device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
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
TARGET = "target."
"""Before the names of the target's weights among the optimizer's tensors."""


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
        groups = step.parameter_groups(train.weight_decay)
        if not any(group["params"] for group in groups):
            raise UserError("nothing to train: the algorithm's options freeze every parameter of the draft")
        self.late: list[tuple[int, list[nn.Parameter]]] = []
        for group in groups:
            group["start"] = math.floor(group.pop("starts_at", 0.0) * total_steps)
            if group["start"]:
                self.late.append((group["start"], group["params"]))
        self.masters = MasterWeights()
        self.draft_masters = self.masters.add(step.draft, getattr(torch, train.dtype))
        trained = step.target_module
        self.target_masters = {} if trained is None else self.masters.add(trained, prefix=TARGET)
        groups = self.masters.replace_in(groups)
        self.optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"] * group.pop("lr_scale", 1.0)

    def train_step(self, window: Sequence[tuple[Batch, Features]]) -> StepResult:
        """Sum the denominators, run every micro-batch, clip, step.

        Raises NonFinite, before any weight has changed, if the loss or the gradient is not finite.
        """
        self.step.draft.train()
        self._freeze_late_groups()
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
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self._lr_factor(group["start"])
        self.optimizer.step()
        self.masters.clear_gradients()
        self.masters.publish()
        lr = self.train.lr * self._lr_factor(0)
        self.steps_done += 1
        return StepResult(metrics, lr=lr, grad_norm=float(norm))

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
        return _on_cpu({**self.step.draft.state_dict(), **self.draft_masters})

    def target_state(self) -> dict[str, Tensor]:
        """The float32 masters of the target's trained weights, on the CPU; {} if it is frozen."""
        return _on_cpu(self.target_masters)

    def state(self) -> EngineState:
        """AdamW's moments as `NAME.exp_avg` and so on, and the number of steps done."""
        tensors = {
            f"{name}.{moment}": self.optimizer.state[master][moment].detach().to("cpu", copy=True)
            for name, master in self.masters.masters.items()
            if master in self.optimizer.state
            for moment in MOMENTS
        }
        return EngineState(tensors, {"steps_done": self.steps_done})

    def load_state(self, draft: Mapping[str, Tensor], target: Mapping[str, Tensor], state: EngineState) -> None:
        """Continue from a checkpoint."""
        self.step.draft.load_state_dict(draft)
        self.masters.load({**draft, **{TARGET + name: tensor for name, tensor in target.items()}})
        for name, master in self.masters.masters.items():
            if f"{name}.step" in state.tensors:
                self.optimizer.state[master] = {
                    moment: state.tensors[f"{name}.{moment}"].to(master.device, copy=True) for moment in MOMENTS
                }
        self.steps_done = state.values["steps_done"]

    def _freeze_late_groups(self) -> None:
        """Let autograd pass over what does not learn yet; AdamW passes over what has no gradient."""
        for start, parameters in self.late:
            for parameter in parameters:
                parameter.requires_grad_(self.steps_done >= start)

    def _lr_factor(self, start: int) -> float:
        """The schedule of a group that learns from step `start` on."""
        if self.steps_done < start:
            return 0.0
        return lr_factor(self.steps_done - start, self.total_steps - start, self.train)

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


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies for a checkpoint."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _at_least_one(denominator: Tensor) -> Tensor:
    """A term that nothing supervises is 0 / 1, not 0 / 0."""
    return torch.where(denominator > 0, denominator, torch.ones_like(denominator))
