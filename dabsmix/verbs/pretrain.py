"""Pretraining, top to bottom: data, encoder, algorithm, loop, run. It names no algorithm and no domain."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

import dabsmix
from dabsmix.config import PretrainConfig, Recipe, as_plain, config_hash, init_run, resolve, started_from
from dabsmix.data.batches import Batches, Raw, make_views, step_seed
from dabsmix.data.domain import Data, as_stored
from dabsmix.data.standardise import Standardise
from dabsmix.errors import UserError
from dabsmix.files import sha256
from dabsmix.interrupt import Interrupted, stop_on_signals
from dabsmix.model.checkpoint import save_encoder
from dabsmix.model.encoder import EXPLICIT_BELOW, Encoder, EncoderConfig, make_encoder
from dabsmix.model.shapes import TIMM
from dabsmix.model.start import take, timm_name, timm_weights
from dabsmix.pretext.algorithm import Algorithm, Loss, check_fit
from dabsmix.registry import algorithm_class
from dabsmix.run import Run, RunRecord, commit, device_name, newest_run, readable_runs
from dabsmix.scoring.collapse import collapsed, health
from dabsmix.scoring.online import Online, watch_online
from dabsmix.scoring.results import write_transfer
from dabsmix.source import Source, batch_size, load, modality_of
from dabsmix.spec import Batch, Table, describe
from dabsmix.terminal import Bar
from dabsmix.tracking import Track, tracker
from dabsmix.training import learning_rate, make_optimizer
from dabsmix.verbs.budget import training_flops

__all__ = ["pretrain"]

LOG_EVERY = 20  # steps; each logged value is the mean over them


def pretrain(
    config: PretrainConfig,
    *,
    accelerator: Accelerator,
    data: Data | None = None,
    say: Callable[[str], None] = lambda _: None,
    observe: Callable[[int], None] = lambda _: None,
    begin: bool = False,
) -> Run:
    """Train an encoder without labels and write its run.

    Args:
        config: what to do; fields that are None are filled in from the protocol and the domain.
        accelerator: where to do it.
        data: the data that ``config.source`` names, if they are loaded already.
        say: called on the main process with what the user should know, in complete sentences.
        observe: called with the number of steps done, after each step.
        begin: with ``config.resume``, start a fresh run if there is none of these very data to resume.

    Raises:
        UserError: any mistake in the configuration or the data, or a loss that is no longer finite.
        Interrupted: a signal asked the process to stop, and the state has been saved.
    """
    # What to learn from.
    config.check()
    source = config.source
    if data is None:
        data = load(source)
        source = data.source or source  # with the modality that was found
        config = replace(config, source=source)
    usual = batch_size(source)
    config, recipe = resolve(config, usual if source.domain else min(usual, len(data.pretrain)), len(data.pretrain))
    batches = Batches(
        data.pretrain,
        recipe.batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )

    other = None if config.online is None else _online_data(config, data)

    # What learns.
    torch.manual_seed(step_seed(config.seed, 0, "weights"))
    encoder = make_encoder(
        config.encoder,
        data.specs,
        attend_padding=recipe.attend_padding,
        columns=recipe.columns,
        attention=config.attention,
        dropout_masks=config.dropout_masks,
    )
    _check_transformer(config, encoder)
    if config.micro_batch is not None and encoder.has_batch_norm:
        raise UserError(
            f"--micro-batch: --encoder {config.encoder} normalises over the batch, so parts of it give other features; "
            "leave it out, and use more processes: they normalise over the batch of all"
        )
    encoder.micro_batch = config.micro_batch
    encoder.checkpoint_activations = config.checkpoint_activations
    config, init_notes = _begin_with(config, encoder)
    algorithm = algorithm_class(config.algo)(encoder, **config.hyper)
    check_fit(algorithm, recipe.batch_size, encoder.num_tokens)
    if source.protocol == "dabs" and not encoder.has_tokens:
        raise UserError(
            f"--protocol dabs trains DABS's transformer, and --encoder {config.encoder} is another: use imix"
        )
    if algorithm.needs_labels and (
        data.pretrain.label is None or data.labelled is None or data.labelled.task.kind != "classes"
    ):
        raise UserError(f"--algo {config.algo} learns from one class per example, and {source.name} has none")
    if algorithm.views == "augment" and data.augment is None:
        raise UserError(f"--views augment: {source.name} has no augmentation")
    tables = [spec for spec in data.specs if isinstance(spec, Table)]
    if algorithm.views == "mask" and not any(0 in spec.cardinalities for spec in tables):
        raise UserError(f"--views mask: {source.name} has no numeric columns to mask; --views noise masks tokens")

    # Where it is written.
    with _open_run(config, recipe, data, algorithm, accelerator, begin) as (run, resumed):
        if run.finished:
            say(f"{run.path} is finished already: nothing to resume")
            return run
        for line in (*data.summary, *data.notes):
            say(line)
        for line in init_notes:
            say(line)
        if accelerator.device.type == "cpu" and algorithm.trains and (flags := _faster_flags(config, encoder)):
            say(f"bf16 on a CPU is faster with {flags} (both: 1.7 to 2.3 times as fast); it gives other numbers")
        say(f"run: {run.path}")

        online = watch_online(encoder, data, other, source.protocol, config.online_every, batches, accelerator)
        state = _Training(algorithm, online)
        start = health(encoder.to(accelerator.device), data, accelerator) if algorithm.trains else {}
        flops = training_flops(config, recipe, data, batches, accelerator.device) if algorithm.trains else 0.0
        if accelerator.is_main_process and run.record.flops is None:  # also of a run that was killed before this line
            run.update(flops=flops)
        if algorithm.trains:
            with tracker(config.track if accelerator.is_main_process else None, run.path, as_plain(config)) as track:
                _train(state, batches, data, config, recipe, accelerator, run, resumed, track, say, observe)

        # What came of it.
        metrics = run.metrics()[-1] if algorithm.trains and accelerator.is_main_process else {}
        scored = None
        if online is not None and algorithm.trains:
            task = config.online or source.name
            metrics["online_test"], scored = online.test(encoder, task, source.protocol, accelerator)
        if accelerator.is_main_process:
            save_encoder(run.path / "encoder.safetensors", encoder, config.encoder)
            digest = sha256(run.path / "encoder.safetensors")
            if scored is not None:
                record = replace(scored.record, run=run.path.name, encoder_sha256=digest)
                write_transfer(run.path / "online.json", record, scored.predictions)
            run.update(
                status="finished",
                seconds=round(state.seconds, 1),
                encoder_sha256=digest,
                metrics=metrics,
            )
            if algorithm.trains and collapsed(metrics, start, encoder.width):
                say(
                    "warning: the features vary little, or in few directions "
                    f"(standard deviation {metrics['feature_std']:.2g}, at the start {start['feature_std']:.2g}; "
                    f"effective rank {metrics['effective_rank']:.1f}, at the start {start['effective_rank']:.1f}): "
                    "they may have collapsed, so compare them with --algo none"
                )
        accelerator.wait_for_everyone()
    return Run(run.path)


@dataclass
class _Training:
    """The state that changes during training; a checkpoint holds all of it."""

    algorithm: Algorithm
    online: Online | None
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)  # since the last logged line
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1


def _train(
    state: _Training,
    batches: Batches,
    data: Data,
    config: PretrainConfig,
    recipe: Recipe,
    accelerator: Accelerator,
    run: Run,
    resumed: bool,
    track: Track | None,
    say: Callable[[str], None],
    observe: Callable[[int], None],
) -> None:
    """The loop. Everything random in a step follows from (seed, step), so resuming needs no generator's state."""
    algorithm, online, device = state.algorithm, state.online, accelerator.device
    encoder = algorithm.encoder
    if config.compile:
        for part in algorithm.modules():
            if isinstance(part, Encoder):  # momentum copies too
                for block in part.blocks:
                    block.compile()
    parameters = [p for p in algorithm.parameters() if p.requires_grad]
    optimizer = make_optimizer(recipe.optimizer, parameters, recipe.lr, recipe.weight_decay)
    model, optimizer = accelerator.prepare(algorithm, optimizer)
    if online is not None:
        online.probe.to(device)

    checkpoint = run.load_checkpoint(say)
    if checkpoint is not None:
        if accelerator.num_processes > 2:
            _settle_buckets(model, next(iter(batches.iterate(0, 1, device))), data, config, accelerator)
            optimizer.zero_grad()
        _restore(state, optimizer, accelerator, checkpoint, run)
    if accelerator.is_main_process:
        run.cut_metrics(state.step)
        if resumed:
            _record_part(run, state.step, accelerator, say)
    accelerator.wait_for_everyone()

    model.train()
    began = time.perf_counter() - state.seconds
    logged_at, logged_step = time.perf_counter(), state.step
    saved_at = time.perf_counter()
    with (
        stop_on_signals() as stop,
        Bar("pretrain", total=recipe.steps, start=state.step, shown=accelerator.is_main_process) as bar,
    ):
        for raw in batches.iterate(state.step, recipe.steps, device):
            torch.manual_seed(step_seed(config.seed, state.step, "dropout", accelerator.process_index))
            draws = step_seed(config.seed, state.step, "draws")
            views = make_views(data, raw.inputs, algorithm.num_augmented, draws)
            lr = learning_rate(state.step, recipe.steps, recipe.lr, recipe.schedule, batches.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr

            loss: Loss = model(Batch(views, raw.label if algorithm.needs_labels else None, raw.ids, draws))
            accelerator.backward(loss.value)
            if recipe.clip:
                norm = accelerator.clip_grad_norm_(parameters, recipe.clip)
                if accelerator.scaler is not None:  # fp16: the optimizer skips a step whose gradients overflow
                    state.add("skipped", 1 - norm.isfinite().float())
                    norm = norm.nan_to_num(0, 0, 0)
                state.add("grad_norm", norm)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            algorithm.after_step(state.step / recipe.steps)

            state.add("loss", loss.value.detach())
            for name, value in loss.metrics.items():
                state.add(name, value)
            if online is not None:
                learnt = online.learn(encoder, state.step, raw, draws, accelerator)
                if learnt is not None:
                    state.add("online_loss", learnt)

            # Everything below is rare. Nothing above waits for the device, except losses whose number of tokens must
            # be read back from it: MAE's words, and ContPred's negatives from the batch.
            last = state.step == recipe.steps
            evaluate = last or state.step % recipe.evaluate_every == 0
            save = state.step % recipe.checkpoint_every == 0 and not last
            stopping = stop.asked and accelerator.num_processes == 1 and not last
            if last or evaluate or save or state.step % LOG_EVERY == 0:
                line, asked_anywhere = _means(state, accelerator, stop.asked)
                stopping = asked_anywhere and not last  # several processes agree here, where they synchronise anyway
                if evaluate:
                    line |= health(encoder, data, accelerator)
                _check_finite(line, state.step, recipe, run)
                if evaluate and online is not None:
                    line["online_validation"] = online.validate(encoder, accelerator)
                now = time.perf_counter()
                rate = (state.step - logged_step) * batches.batch_size / (now - logged_at)
                logged_at, logged_step = now, state.step
                save = save or (now - saved_at > 60 * config.checkpoint_minutes and not last)
                state.seconds = now - began
                bar.show(loss=f"{line['loss']:.3f}", rate=f"{rate:,.0f} examples/s")
                if accelerator.is_main_process:
                    times = {"examples_per_s": round(rate, 1), "seconds": round(state.seconds, 2)}
                    run.log({"step": state.step, **line, "lr": lr, **times})
                    if track is not None:
                        track({**line, "lr": lr, **times}, state.step)
            bar.advance()
            observe(state.step)
            if (save or stopping) and accelerator.is_main_process:
                state.seconds = time.perf_counter() - began
                run.save_checkpoint(state.step, _snapshot(state, optimizer, accelerator))
                saved_at = time.perf_counter()
            if stopping:
                if accelerator.is_main_process:
                    run.update(status="interrupted")
                accelerator.wait_for_everyone()
                raise Interrupted(f"{run.path} is interrupted after step {state.step}: --resume continues from there")
    state.seconds = time.perf_counter() - began


def _settle_buckets(model: Any, raw: Raw, data: Data, config: PretrainConfig, accelerator: Accelerator) -> None:
    """Make a backward pass without any effect, before the state is restored.

    DDP changes the layout of its buckets after the first one. With more than two processes the order of the gradients'
    sums depends on the layout, so without this the first step of a resumed run would differ in its last bits.
    """
    algorithm = model.module
    draws = step_seed(config.seed, 0, "draws")
    views = make_views(data, raw.inputs, algorithm.num_augmented, draws)
    loss: Loss = model(Batch(views, raw.label if algorithm.needs_labels else None, raw.ids, draws))
    accelerator.backward(loss.value)


# --- what the loop does occasionally


def _means(state: _Training, accelerator: Accelerator, asked: bool) -> tuple[dict[str, float], bool]:
    """Means over the steps since the last line and over processes, and whether any process was ``asked`` to stop.

    This is the only place where the loop waits for the device.
    """
    names = sorted(state.sums)
    means = [state.sums[name].float() / state.counts[name] for name in names]
    stacked = torch.stack([*means, torch.tensor(float(asked), device=accelerator.device)])
    *values, share = accelerator.reduce(stacked, reduction="mean").tolist()
    state.sums.clear()
    state.counts.clear()
    return dict(zip(names, values, strict=True)), share > 0


def _check_finite(line: Mapping[str, float], step: int, recipe: Recipe, run: Run) -> None:
    """Refuse values that are not finite. The loss is from before the last update, the others are from after it."""
    wrong = [
        quantity
        for name, quantity in (("loss", "loss"), ("feature_std", "features"), ("online_loss", "online probe's loss"))
        if not math.isfinite(line.get(name, 0.0))
    ]
    if wrong:
        raise UserError(
            f"training diverged: the loss is {line['loss']:g} after step {step} of {run.path} (not finite: "
            f"{', '.join(wrong)}); start again with a lower --lr (now {recipe.lr:g}), or check the data"
        )


def _check_transformer(config: PretrainConfig, encoder: Encoder) -> None:
    """Refuse what only a transformer has where it would change nothing, or too much."""
    shape = encoder.config
    if isinstance(shape, EncoderConfig):
        if config.dropout_masks != "torch" and shape.dropout == 0:
            raise UserError(f"--dropout-masks {config.dropout_masks}: --encoder {config.encoder} has no dropout")
        return
    for flag, is_set in (
        (f"--attention {config.attention}", config.attention != "fused"),
        (f"--dropout-masks {config.dropout_masks}", config.dropout_masks != "torch"),
        ("--checkpoint-activations", config.checkpoint_activations),
    ):
        if is_set:
            raise UserError(f"{flag} is for transformers, and --encoder {config.encoder} is not one: leave it out")


def _faster_flags(config: PretrainConfig, encoder: Encoder) -> str:
    """The flags that are not set and would make bf16 faster on a CPU; empty if there are none."""
    shape = encoder.config
    if config.precision != "bf16" or not isinstance(shape, EncoderConfig):
        return ""
    explicit = config.attention == "fused" and 1 + encoder.num_tokens <= EXPLICIT_BELOW
    fast = config.dropout_masks == "torch" and shape.dropout > 0
    return " ".join(["--attention fastest"] * explicit + ["--dropout-masks fast"] * fast)


def _begin_with(config: PretrainConfig, encoder: Encoder) -> tuple[PretrainConfig, tuple[str, ...]]:
    """Take the weights that --init names; the configuration with their full name, and what to say of them."""
    if config.init is None:
        return config, ()
    if config.init.startswith(TIMM):
        name = timm_name(config.init.removeprefix(TIMM))
        init, weights = TIMM + name, timm_weights(name)
    else:
        start = init_run(config.init)
        init, weights = f"{start.path}@{start.record.encoder_sha256[:12]}", start.encoder().state_dict()
    loaded, random = take(encoder, weights)
    if len(loaded) < len(random):
        raise UserError(f"--init {config.init}: its shape is not that of --encoder {config.encoder}; choose that one")
    line = f"{len(loaded)} of {len(loaded + random)} weights are those of {init}"
    if random:
        line += f"; the others have another shape or no counterpart there: {', '.join(random)}"
    return replace(config, init=init), (line,)


def _online_data(config: PretrainConfig, data: Data) -> Data:
    """The other labelled data set that only the online probe reads."""
    assert config.online is not None
    other = load(Source(config.online, protocol=config.source.protocol, data_root=config.source.data_root))
    if other.specs != data.specs:
        raise UserError(
            f"--online {config.online} is {describe(other.specs)}, and the encoder reads {describe(data.specs)}: "
            "name a data set of the same input"
        )
    if other.labelled is None:
        raise UserError(f"--online {config.online} has no labels: name another data set")
    return other


def _snapshot(state: _Training, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "step": state.step,
        "seconds": state.seconds,
        "algorithm": state.algorithm.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler and accelerator.scaler.state_dict(),  # fp16 alone has one
        "probe": state.online and state.online.probe.state_dict(),
        "probe_optimizer": state.online and state.online.probe.optimizer.state_dict(),
        "sums": state.sums,  # empty unless a signal came between two lines
        "counts": state.counts,
    }


def _restore(state: _Training, optimizer: Any, accelerator: Accelerator, checkpoint: dict[str, Any], run: Run) -> None:
    try:
        state.step, state.seconds = checkpoint["step"], checkpoint["seconds"]
        device = next(state.algorithm.parameters()).device
        state.sums = {name: value.to(device) for name, value in checkpoint.get("sums", {}).items()}
        state.counts = dict(checkpoint.get("counts", {}))
        state.algorithm.load_state_dict(checkpoint["algorithm"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint["scaler"])
        if state.online is not None:
            state.online.probe.load_state_dict(checkpoint["probe"])
            state.online.probe.optimizer.load_state_dict(checkpoint["probe_optimizer"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the checkpoint of {run.path} does not fit this configuration and version ({type(error).__name__}: "
            f"{reason}): continue with the version that wrote it ({run.record.version}), or start a new run"
        ) from error


@contextmanager
def _open_run(
    config: PretrainConfig, recipe: Recipe, data: Data, algorithm: Algorithm, accelerator: Accelerator, begin: bool
) -> Iterator[tuple[Run, bool]]:
    """A new run, or with --resume the one to continue, and whether it is continued.

    The main process creates and locks it; all processes get its path.
    """
    with ExitStack() as locks:
        known: list[Any] = [None, False]
        if accelerator.is_main_process:
            existing = _to_resume(config, data, begin)
            run = existing or _create(config, recipe, data, algorithm, accelerator)
            locks.enter_context(run.lock())
            known = [str(run.path), existing is not None]
        if accelerator.num_processes > 1:
            known = broadcast_object_list(known)
        path, resumed = known
        run = Run(Path(path))
        try:
            yield run, resumed
        except Interrupted:
            raise
        except Exception as error:
            if accelerator.is_main_process:
                with suppress(UserError):  # of a full disk, say, which is what stopped it
                    run.update(status="failed", failure=" ".join(str(error).split())[:500] or type(error).__name__)
            raise


def _to_resume(config: PretrainConfig, data: Data, begin: bool) -> Run | None:
    """The run that --resume continues, or one that is finished already; None if a new run is to start."""
    if not config.resume:
        return None
    key = config_hash(config)

    def same(run: Run) -> bool:
        return run.record.config_hash == key

    def of_these_data(run: Run) -> bool:  # the hash names the files, and they may have changed
        return same(run) and run.record.data_fingerprint == data.fingerprint

    runs = readable_runs(config.out)
    if begin and not any(map(of_these_data, runs)):
        return None
    counts = of_these_data if begin or any(of_these_data(run) and not run.finished for run in runs) else same
    try:
        run = newest_run(config.out, lambda r: counts(r) and not r.finished, "unfinished run of this configuration")
    except UserError:
        return newest_run(config.out, counts, "run of this configuration to resume")
    if run.record.data_fingerprint != data.fingerprint:
        raise UserError(f"cannot resume {run.path}: the data have changed since it began; start a new run")
    return run


def _made_by(accelerator: Accelerator) -> dict[str, Any]:
    """The versions and hardware that compute: the fields of the same names in `RunRecord`."""
    return {
        "version": dabsmix.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
    }


def _record_part(run: Run, step: int, accelerator: Accelerator, say: Callable[[str], None]) -> None:
    """Record in ``run.json`` what continues a run, and say how it differs from what computed the previous part."""
    now = _made_by(accelerator)
    before = run.record.parts[-1] if run.record.parts else asdict(run.record)
    changed = [f"{name} {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
    part = {"step": step, "created": datetime.now(UTC).isoformat(), **now}
    run.update(status="running", failure="", parts=[*run.record.parts, part])
    if changed:
        say(
            f"resumed after step {step} on another setup ({'; '.join(changed)}): rounding, and on another number of "
            "processes dropout, may differ from those of an uninterrupted run"
        )


def _create(config: PretrainConfig, recipe: Recipe, data: Data, algorithm: Algorithm, accelerator: Accelerator) -> Run:
    encoder = algorithm.encoder
    record = RunRecord(
        status="running",
        domain=config.source.name,
        own_data=config.source.modality,
        modality=modality_of(config.source),
        algorithm=config.algo,
        hyper=dict(config.hyper) | started_from(config.init),
        views=algorithm.views,
        uses_labels=algorithm.needs_labels,
        encoder=config.encoder,
        parameters=sum(p.numel() for p in encoder.parameters()),
        protocol=config.source.protocol,
        online=config.online,
        seed=config.seed,
        steps=recipe.steps if algorithm.trains else 0,
        batch_size=recipe.batch_size,
        config_hash=config_hash(config),
        data_fingerprint=data.fingerprint,
        data_state=_reading_state(data),
        notes=data.notes,
        **_made_by(accelerator),
        created=datetime.now(UTC).isoformat(),
    )
    name = config.name or f"{config.source.name}-{config.algo.replace(':', '.')}-s{config.seed}"
    return Run.create(config.out, name, as_plain(config), record)


def _reading_state(data: Data) -> dict[str, Any]:
    """What is needed to read further examples in the same way: the data's state and their standardisation."""
    match data.normalise:
        case Standardise(mean=mean, std=std):
            return {"mean": mean, "std": std, **data.state}
        case same if same is as_stored:
            return {"mean": 0.0, "std": 1.0, **data.state}
    return dict(data.state)
