"""The command line. Heavy packages are imported only by the commands that need them, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import tyro

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
from dabsmix.source import Source, read_yaml
from dabsmix.terminal import log_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dabsmix.board.row import Row
    from dabsmix.verbs.bench import CellTime

__all__ = ["main"]

DESCRIPTION = "A domain-agnostic self-supervised learning benchmark."
SEEDS = "Several seeds in place of --seed: one run each, one after the other; --resume continues where they stopped."


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
        return _pretrain(*_read_pretrain(args))
    if command == "bench":
        return _bench(*_read_plan(args))
    kind, action = commands[command]
    action(_read(kind, command, args))


T = TypeVar("T")
_USAGE = {"bench": "bench [PLAN.yaml]"}


def _read(kind: type[T], command: str, args: list[str]) -> T:
    """The configuration that a command's arguments ask for.

    Raises:
        UserError: tyro's complaint on one line.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            prog = f"dabsmix {_USAGE.get(command, command)}"
            return tyro.cli(kind, prog=prog, args=args, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as error:
        if error.code in (0, None):  # --help
            raise
        message = _in_words(_on_one_line(complaint.getvalue()), kind)
        raise UserError(f"{message}; see `dabsmix {command} --help`") from None


def _on_one_line(box: str) -> str:
    """What tyro prints in a box: the complaint, and the flag that it finds nearest."""
    title = 1 if box.startswith("╭") else 2  # a terminal without UTF-8 gets no frame, and a rule below the title
    lines = [line.strip(" │") for line in box.strip().splitlines()[title:] if not line.startswith("╰")]
    lines = ["" if set(line) <= set("─-") else line for line in lines]
    end = lines.index("") if "" in lines else len(lines)  # a rule ends the complaint; hints follow
    words = " ".join(lines[:end]).split() or ["these", "arguments", "cannot", "be", "read"]
    missing = next((n for n, word in enumerate(words) if word.endswith(":") and words[0] == "Missing"), None)
    message = " ".join(words if missing is None else words[: missing + 2]).rstrip(".")
    close = next((line.split()[0] for line in lines[1:] if line.startswith("--")), None)
    return f"{message} (did you mean {close}?)" if close is not None and message.startswith("Unrecognized") else message


def _in_words(message: str, kind: type[Any]) -> str:
    """The same complaint with what the flag's type allows; tyro names types as code, and choices in any order."""
    if match := re.match(r"Error parsing --(\S+): .*\[(.*)\]", message):
        declared = str(_types(kind).get(match[1].replace("-", "_")))
        words = {"int": "a whole number", "float": "a number", "bool": "True or False"}
        allowed = next((text for name, text in words.items() if name in declared), "of another type")
        return f"--{match[1]} {match[2].replace(chr(39), '')}: must be {allowed}"
    match = re.match(r"(invalid choice '(.*)' for argument '(?:--)?(.*)'\. Expected one of )\((.*)\)", message)
    if match is None:
        return message
    declared = str(_types(kind).get(match[3].replace("-", "_")))
    choices = sorted(
        set(re.findall("'(.*?)'", match[4])) - {"None"}, key=lambda name: (declared.find(repr(name)), name)
    )
    return f"{match[1]}{', '.join(choices)}{did_you_mean(match[2], choices)}"


def _types(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by name, with those of the dataclasses in it."""
    types = get_type_hints(kind)
    inner = [_types(part) for part in types.values() if is_dataclass(part)]
    return dict(ChainMap(types, *inner))


# --- pretrain's flags: flag > file > protocol > default


def _read_pretrain(args: list[str]) -> tuple[PretrainConfig, tuple[int, ...]]:
    """What pretrain's arguments ask for, and the seeds to repeat it with.

    The algorithm's hyperparameters are flags too, so its name is read first. The values of ``--config`` come before the
    other arguments, so that they are read, checked and overridden as flags are: of a flag given twice the last counts.
    """
    from dabsmix.registry import algorithm_dabs, algorithm_flags

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--algo", "--protocol"):
        first.add_argument(name, nargs="?")  # tyro complains about a missing value
    known, _ = first.parse_known_args(args)
    if "--config" in args and known.config is None:
        raise UserError("--config: name a YAML file, such as a run's config.yaml")
    file = {} if known.config is None else _read_fields(Path(known.config), "--config ")
    algo = known.algo or str(file.get("algo") or PretrainConfig.algo)  # a file may hold a list by mistake
    protocol = known.protocol or file.get("protocol") or Source.protocol

    hyper = {flag.name: flag for flag in algorithm_flags(algo)}
    names = [f.name for kind in (PretrainConfig, Source) for f in fields(kind) if f.name not in ("source", "hyper")]
    for name in file:
        if name not in names and name not in hyper:
            raise UserError(f"{known.config}: unknown field {name!r}{did_you_mean(name, [*names, *hyper])}")
    for name in hyper:
        if name in names:
            raise UserError(f"--algo {algo}: its hyperparameter {name!r} has the name of a flag of pretrain; rename it")

    dabs = algorithm_dabs(algo) if protocol == "dabs" else {}
    hyper_fields: list[Any] = [
        (flag.name, Annotated[flag.type, tyro.conf.arg(help=flag.help or None)], dabs.get(flag.name, flag.default))
        for flag in hyper.values()
    ]
    parts: list[Any] = [
        ("config", Annotated[PretrainConfig, tyro.conf.arg(name="")]),
        ("algorithm", make_dataclass("Algorithm", hyper_fields, namespace={"__doc__": f"Hyperparameters of {algo}."})),
        ("seeds", Annotated[tuple[int, ...], tyro.conf.arg(help=SEEDS)], ()),
    ]
    switches = {f.name for f in fields(PretrainConfig) if isinstance(f.default, bool)}
    switches |= {flag.name for flag in hyper.values() if flag.type is bool}
    flags: Any = _read(
        make_dataclass("Pretrain", parts, namespace={"__doc__": PretrainConfig.__doc__}),
        "pretrain",
        [*_as_words(file, switches), *_without(args, "--config")],
    )
    return replace(flags.config, hyper=vars(flags.algorithm)), flags.seeds or (flags.config.seed,)


def _read_fields(path: Path, flag: str = "") -> dict[str, Any]:
    """The values of a YAML file of fields."""
    return read_yaml(path, f"{flag}{path}", "field: value")


def _as_words(values: Mapping[str, Any], switches: Set[str], several: Set[str] = frozenset()) -> list[str]:
    """A file's values as arguments; a field that is left empty takes its default.

    Args:
        values: by field.
        switches: fields that are set by ``--flag`` and ``--no-flag``.
        several: fields that take several values.
    """
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if name in switches and isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name in several and isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def _without(args: list[str], flag: str) -> list[str]:
    """The arguments without a flag and its value."""
    others, skip = [], False
    for word in args:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            others.append(word)
    return others


# --- bench's plan: flag > part of the plan > plan > default


def _read_plan(args: list[str]) -> tuple[list[BenchConfig], Path | None]:
    """One `BenchConfig` per part of the plan, if the arguments name one: first, or a YAML file anywhere among them."""
    place = _plan_among(args)
    if place is None:
        return [_read(BenchConfig, "bench", args)], None
    path, flags = Path(args[place]), [*args[:place], *args[place + 1 :]]
    plan = _read_fields(path)
    parts = plan.pop("parts", [{}])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: parts: expected a list of matrices, each with lines `field: value`")
    known = [f.name for f in fields(BenchConfig)]
    switches = {f.name for f in fields(BenchConfig) if isinstance(f.default, bool)}
    several = {f.name for f in fields(BenchConfig) if f.type.startswith("tuple")}
    configs = []
    for part in parts:
        values = plan | part
        for name in values:
            if name not in known:
                raise UserError(f"{path}: unknown field {name!r}{did_you_mean(name, known)}")
        configs.append(_read(BenchConfig, "bench", _last_given([*_as_words(values, switches, several), *flags])))
    return configs, path


def _plan_among(args: list[str]) -> int | None:
    """Which argument is the plan; a YAML file after a flag that takes a path is that flag's."""
    if args and not args[0].startswith("-"):
        return 0
    of_paths, flag = {f"--{f.name.replace('_', '-')}" for f in fields(BenchConfig) if "Path" in f.type}, ""
    for place, word in enumerate(args):
        if word.startswith("--"):
            flag = word
        elif word.endswith((".yaml", ".yml")) and flag not in of_paths:
            return place
    return None


def _last_given(words: list[str]) -> list[str]:
    """Each flag once, with the values that were given last."""
    groups: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            groups[name] = [value] if value else []
        else:
            groups.setdefault(name, []).append(word)
    return [word for name, values in groups.items() for word in (name, *values)]


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

    _refuse_idle_flags(config)
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


def _refuse_idle_flags(config: LeaderboardConfig) -> None:
    """Refuse what the action would leave unread."""
    if config.others and config.action != "merge":
        raise UserError(f"{config.others[0]}: only `merge` takes files; --csv names the leaderboard")
    if config.action != "verify" and (config.run is not None or config.retrain):
        raise UserError("--run and --retrain are for `leaderboard verify`")
    if config.action != "show" and (config.json or config.out is not None or config.format != "table"):
        raise UserError(f"--json, --format and --out are for `leaderboard show`, not for {config.action}")
    if config.json and (config.format != "table" or config.out is not None):
        raise UserError("--json prints the overview on standard output: leave out --format and --out")
    if (config.probe, config.labels) != ("linear", "1") and (config.action != "show" or config.format in ("md", "csv")):
        where = config.action if config.action != "show" else f"--format {config.format}"
        raise UserError(f"--probe and --labels choose the scores of the overview, which {where} does not have")


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

            config_again, _ = _read_pretrain(["--config", str(run.path / "config.yaml"), "--out", folder])
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
    from dabsmix.verbs.bench import bench, cells, dry_run

    first = plans[0]
    chosen = first.chosen or (path.with_suffix(".chosen.json") if path else first.out / "chosen.json")
    if first.dry_run:
        print("\n".join(_estimates(dry_run(plans, chosen_path=chosen))))
        return
    if first.on == "slurm":
        from dabsmix.verbs.slurm import submit_jobs

        print("\n".join(submit_jobs(sys.argv[1:], first)))
        return
    cells(plans)
    if first.workers > 1:
        status = _share(first.workers)
    else:
        _accelerate()
        failed = bench(plans, chosen_path=chosen, say=_say)
        for entry in failed.values():
            _say(f"failed: {entry['domain']} {entry['algorithm']} seed {entry['seed']}: {entry['reason']}")
        status = 1 if failed else 0
    if first.data and status != RESUME_ME:
        from dabsmix.source import load

        _answer({load(cell.pretraining.source).fingerprint for cell in cells(plans)}, first)
    if status:
        sys.exit(status)


def _estimates(of_cells: list[CellTime]) -> Iterator[str]:
    """A line for each cell with its state and time, and one for all."""
    missing = [one for one in of_cells if one.state == "missing"]
    measured = [one for one in missing if one.pretraining is not None]
    for one in of_cells:
        time = ""
        if one.pretraining is not None:
            time = f"  about {(one.pretraining + (one.transfer or 0)) / 60:.1f} min"
            time += " without transfer" if one.transfer is None else ""
        yield f"{one.state:<8} {one.cell}, {one.cell.budget}{time}"
    hours = sum((one.pretraining or 0) + (one.transfer or 0) for one in measured) / 3600
    text = (
        f"{len(missing)} of {len(of_cells)} cells are missing; {len(measured)} of them take about {hours:.1f} h on one "
        f"worker of the kind that was measured; {len(missing) - len(measured)} were never measured"
    )
    untimed = sum(one.transfer is None for one in measured)
    yield text + (f"; the transfer of {untimed} is not counted, because no times of it are in --out" if untimed else "")


def _answer(fingerprints: set[str], plan: BenchConfig) -> None:
    """Print which algorithm to use on these data, and what that follows from."""
    from dabsmix.board.advice import advice
    from dabsmix.board.overview import overviews, text
    from dabsmix.board.row import read

    board = read(plan.leaderboard) if plan.leaderboard.exists() else []
    rows = [row for row in board if row.pretrain_fingerprint in fingerprints]
    shares = list(dict.fromkeys(row.label_fraction for row in rows if not row.failure))
    share = "1" if "1" in shares else next(iter(shares), "1")
    modality = plan.modality or "other"
    print(text(overviews(rows, lambda _: modality, label_fraction=share)), end="")
    print("\n".join(advice(rows, label_fraction=share)) or "No run has a score, so there is nothing to advise.")


def _share(workers: int) -> int:
    """Run the same command in several processes, which share the cells; returns the worst of their exit statuses."""
    import subprocess

    command = [sys.executable, "-m", "dabsmix", *sys.argv[1:], "--workers", "1"]
    # what a worker says goes to stderr; the answer on stdout is given once, when all have ended
    children: list[subprocess.Popen[bytes]] = []
    asked = False

    def stop(*_: Any) -> None:
        nonlocal asked
        asked = True
        for child in children:
            child.terminate()

    before = signal.signal(signal.SIGTERM, stop)  # each writes a checkpoint, and is waited for
    try:
        children += [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers)]
        status = max(abs(child.wait()) for child in children)
    except BaseException:
        stop()
        raise
    finally:
        for child in children:
            child.wait()
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise Interrupted("the workers were asked to stop; the same command goes on from here")
    return status


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
