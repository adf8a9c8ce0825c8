"""The encoder's file: weights as safetensors, with a header that says how to build the module."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from dabsmix.errors import UserError
from dabsmix.files import write
from dabsmix.model.encoder import Encoder, build_encoder
from dabsmix.model.shapes import AnyConfig, EncoderConfig, MLPConfig, ResNetConfig
from dabsmix.spec import Grid, PaddedGrid, Spec, Table, Tokens, describe

__all__ = ["load_encoder", "save_encoder"]


def _spec_to_json(spec: Spec) -> dict[str, Any]:
    return {"kind": type(spec).__name__, **asdict(spec)}


def _spec_from_json(value: Mapping[str, Any]) -> Spec:
    kinds: dict[str, Callable[..., Spec]] = {kind.__name__: kind for kind in (Grid, PaddedGrid, Table, Tokens)}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "kind"}
    return kinds[value["kind"]](**fields)


def _config_from_json(value: Mapping[str, Any]) -> AnyConfig:
    kinds: dict[str, Callable[..., AnyConfig]] = {"MLPConfig": MLPConfig, "ResNetConfig": ResNetConfig}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "kind"}
    return kinds.get(value.get("kind", ""), EncoderConfig)(**fields)


def save_encoder(path: Path, encoder: Encoder, name: str) -> None:
    """Write the weights as safetensors; the header holds the encoder's name, shape and specs."""
    kind = {} if encoder.has_tokens else {"kind": type(encoder.config).__name__}
    header = {
        "encoder": name,
        "config": {**kind, **asdict(encoder.config)},
        "specs": [_spec_to_json(spec) for spec in encoder.specs],
    }
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    # One entry only: safetensors writes several in random order, but equal encoders must give equal files.
    content = save(state, metadata={"dabsmix": json.dumps(header)})
    write(path, lambda p: p.write_bytes(content))


def load_encoder(path: Path, specs: tuple[Spec, ...] | None = None) -> Encoder:
    """The encoder of a file, in eval mode.

    Args:
        path: an ``encoder.safetensors``.
        specs: the inputs that it must accept; None for those that it was made for.

    Raises:
        UserError: the file is missing, damaged or not ours; its weights do not fit the encoder that it names (the
            message lists the keys); or it was made for other inputs.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; pretrain again or name another run") from error
    try:
        header = json.loads(metadata["dabsmix"])
        own_specs = tuple(_spec_from_json(value) for value in header["specs"])
        config = _config_from_json(header["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by this version of dabsmix: its header names no encoder") from error
    if specs is not None and specs != own_specs:
        raise UserError(
            f"{path} was made for {describe(own_specs)}; these data are {describe(specs)}: "
            "transfer to a domain of the same input, or pretrain on this one"
        )
    encoder = build_encoder(own_specs, config)
    expected = {key: value.shape for key, value in encoder.state_dict().items()}
    actual = {key: value.shape for key, value in state.items()}
    if expected != actual:
        missing = sorted(expected.keys() - actual.keys())
        extra = sorted(actual.keys() - expected.keys())
        other = sorted(key for key in expected.keys() & actual.keys() if expected[key] != actual[key])
        raise UserError(f"{path} does not fit: missing {missing}, unexpected {extra}, other shape {other}")
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()
