"""The command line. Heavy packages are imported only by the commands that need them, so ``--help`` is quick."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dabsmix.arguments import read, read_plan, read_pretrain
from dabsmix.config import (
    AuditConfig,
    BenchConfig,
    EmbedConfig,
    ExportConfig,
    LeaderboardConfig,
    ListConfig,
    PretrainConfig,
    QuickstartConfig,
    ReportConfig,
    RunsConfig,
    SubmitConfig,
    TransferConfig,
)
from dabsmix.errors import UserError, did_you_mean
from dabsmix.files import data_root
from dabsmix.interrupt import RESUME_ME, Interrupted
from dabsmix.terminal import log_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dabsmix.board.row import Row

__all__ = ["main"]

DESCRIPTION = "A domain-agnostic self-supervised learning benchmark."


def main() -> None:
    """Entry point of ``dabsmix``: a user's mistake is one line on standard error and exit status 2."""
    try:
        with log_lines() if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            _run(sys.argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process has the same error; one of them prints it
            print(f"dabsmix: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        _say(f"dabsmix: {error}")
        sys.exit(RESUME_ME)
    except KeyboardInterrupt:
        print("dabsmix: interrupted; to continue a pretraining run, repeat the command with --resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `dabsmix leaderboard | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(argv: list[str]) -> None:
    commands: dict[str, tuple[Any, Callable[..., None]]] = {
        "list": (ListConfig, _list),
        "pretrain": (PretrainConfig, _pretrain),
        "transfer": (TransferConfig, _transfer),
        "runs": (RunsConfig, _runs),
        "submit": (SubmitConfig, _submit),
        "leaderboard": (LeaderboardConfig, _leaderboard),
        "bench": (BenchConfig, _bench),
        "report": (ReportConfig, _report),
        "embed": (EmbedConfig, _embed),
        "export": (ExportConfig, _export),
        "audit": (AuditConfig, _audit),
        "quickstart": (QuickstartConfig, _quickstart),
    }
    if argv == ["--version"]:
        from dabsmix import __version__

        return print(f"dabsmix {__version__}")
    if argv[:1] in (["--help"], ["-h"]):
        kinds = {name: kind for name, (kind, _) in commands.items()}
        tyro.extras.subcommand_cli_from_dict(kinds, prog="dabsmix", description=DESCRIPTION, args=["--help"])
    if not argv or argv[0] not in commands:
        mistake = f"unknown command {argv[0]!r}{did_you_mean(argv[0], commands)}" if argv else "no command is given"
        raise UserError(f"{mistake}; commands: {', '.join(commands)}; see `dabsmix --help`")
    command, *args = argv
    if command == "pretrain":
        return _pretrain(*read_pretrain(args))
    if command == "bench":
        return _bench(*read_plan(args))
    kind, action = commands[command]
    action(read(kind, command, args))


# --- the commands: each imports what it needs, and reports what it can before torch is imported, which takes seconds


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _accelerate(precision: str = "fp32", device: str | None = None) -> Accelerator:
    from dabsmix.training import accelerate

    accelerator = accelerate(precision, device)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def _pretrain(config: PretrainConfig, seeds: tuple[int, ...]) -> None:
    from dabsmix.registry import canonical_algorithm, domain
    from dabsmix.run import Run, newest_run

    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: each seed once")
    config.source.check()
    config.check()
    if config.online is not None:
        domain(config.online)
    # several seeds, or a job that SLURM queued again: it may have been stopped before its run began
    begin = len(seeds) > 1 or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if config.resume and not begin:
        resumed = (config.source.name, canonical_algorithm(config.algo), *seeds)

        def may_continue(run: Run) -> bool:
            return (run.record.domain, run.record.algorithm, run.record.seed) == resumed

        newest_run(config.out, may_continue, "run of this configuration to resume")

    from dabsmix.verbs.pretrain import pretrain

    accelerator = _accelerate(config.precision, config.device)
    paths = []
    for seed in seeds:
        folder = f"{config.name}-s{seed}" if config.name and len(seeds) > 1 else config.name
        seeded = replace(config, seed=seed, name=folder)
        run = pretrain(seeded, accelerator=accelerator, say=_say, begin=begin)
        accelerator.free_memory()
        paths.append(str(run.path))
        if os.environ.get("RANK", "0") == "0":
            print(run.path, flush=True)
    if len(paths) > 1:
        _say(f"score them together: dabsmix transfer --run {shlex.join(paths)}")


def _transfer(config: TransferConfig) -> None:
    from dabsmix.verbs.tasks import to_score

    to_score(config)

    from dabsmix.verbs.transfer import Incomplete, transfer

    incomplete = None
    try:
        records = transfer(config, accelerator=_accelerate(device=config.device), say=_say)
    except Incomplete as error:
        records, incomplete = list(error.records), error
    if os.environ.get("RANK", "0") == "0":
        plain = [record.as_plain() for record in records]
        if records or config.json:
            print(json.dumps(plain, indent=1) if config.json else "\n".join(map(str, records)))
    if incomplete is not None:
        raise incomplete


def _runs(config: RunsConfig) -> None:
    from dabsmix.verbs.runs import as_plain, runs, show

    listed = runs(config.out)
    if config.json:
        print(json.dumps(as_plain(listed), indent=1))
    else:
        show(listed)


def _submit(config: SubmitConfig) -> None:
    from dabsmix.board.submit import submit
    from dabsmix.run import newest_run

    if config.run is not None:
        run = config.run
    elif config.failed:
        run = newest_run(config.out, lambda r: r.record.status == "failed", "failed run").path
    else:
        run = newest_run(config.out, lambda r: any(r.path.glob("transfer/*.json")), "transferred run").path
    rows = submit(run, config.by, config.leaderboard, failed=config.failed)
    print(f"{len(rows)} rows of {run} added to {config.leaderboard}")


def _leaderboard(config: LeaderboardConfig) -> None:
    from dabsmix.board import submit as board
    from dabsmix.board import table as board_table
    from dabsmix.board.failures import Failures

    config.check()
    if config.action == "validate":
        reads, problems = board.checked(config.csv, processes=os.cpu_count() or 1)
        for problem in problems:
            print(problem)
        if problems:
            raise UserError(f"{config.csv}: {len(problems)} problems")
        print(f"{config.csv}: valid; the test split was read at most {reads} times for a score")
        return
    if config.action == "verify":
        return _verify(config)
    if config.action == "merge":
        from dabsmix.board.merge import merge

        if not config.others:
            raise UserError("merge: name the CSV files of the leaderboards to add to --csv")
        print(f"{config.csv}: {merge(config.csv, config.others)} rows added")
        return
    shown = {"probe": config.probe, "label_fraction": config.labels}
    rows = board.read(config.csv, **(shown if config.json else {}))
    if (config.probe, config.labels) != ("linear", "1"):
        _check_choice(config, rows if any(not row.failure for row in rows) else board.read(config.csv))
    failed = Failures(config.csv).without_row({row.config_hash for row in rows})
    if config.json or (config.format == "table" and config.out is None):
        from dabsmix.board.overview import as_plain, overviews
        from dabsmix.board.overview import text as as_text

        workers = os.cpu_count() or 1
        overview = overviews(rows, _modality, **shown, processes=workers)
        if config.json:
            print(json.dumps(as_plain(overview), indent=1))
            return
        width = {"width": shutil.get_terminal_size().columns} if sys.stdout.isatty() else {}
        print(as_text(overview, **width), end="")
        board_table.show(rows, failed)
        return
    published = board_table.published(config.csv.parent / "published.csv")
    if config.format == "html":
        from dabsmix.board.page import page

        text = page(rows, published, _modality, failed, **shown)
    else:
        text = board_table.render(rows, config.format, published, failed)
    if config.out is None:
        print(text)
    else:
        from dabsmix.files import write

        write(config.out, lambda path: path.write_text(text, encoding="utf-8"))
        print(config.out)


def _check_choice(config: LeaderboardConfig, rows: list[Row]) -> None:
    """Refuse a probe or a share of the labels that has no scores."""
    shares: dict[str, set[str]] = {}
    for row in rows:
        if not row.failure:
            shares.setdefault(row.probe, set()).add(row.label_fraction)
    if not shares:  # an empty board says so itself
        return
    if config.probe not in shares:
        near = did_you_mean(config.probe, shares)
        raise UserError(f"--probe {config.probe}: {config.csv} has no such probe{near}; it has {', '.join(shares)}")
    if config.labels not in shares[config.probe]:
        known = ", ".join(sorted(shares[config.probe]))
        raise UserError(f"--labels {config.labels}: {config.csv} has no such {config.probe} score; it has {known}")


def _verify(config: LeaderboardConfig) -> None:
    import tempfile

    from dabsmix.board.record import ONLINE
    from dabsmix.run import Run
    from dabsmix.verbs.verify import rows_of, verify

    if config.run is None:
        raise UserError("verify: name the run's folder with --run")
    run = Run(config.run)
    rows = rows_of(run, config.csv)
    accelerator = _accelerate()
    with tempfile.TemporaryDirectory(prefix="dabsmix-retrain-") as folder:
        if config.retrain:
            from dabsmix.verbs.pretrain import pretrain

            config_again, _ = read_pretrain(["--config", str(run.path / "config.yaml"), "--out", folder])
            run = pretrain(config_again, accelerator=accelerator, say=_say)
            same = run.record.encoder_sha256 == rows[0].encoder_sha256
            _say("the encoder trained again is " + ("the submitted one, bit for bit" if same else "another one"))
        elif any(row.probe == ONLINE for row in rows):
            rows = [row for row in rows if row.probe != ONLINE]
            _say("the online score is not checked: its probe was not kept, so it takes --retrain")
        checked = verify(rows, run, accelerator=accelerator, data_root=config.data_root, say=_say)
    for row, value, verdict in checked:
        place = f"{row.task} {row.protocol} {row.probe} {row.label_fraction} {row.metric}"
        print(f"{verdict:<8} {place}: {row.value:.6g} on the leaderboard, {value:.6g} now")
    outside = sum(verdict == "outside" for _, _, verdict in checked)
    if outside:
        raise UserError(
            f"{config.csv}: {outside} of {len(checked)} scores of {rows[0].run} lie outside their intervals"
        )


def _modality(name: str) -> str:
    """The modality of a domain; it is unknown for a user's own data and for domains that are not installed."""
    from dabsmix.registry import domain

    try:
        return domain(name).modality
    except UserError:
        return "other"


def _list(config: ListConfig) -> None:
    from dabsmix.catalogue import catalogue, show

    listed = catalogue(config.what, data_root(config.data_root))
    if config.json:
        print(json.dumps(listed, indent=1))
    else:
        show(listed)


def _bench(plans: list[BenchConfig], path: Path | None) -> None:
    from dabsmix.verbs.bench import bench
    from dabsmix.verbs.cells import cells
    from dabsmix.verbs.estimate import dry_run, lines
    from dabsmix.verbs.workers import share

    first = plans[0]
    chosen = first.chosen or (path.with_suffix(".chosen.json") if path else first.out / "chosen.json")
    if first.dry_run:
        print("\n".join(lines(dry_run(plans, chosen_path=chosen))))
        return
    if first.on == "slurm":
        from dabsmix.verbs.slurm import submit_jobs

        print("\n".join(submit_jobs(sys.argv[1:], first)))
        return
    cells(plans)
    if first.workers > 1:
        status = share(sys.argv[1:], first.workers)
    else:
        _accelerate()
        failed = bench(plans, chosen_path=chosen, say=_say)
        for entry in failed.values():
            _say(f"failed: {entry['domain']} {entry['algorithm']} seed {entry['seed']}: {entry['reason']}")
        status = 1 if failed else 0
    if first.data and status != RESUME_ME:
        from dabsmix.source import load

        of_cells = [cell.pretraining.source for cell in cells(plans)]
        _answer({load(source).fingerprint: source.modality or "other" for source in of_cells}, first)
    if status:
        sys.exit(status)


def _answer(modalities: Mapping[str, str], plan: BenchConfig) -> None:
    """Print which algorithm to use on these data, and what that follows from."""
    from dabsmix.board.advice import advice
    from dabsmix.board.overview import overviews, text
    from dabsmix.board.record import ONLINE
    from dabsmix.board.row import read

    board = read(plan.leaderboard) if plan.leaderboard.exists() else []
    rows = [row for row in board if row.pretrain_fingerprint in modalities]
    scored = [row for row in rows if not row.failure and row.probe != ONLINE and plan.protocol in (None, row.protocol)]
    probes = [row.probe for row in scored]
    probe = "linear" if "linear" in probes else next(iter(probes), "linear")  # finetuning has a probe of its own
    shares = [row.label_fraction for row in scored if row.probe == probe]
    share = "1" if "1" in shares else next(iter(shares), "1")
    of_name = {row.domain: modalities[row.pretrain_fingerprint] for row in rows}
    print(text(overviews(rows, of_name.__getitem__, probe=probe, label_fraction=share)), end="")
    advised = advice(rows, probe=probe, label_fraction=share)
    print("\n".join(advised) or "No run has a score, so there is nothing to advise.")


def _report(config: ReportConfig) -> None:
    from dabsmix.run import finished_runs
    from dabsmix.verbs.report import report

    runs = finished_runs(config.run, config.out)
    accelerator = _accelerate() if config.map else None
    for run in runs:
        print(report(run, accelerator))


def _embed(config: EmbedConfig) -> None:
    config.check()

    from dabsmix.verbs.embed import embed

    _accelerate(device=config.device)
    print(embed(config, say=_say))


def _export(config: ExportConfig) -> None:
    config.check()

    from dabsmix.verbs.export import export

    print(export(config, say=_say))


def _audit(config: AuditConfig) -> None:
    if config.cache:
        _audit_cache()
        return
    from dabsmix.data.audit import audit, divided, render
    from dabsmix.source import load

    data = load(config.source)
    findings = audit(data)
    if not config.json:
        for line in (*data.summary, *divided(data)):
            print(line)
    print(render(findings, as_json=config.json))
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def _audit_cache() -> None:
    from dabsmix.data.cache import check_all

    folders = check_all()
    damaged = {folder: names for folder, names in folders.items() if names}
    for folder, names in damaged.items():
        print(f"{folder}: damaged: {', '.join(names)}")
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(folders)} prepared folders are damaged: they are prepared again when used"
        )
    print(f"{len(folders)} prepared folders: intact")


def _quickstart(config: QuickstartConfig) -> None:
    from dabsmix.verbs.quickstart import quickstart

    board = quickstart(config, accelerator=_accelerate(), say=_say)
    _leaderboard(LeaderboardConfig(csv=board))
    print(f"runs: {board.parent.parent / 'runs'}\nleaderboard: {board} (the record behind each row: runs/ beside it)")


# --- the C library's allocator: a setting of the whole process, made by the program and never by a library call

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors for the next ones.

    By default glibc returns every large block to the kernel when it is freed, and each tensor of the next step takes
    fresh pages, with one page fault for every 4 KiB. A training step allocates and frees the same sizes again and
    again, so keeping them in the process saves these faults; the process then holds its peak of memory. This does
    nothing on other systems than Linux and with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
