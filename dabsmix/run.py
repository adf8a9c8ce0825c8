"""A run's folder: what was asked for, what was done, how it went, and the encoder that came of it.

``config.yaml``, ``run.json``, ``metrics.jsonl``, ``encoder.safetensors``, ``checkpoints/``, ``transfer/``. Every file
appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dabsmix.errors import UserError
from dabsmix.spec import Grid, Spec, Table, Tokens, describe

if TYPE_CHECKING:
    from dabsmix.encoder import Encoder

__all__ = ["Run", "commit", "load_encoder", "newest_run", "save_encoder", "sha256", "write"]

KEPT_CHECKPOINTS = 2


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a temporary sibling, then put it in place of ``path`` in one step.

    Raises:
        UserError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space there or choose another folder")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            raise _unwritable(path, error) from error

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


def _spec_to_json(spec: Spec) -> dict[str, Any]:
    return {"kind": type(spec).__name__, **asdict(spec)}


def _spec_from_json(value: Mapping[str, Any]) -> Spec:
    kinds: dict[str, Callable[..., Spec]] = {"Grid": Grid, "Table": Table, "Tokens": Tokens}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "kind"}
    return kinds[value["kind"]](**fields)


def save_encoder(path: Path, encoder: Encoder, name: str) -> None:
    """Weights as safetensors; the header carries the encoder's name, shape and specs."""
    from safetensors.torch import save

    header = {
        "encoder": name,
        "config": asdict(encoder.config),
        "specs": [_spec_to_json(spec) for spec in encoder.specs],
    }
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    # One entry only: safetensors orders several at random, and equal encoders are to be equal files.
    content = save(state, metadata={"dabsmix": json.dumps(header)})
    write(path, lambda p: p.write_bytes(content))


def load_encoder(path: Path, specs: tuple[Spec, ...] | None = None) -> Encoder:
    """The encoder of a file, in eval mode.

    Args:
        path: an ``encoder.safetensors``.
        specs: the inputs that it must take; None for whatever it was made for.

    Raises:
        UserError: the file is missing, damaged or not ours, its weights do not fit the encoder that it names (the
            keys are listed), or it was made for other inputs.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from dabsmix.encoder import Encoder, EncoderConfig

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; pretrain again or name another run") from error
    try:
        header = json.loads(metadata["dabsmix"])
        own_specs = tuple(_spec_from_json(value) for value in header["specs"])
        config = EncoderConfig(**header["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by this version of dabsmix: its header names no encoder") from error
    if specs is not None and specs != own_specs:
        raise UserError(
            f"{path} was made for {describe(own_specs)}; these data are {describe(specs)}: "
            "transfer to a domain of the same input, or pretrain on this one"
        )
    encoder = Encoder(own_specs, config)
    expected = {key: value.shape for key, value in encoder.state_dict().items()}
    given = {key: value.shape for key, value in state.items()}
    if expected != given:
        missing = sorted(expected.keys() - given.keys())
        extra = sorted(given.keys() - expected.keys())
        other = sorted(key for key in expected.keys() & given.keys() if expected[key] != given[key])
        raise UserError(f"{path} does not fit: missing {missing}, unexpected {extra}, other shape {other}")
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()
