"""The training loop. It knows batches, engines and checkpoints, and no model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from specdec_core.algorithm.load import load_trained
from specdec_core.capture.features import Features
from specdec_core.checkpoint import store
from specdec_core.checkpoint.atomic import is_disk_full
from specdec_core.checkpoint.rng import rng_state, set_rng_state
from specdec_core.checkpoint.weights import vocab_tensors
from specdec_core.data.batch import Batch
from specdec_core.engine.base import NonFinite
from specdec_core.errors import UserError
from specdec_core.export.base import Exporter, Provenance
from specdec_core.export.target import TARGET, write_target
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import ResolvedRun
from specdec_core.train import rundir
from specdec_core.train.metrics_log import Means, MetricsLog
from specdec_core.train.progress import ProgressView, say
from specdec_core.train.run import Interrupted, RunInfo
from specdec_core.train.score import Score
from specdec_core.train.setup import Job, assemble
from specdec_core.train.signals import StopRequest


def run_training(resolved: ResolvedRun, registry: Registry, resume: bool, console: Console | None = None) -> Path:
    """Train, checkpoint, validate and export as a config says. Returns the run directory.

    Raises UserError for what the user can mend, `Interrupted` after SIGINT or SIGTERM (the checkpoint is then saved).
    """
    console = console or Console(stderr=True)
    algorithm = load_trained(resolved.algorithm)
    directory = resolved.config.train.output_dir
    if not resume:
        rundir.refuse_if_used(directory)
    try:
        with rundir.exclusive(directory):
            if resume:
                rundir.check_resumable(directory, resolved)
                step = rundir.completed_step(directory)
                if step is not None:
                    say(
                        console,
                        f"{directory}: this run is complete at step {step}; its draft is in {directory / rundir.DRAFT}",
                    )
                    return directory
            for plugin in resolved.loggers:
                registry.register_observer(plugin.load(), name=f"logger {plugin.spec.name}")
            newest = store.latest(directory) if resume else None
            checkpoint = store.load(newest) if newest else None
            job = assemble(resolved, algorithm, checkpoint, lambda sentence: say(console, sentence))
            try:
                Trainer(job, registry, directory, console).run(checkpoint)
            finally:
                job.engine.finish()
    except OSError as error:
        if is_disk_full(error):
            raise UserError(
                f"no space left on the disk of {error.filename or directory}; free some and run with --resume"
            ) from error
        raise
    return directory


@dataclass
class LoopState:
    """Where the loop stands, beside weights, optimizer and generators; a checkpoint holds all of it.

    `window` sums what the next line of metrics.jsonl will say, `since_checkpoint` what the next score is made of.
    """

    step: int = 0
    batches: int = 0
    tokens: int = 0
    window: Means = field(default_factory=Means)
    counted: dict[str, float] = field(default_factory=dict)
    since_checkpoint: Means = field(default_factory=Means)
    best: Score | None = None

    def count(self, **amounts: float) -> None:
        """Add to the window's counts."""
        for name, amount in amounts.items():
            self.counted[name] = self.counted.get(name, 0) + amount

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LoopState:
        """The inverse of `to_json`."""
        means = {name: Means(**value[name]) for name in ("window", "since_checkpoint")}
        best = Score(**value["best"]) if value["best"] else None
        return cls(**{**value, **means, "best": best})


class Trainer:
    """Runs a job in its run directory."""

    def __init__(self, job: Job, registry: Registry, directory: Path, console: Console) -> None:
        self.job, self.registry, self.directory, self.console = job, registry, directory, console
        self.engine, self.train = job.engine, job.config.train
        self.state = LoopState()
        self.log = MetricsLog(directory / rundir.METRICS)
        self.config, self.lock = job.resolved.table, job.resolved.lock.model_dump(mode="json")

    def run(self, checkpoint: store.Checkpoint | None) -> None:
        """From a checkpoint, or from the beginning, to what is exported."""
        if checkpoint is not None:
            self._restore(checkpoint)
        self.log.rewind(self.state.step)
        rundir.describe(self.directory, self.job.resolved)
        self.info = RunInfo(
            self.train.run_name or self.directory.resolve().name,
            self.directory,
            self.job.config,
            self.state.step,
            self.job.total_steps,
        )
        self.registry.hooks.specdec_run_started(run=self.info)
        status = "failed"
        try:
            self._loop()
            self._export()
            status = "completed"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self.registry.hooks.specdec_run_finished(run=self.info, status=status)

    def _loop(self) -> None:
        total, state = self.job.total_steps, self.state
        windows = self._windows()
        with ProgressView(self.console, state.step, total) as view, StopRequest(view.stopping) as stop:
            if state.step:
                view.say(f"going on after step {state.step} of {total}")
            while state.step < total:
                line = self._step(next(windows))
                last = state.step == total
                validated = self._validate() if self._is_due(self._validation_interval, last) else {}
                save = self._is_due(self.train.save_every, last)
                if line or validated:
                    line = {"step": state.step, **line, **validated}
                    self.log.write(line)
                    self.registry.hooks.specdec_step_finished(run=self.info, step=state.step, metrics=line)
                view.step_done(state.step, line)
                if save:
                    self._score(validated)
                if save or stop.requested:
                    self._save()
                if stop.requested and not last:
                    view.say(
                        f"stopped by {stop.requested} after step {state.step}, whose checkpoint is saved; "
                        "run the same command with --resume to go on"
                    )
                    raise Interrupted(stop.requested)

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimizer step. Returns the line of metrics, if one is due."""
        state, train = self.state, self.train
        began = time.perf_counter()
        window = [self._with_features(batch) for batch in batches]
        self._wait()
        captured = time.perf_counter()
        try:
            result = self.engine.train_step(window)
        except NonFinite as error:
            raise UserError(f"{error}; {self._how_to_save_the_run()}") from error
        self._wait()
        ended = time.perf_counter()

        tokens = sum(batch.num_tokens for batch in batches)
        state.step += 1
        state.batches += len(batches)
        state.tokens += tokens
        state.window.add(result.metrics)
        state.since_checkpoint.add(result.metrics)
        state.count(
            tokens=tokens,
            supervised=sum(int(batch.loss_mask.sum()) for batch in batches),
            capture_seconds=captured - began,
            step_seconds=ended - captured,
        )
        if state.step % train.log_every and state.step != self.job.total_steps:
            return {}
        counted, means = state.counted, state.window.means()
        state.window, state.counted = Means(), {}
        return {
            "epoch": state.batches / len(self.job.loader),
            "tokens": state.tokens,
            "supervised_tokens": counted["supervised"],
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            **means,
            "tokens_per_second": counted["tokens"] / (counted["capture_seconds"] + counted["step_seconds"]),
            "capture_seconds": counted["capture_seconds"],
            "step_seconds": counted["step_seconds"],
        }

    def _how_to_save_the_run(self) -> str:
        last = store.latest(self.directory)
        if last is None:
            return "begin a new run"
        if self.job.step.target_module is None:
            return f"a new run can start from the last checkpoint: draft.init_from = {last}"
        return (
            f"a new run can start from the last checkpoint: `specdec export {last} --out DIR`, then draft.init_from = "
            "DIR and target.path = DIR/target"
        )

    def _windows(self) -> Iterator[list[Batch]]:
        """`accumulation` batches at a time, epoch after epoch; the last window of the run may be shorter."""
        left = self.job.total_batches - self.state.batches
        batches = islice((batch for _ in iter(int, 1) for batch in self.job.loader), left)
        while window := list(islice(batches, self.train.accumulation)):
            yield window

    def _with_features(self, batch: Batch) -> tuple[Batch, Features]:
        batch = batch.to(self.engine.device)
        return batch, self.job.source.features(batch)

    def _wait(self) -> None:
        if self.engine.device.startswith("cuda"):
            torch.cuda.synchronize()

    @property
    def _validation_interval(self) -> int | None:
        return self.train.validate_every or self.train.save_every

    def _is_due(self, interval: int | None, last: bool) -> bool:
        return last or (interval is not None and self.state.step % interval == 0)

    def _validate(self) -> dict[str, float]:
        if self.job.validation is None:
            return {}
        means = Means()
        means.add(self.engine.validate(self._with_features(batch) for batch in self.job.validation))
        return {f"validation/{name}": value for name, value in means.means().items()}

    def _score(self, validated: dict[str, float]) -> None:
        """Whether the checkpoint about to be saved is the best so far."""
        metrics = validated if self.job.validation else self.state.since_checkpoint.means()
        score = Score.of(metrics, self.state.step)
        if score and score.beats(self.state.best):
            self.state.best = score
        self.state.since_checkpoint = Means()

    def _save(self) -> None:
        rng_tensors, rng_values = rng_state(self.engine.device)
        best_step = self.state.best.step if self.state.best else None
        self.log.sync()
        checkpoint = store.Checkpoint(
            step=self.state.step,
            draft=self.engine.draft_state(),
            draft_config=self.job.draft_config,
            engine=self.engine.state(),
            rng_tensors=rng_tensors,
            rng_values=rng_values,
            vocab=vocab_tensors(self.job.vocab),
            trainer={
                "loop": self.state.to_json(),
                "data": self.job.loader.state(),
                "total_steps": self.job.total_steps,
            },
            best_step=best_step,
            config=self.config,
            lock=self.lock,
            target=self.engine.target_state(),
        )
        path = store.save(self.directory, checkpoint)
        store.prune(self.directory, self.train.keep_last, best_step)
        self.registry.hooks.specdec_checkpoint_saved(run=self.info, step=self.state.step, path=path)

    def _restore(self, checkpoint: store.Checkpoint) -> None:
        self.job.loader.load_state(checkpoint.trainer["data"])
        self.engine.load_state(checkpoint.draft, checkpoint.target, checkpoint.engine)
        self.state = LoopState.from_json(checkpoint.trainer["loop"])
        set_rng_state(checkpoint.rng_tensors, checkpoint.rng_values, self.engine.device)

    def _export(self) -> None:
        """The draft, from its float32 weights, as others load it; before it the target, if it was trained."""
        job, draft = self.job, self.job.step.draft
        trained = job.step.target_module is not None
        provenance = Provenance(self.config, self.lock, self.state.step, trained)
        if trained:
            write_target(job.backbone, job.step.target, self.directory / TARGET, provenance)
            say(self.console, f"the trained target is in {self.directory / TARGET}")
        draft.float().load_state_dict(self.engine.draft_state())
        exporter: Exporter = job.resolved.export.load()
        out = self.directory / rundir.DRAFT
        exporter.write(job.algorithm.export(draft, job.facts), out, provenance)
        say(self.console, f"the draft is in {out}")
