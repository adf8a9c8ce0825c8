"""Initial weights: those of a run, and those of timm under our names."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from dabsmix.board.forgery import check_record
from dabsmix.config import PretrainConfig
from dabsmix.errors import UserError
from dabsmix.model.encoder import Transformer
from dabsmix.model.shapes import EncoderConfig
from dabsmix.model.start import take, timm_name, timm_weights
from dabsmix.run import Run
from dabsmix.source import Source
from dabsmix.spec import Grid
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

SHAPE = EncoderConfig(
    width=192, depth=12, heads=3, head_dim=64, mlp=768, dropout=0.0, qkv_bias=True, final_norm=True, eps=1e-6
)


@pytest.fixture
def offline_timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small ViT, with random weights in place of those of the hub."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4).eval()
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: model)
    return model


def test_an_encoder_with_timm_s_weights_gives_timm_s_features(offline_timm: Any) -> None:
    encoder = Transformer((Grid(3, (32, 32), (4, 4)),), SHAPE).eval()
    loaded, random = take(encoder, timm_weights("vit_tiny_patch16_224"))
    assert random == ()
    assert len(loaded) == len(encoder.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(encoder.embed((images,))), offline_timm.forward_features(images))


def test_weights_of_other_shapes_keep_their_random_values(offline_timm: Any) -> None:
    encoder = Transformer((Grid(1, (32, 32), (8, 8)),), SHAPE)
    before = encoder.positions.clone()
    _, random = take(encoder, timm_weights("vit_tiny_patch16_224"))
    assert random == ("positions", "embedders.0.linear.weight")
    assert torch.equal(encoder.positions, before)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"init_values": 0.1}, "has 'blocks.0.ls1"), ({"reg_tokens": 4}, "has 'reg_"), ({"pre_norm": True}, "has no '")],
)
def test_a_transformer_that_computes_more_is_refused(
    changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, **changes)
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: model)
    with pytest.raises(UserError, match=rf"not a plain vision transformer \(it {problem}"):
        timm_weights("vit_small_patch14_dinov2")


def test_names_of_timm() -> None:
    assert timm_name("vit_base_patch16_224") == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    with pytest.raises(UserError, match="did you mean 'vit_base_patch16_224"):
        timm_name("vit_bas_patch16_224")


def go(out: Path, **changes: Any) -> Run:
    settings = dict(algo="emix", encoder="tiny", steps=2, batch_size=8) | changes
    return pretrain(PretrainConfig(Source("digits"), out=out, **settings), accelerator=accelerate())  # type: ignore[arg-type]


def test_a_run_records_the_run_it_starts_from(tmp_path: Path) -> None:
    first = go(tmp_path)
    named = f"{first.path}@{first.record.encoder_sha256[:12]}"
    second = go(tmp_path, init=str(first.path))
    assert yaml.safe_load((second.path / "config.yaml").read_text())["init"] == named
    assert second.record.hyper["init"] == Path(named).name
    assert second.record.config_hash != first.record.config_hash
    repeated = go(tmp_path, init=named)
    assert repeated.record.config_hash == second.record.config_hash
    assert check_record(second.path) == check_record(first.path) == []
    # no step is taken, so these are the initial weights
    weights, start = go(tmp_path, algo="none", init=named).encoder().state_dict(), first.encoder().state_dict()
    assert all(torch.equal(weights[name], start[name]) for name in start)


@pytest.mark.parametrize(
    ("init", "changes", "message"),
    [
        ("nowhere", {}, "nowhere is not a run"),
        ("FIRST@000000000000", {}, "not 000000000000"),
        ("FIRST", dict(encoder="vit_small"), "its shape is not that of --encoder vit_small"),
    ],
)
def test_an_init_that_does_not_fit_is_refused(init: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    first = go(tmp_path)
    with pytest.raises(UserError, match=message):
        go(tmp_path / "more", init=init.replace("FIRST", str(first.path)), **changes)
    assert not (tmp_path / "more").exists()
