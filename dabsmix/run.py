"""A run's folder: its configuration, its record, its metrics and the encoder that it produced.

``config.yaml``, ``run.json``, ``metrics.jsonl``, ``encoder.safetensors``, ``checkpoints/``, ``transfer/``. Every file
is written completely or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dabsmix.errors import UserError
from dabsmix.files import is_temporary, parsed, sha256, sweep, unwritable, write

if TYPE_CHECKING:
    import torch

    from dabsmix.model.encoder import Encoder
    from dabsmix.spec import Spec

__all__ = ["Run", "RunRecord", "commit", "device_name", "finished_runs", "newest_run", "read_record", "readable_runs"]

KEPT_CHECKPOINTS = 2
LOCK = ".lock"


SOURCES = (":/dabsmix", ":/domains", ":/algorithms", ":/pyproject.toml")
"""What computes, from the top of the repository."""


def commit() -> str:
    """The commit of the source code, with ``+dirty`` if its files differ from it; empty if there is none.

    Other files do not count: a board's new rows, of which every cell of a matrix adds some, change no number.
    """

    def git(*words: str) -> str:
        package = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parent.parent:
            return ""  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--", *SOURCES) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of a run: the contents of ``run.json``.

    Attributes:
        status: ``running``, ``interrupted`` (by a signal; it can be resumed), ``failed`` or ``finished``.
        domain: the name of the data; ``own_data`` is their modality if they are a user's own files.
        modality: that of the data, whatever their source; empty in runs that did not record it.
        algorithm, hyper: its name and hyperparameters; ``views`` and ``uses_labels`` say what it was given.
        encoder, parameters: the encoder's name and its number of weights.
        protocol, seed, steps, batch_size, online: as in the configuration; 0 steps if nothing is trained.
        config_hash: of the configuration.
        data_fingerprint, data_state, notes: see `domain.Data`.
        version, commit, torch, device, processes: what computed the run, or its first part.
        parts: the same for each time that the run was resumed, and after which step.
        failure: what stopped a failed run, in one line.
        created: when, ISO 8601 in UTC.
        name: the name of the folder.
        seconds: wall time of the training; None until it is finished.
        flops: of the whole training, see `budget.training_flops`; None in runs of a version that did not count them.
        encoder_sha256: digest of the encoder's file; empty until the run is finished.
        metrics: the last line of metrics.
    """

    status: str
    domain: str
    own_data: str | None = None
    modality: str = ""
    algorithm: str
    hyper: Mapping[str, Any]
    views: str
    uses_labels: bool
    encoder: str
    parameters: int
    protocol: str
    online: str | None = None
    seed: int
    steps: int
    batch_size: int
    config_hash: str
    data_fingerprint: str
    data_state: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: str
    commit: str = ""
    torch: str = ""
    device: str = ""
    processes: int = 1
    created: str = ""
    name: str = ""
    seconds: float | None = None
    flops: float | None = None
    encoder_sha256: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Mapping[str, Any], ...] = ()
    failure: str = ""


def read_record(folder: Path) -> RunRecord:
    """The record of the run in this folder; unknown entries are ignored.

    Raises:
        UserError: there is no ``run.json``, or it is damaged.
    """
    return parsed(RunRecord, _read_plain(folder))


def _read_plain(folder: Path) -> dict[str, Any]:
    """The contents of ``run.json``, checked, including the entries that this version does not know."""
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run: it holds no run.json; name the folder that `dabsmix pretrain` printed")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        parsed(RunRecord, values)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder} and pretrain again") from error
    assert isinstance(values, dict)
    return values


class Run:
    """One run's folder.

    Attributes:
        path: the folder.
        record: the contents of its ``run.json``.

    Raises:
        UserError: the folder is not a run, or its ``run.json`` is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plain = _read_plain(path)
        self.record = parsed(RunRecord, self._plain)

    @classmethod
    def create(cls, out: Path, name: str, config: Mapping[str, Any], record: RunRecord) -> Run:
        """Create a run in a new folder ``out/name``, or ``out/name-2``, ... if that exists; it appears with both files.

        Raises:
            UserError: ``out`` is a file, or cannot be written.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            _sweep(out, name)
            folder = Path(tempfile.mkdtemp(dir=out, prefix=f".{name}."))
        except OSError as error:
            raise UserError(f"cannot make a folder in {out}: {error.strerror}; choose another --out") from error
        try:
            text = yaml.safe_dump(dict(config), sort_keys=False)
            write(folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8"))
            folder.chmod(0o755)
            for number in count(1):
                path = out / (name if number == 1 else f"{name}-{number}")
                if path.exists():
                    continue
                _write_json(folder / "run.json", asdict(record) | {"name": path.name})
                try:
                    folder.rename(path)
                    break
                except OSError:
                    if not path.exists():  # else another process made it a moment ago
                        raise
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"cannot make a folder in {out}: {error.strerror}; choose another --out") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(path)

    def update(self, **changes: Any) -> None:
        """Change fields of ``run.json``."""
        self._plain |= changes
        self.record = parsed(RunRecord, self._plain)
        _write_json(self.path / "run.json", self._plain)

    @property
    def finished(self) -> bool:
        """Whether the encoder is final."""
        return self.record.status == "finished"

    def require_finished(self) -> None:
        """Refuse a run that has no final encoder.

        Raises:
            UserError: the run is unfinished, or has failed.
        """
        if not self.finished:
            if self.record.failure:
                raise UserError(
                    f"{self.path} has failed ({self.record.failure}): start again, or continue it with "
                    "`dabsmix pretrain --resume` when the cause is gone"
                )
            raise UserError(f"{self.path} is unfinished: continue it with `dabsmix pretrain --resume`")

    @property
    def config(self) -> dict[str, Any]:
        """The contents of ``config.yaml``; empty if there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): restore it") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is damaged (it holds no lines `field: value`): restore it")
        return values

    @property
    def modality(self) -> str:
        """The modality of the data, in runs that did not record it too."""
        from dabsmix.registry import domain

        return self.record.modality or self.record.own_data or domain(self.record.domain).modality

    @property
    def data_root(self) -> Path | None:
        """The data root that the run was given with ``--data-root``; None without it, or where it does not exist."""
        root = self.config.get("data_root")
        return Path(root) if root and Path(root).is_dir() else None  # a run may have been made on another machine

    def encoder(self, specs: tuple[Spec, ...] | None = None) -> Encoder:
        """The encoder at the end of the run, in eval mode.

        Args:
            specs: the inputs that it must accept; None for those that it was made for.

        Raises:
            UserError: the run is unfinished; or its file is damaged, is not the run's, or was made for other inputs.
        """
        from dabsmix.model.checkpoint import load_encoder

        self.require_finished()
        return load_encoder(self.encoder_file(), specs)

    # metrics.jsonl: one object per line

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics.

        Raises:
            UserError: the file cannot be written, or the disk is full.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(line)) + "\n")
        except OSError as error:
            raise unwritable(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics, except an incomplete last one.

        Raises:
            UserError: another line is damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        metrics = []
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is incomplete, or empty
            try:
                values = json.loads(line)
                metrics.append(values | {"step": int(values["step"])})
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is damaged: delete {self.path}, and pretrain again") from error
        return metrics

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which will be written again, and an incomplete last line."""
        earlier = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write(self.path / "metrics.jsonl", lambda p: p.write_text("".join(earlier), encoding="utf-8"))

    # one process at a time

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on the run's folder, and delete the temporary files that killed processes left in it.

        The system releases the lock when the process ends, however it ends.

        Raises:
            UserError: another process holds it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is working on {self.path}: wait until it ends, or stop it first"
            ) from None
        except NotImplementedError:
            pass  # a file system without locks
        except OSError as error:
            raise unwritable(self.path / LOCK, error) from error
        try:
            for folder in (self.path, *(path for path in self.path.iterdir() if path.is_dir())):
                sweep(folder)
            yield
        finally:
            lock.release()

    @property
    def locked(self) -> bool:
        """Whether a process works on the run at this moment."""
        from filelock import FileLock, Timeout

        if not (self.path / LOCK).exists():
            return False
        try:
            with FileLock(self.path / LOCK, timeout=0):
                return False
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            return False

    # checkpoints: everything that training needs to continue

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps and its digest; keep the newest two checkpoints."""
        import torch

        file = io.BytesIO()  # torch.save reports a full disk as a RuntimeError
        torch.save(dict(state), file)
        path = self.path / "checkpoints" / f"{step:09d}.pt"
        line = f"{hashlib.sha256(file.getbuffer()).hexdigest()}  {path.name}\n"
        _digest_file(path).unlink(missing_ok=True)  # that of a damaged checkpoint which this one replaces
        write(path, lambda p: p.write_bytes(file.getbuffer()))
        write(_digest_file(path), lambda p: p.write_text(line, encoding="utf-8"))
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)

    def load_checkpoint(self, say: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
        """The newest intact checkpoint, or None if there is none yet. Only tensors and plain values are loaded.

        Args:
            say: called with a sentence for each newer one that is damaged.

        Raises:
            UserError: all of them are damaged.
        """
        checkpoints = self._checkpoints()
        for path in reversed(checkpoints):
            try:
                return _read_checkpoint(path)
            except ValueError as error:
                say(f"{path} is damaged ({error}): training continues from the checkpoint before it")
        if checkpoints:
            raise UserError(
                f"every checkpoint in {checkpoints[0].parent} is damaged: delete that folder to start at step 0"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("[0-9]*.pt"))

    @property
    def checkpoint_step(self) -> int:
        """How many steps the newest checkpoint holds; 0 without one."""
        return max((int(path.stem) for path in self._checkpoints() if path.stem.isdigit()), default=0)

    # the encoder

    def encoder_file(self) -> Path:
        """The encoder's file, after a check that its bytes are those that the run wrote.

        Raises:
            UserError: the file is missing or has changed.
        """
        path = self.path / "encoder.safetensors"
        try:
            digest = sha256(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; pretrain again or name another run") from error
        if digest != self.record.encoder_sha256:
            raise UserError(f"{path} is not the encoder that this run ended with: restore it, or pretrain again")
        return path


def _digest_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; a ValueError says what is wrong with the file."""
    import torch

    try:
        if _digest_file(path).exists():
            if sha256(path) != _digest_file(path).read_text(encoding="utf-8").split(maxsplit=1)[0]:
                raise ValueError("its bytes are not those that were written")
        else:  # written before there were digests; torch itself does not verify the checksums in its zip file
            with zipfile.ZipFile(path) as zipped:
                if zipped.testzip() is not None:
                    raise ValueError("its bytes are not those that were written")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise many kinds of exceptions on damaged bytes
        raise ValueError(f"cannot be read: {type(error).__name__}") from error
    if not isinstance(state, dict) or state.get("step") != int(path.stem):
        raise ValueError("its step is not the one in its name")
    return state


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write(path, lambda p: p.write_text(json.dumps(values, indent=1), encoding="utf-8"))


def _sweep(out: Path, name: str) -> None:
    """Delete folders that a process was killed in while it made a run; those of the last minute may be another's."""
    for folder in out.glob(f".{name}.*"):
        if is_temporary(folder.name) and folder.stat().st_mtime < time.time() - 60:
            shutil.rmtree(folder, ignore_errors=True)


def readable_runs(out: Path) -> list[Run]:
    """The runs under ``out``, except those whose ``run.json`` is damaged, which must not stop the others."""
    runs = []
    for path in sorted(out.glob("[!.]*/run.json")):
        with suppress(UserError):
            runs.append(Run(path.parent))
    return runs


def newest_run(out: Path, condition: Callable[[Run], bool], description: str) -> Run:
    """The newest run under ``out`` for which ``condition`` holds.

    Raises:
        UserError: there is none.
    """
    runs = [run for run in readable_runs(out) if condition(run)]
    if not runs:
        raise UserError(f"no {description} under {out}: name another --out, or start with `dabsmix pretrain`")
    return max(runs, key=lambda run: (run.record.created, run.path.name))


def finished_runs(paths: Sequence[Path], out: Path) -> list[Run]:
    """The runs in these folders; the newest finished run under ``out`` if no folder is named.

    Raises:
        UserError: a folder is not a run, or the run is unfinished; there is no finished run under ``out``.
    """
    runs = [Run(path) for path in paths] or [newest_run(out, lambda run: run.finished, "finished run")]
    for run in runs:
        run.require_finished()
    return runs


def device_name(device: torch.device) -> str:
    """The name of the hardware of a device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    return f"{model}, {os.cpu_count()} cores"
