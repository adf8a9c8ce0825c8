"""A run's folder: what was asked for, what was done, how it went, and the encoder that came of it.

``config.yaml``, ``run.json``, ``metrics.jsonl``, ``encoder.safetensors``, ``checkpoints/``, ``transfer/``. Every file
appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dabsmix.errors import UserError
from dabsmix.files import unwritable, write

if TYPE_CHECKING:
    import torch

__all__ = ["Run", "commit", "device_name", "newest_run"]

KEPT_CHECKPOINTS = 2


def commit() -> str:
    """The commit of the source this runs from, ``+dirty`` where files differ from it; empty where there is none."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parent.parent:
            return ""  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


class Run:
    """One run's folder.

    Raises:
        UserError: the folder is no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "run.json").is_file():
            raise UserError(f"{path} is no run: it holds no run.json; name the folder that `dabsmix pretrain` printed")
        try:
            self.record: dict[str, Any] = json.loads((path / "run.json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path / 'run.json'} is damaged ({error}); pretrain again") from error

    @classmethod
    def create(cls, out: Path, name: str, config: Mapping[str, Any], record: Mapping[str, Any]) -> Run:
        """A new folder ``out/name``, or ``out/name-2``, ... where that is taken.

        Raises:
            UserError: ``out`` is a file, or cannot be written.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                path = out / (name if number == 1 else f"{name}-{number}")
                with suppress(FileExistsError):  # another process may have made it a moment ago
                    path.mkdir()
                    break
        except OSError as error:
            raise UserError(f"cannot make a folder in {out}: {error.strerror}; choose another --out") from error
        write(
            path / "config.yaml",
            lambda p: p.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8"),
        )
        write(
            path / "run.json",
            lambda p: p.write_text(json.dumps(dict(record, name=path.name), indent=1), encoding="utf-8"),
        )
        return cls(path)

    def update(self, **changes: Any) -> None:
        """Change fields of ``run.json``."""
        self.record.update(changes)
        write(self.path / "run.json", lambda p: p.write_text(json.dumps(self.record, indent=1), encoding="utf-8"))

    @property
    def finished(self) -> bool:
        """Whether the encoder is final."""
        return bool(self.record.get("status") == "finished")

    # metrics.jsonl: one object a line

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
        """Every line of metrics."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``: they will be written again. A torn last line goes too."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write(path, lambda p: p.write_text("".join(line + "\n" for line in kept), encoding="utf-8"))

    # checkpoints: everything that training needs to go on

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps; the newest two are kept."""
        import torch

        file = io.BytesIO()  # torch.save reports a full disk as a RuntimeError of its own
        torch.save(dict(state), file)
        write(self.path / "checkpoints" / f"{step:09d}.pt", lambda p: p.write_bytes(file.getbuffer()))
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint, None where there is none yet. Only tensors and plain values are admitted.

        Raises:
            UserError: the file is damaged, or holds anything else.
        """
        import pickle

        import torch

        found = self._checkpoints()
        if not found:
            return None
        try:
            state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{found[-1]} is damaged: delete it, to go on from the checkpoint before it") from error
        return state

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("[0-9]*.pt"))


def newest_run(out: Path, wanted: Callable[[Run], bool], description: str) -> Run:
    """The newest run under ``out`` for which ``wanted`` holds.

    Raises:
        UserError: there is none.
    """
    runs = [Run(path.parent) for path in out.glob("*/run.json")]
    found = sorted((run for run in runs if wanted(run)), key=lambda run: (run.record.get("created", ""), run.path.name))
    if not found:
        raise UserError(f"no {description} under {out}: name another --out, or start with `dabsmix pretrain`")
    return found[-1]


# --- the encoder's file: weights, and in its header all that is needed to build the module again


def device_name(device: torch.device) -> str:
    """The hardware that numbers were measured on."""
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
