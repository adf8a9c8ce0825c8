"""dabsmix: a domain-agnostic self-supervised learning benchmark, and the same as a library.

    data = dabsmix.load("uci_har")
    run = dabsmix.pretrain(data, algorithm="dmix", encoder="tiny", steps=1000)
    score = dabsmix.transfer(run)
    features = dabsmix.load_encoder(run).features(x)

Importing the package costs nothing: torch is loaded by the first function that computes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dabsmix.api import load, pretrain, transfer
    from dabsmix.errors import UserError
    from dabsmix.estimator import SelfSupervised
    from dabsmix.run import Run
    from dabsmix.scoring.results import TransferRecord
    from dabsmix.verbs.embed import FeatureExtractor, load_encoder

__version__ = "0.1.0"

__all__ = [
    "FeatureExtractor",
    "Run",
    "SelfSupervised",
    "TransferRecord",
    "UserError",
    "load",
    "load_encoder",
    "pretrain",
    "transfer",
]

_PLACES = {
    "FeatureExtractor": "dabsmix.verbs.embed",
    "Run": "dabsmix.run",
    "SelfSupervised": "dabsmix.estimator",
    "TransferRecord": "dabsmix.scoring.results",
    "UserError": "dabsmix.errors",
    "load": "dabsmix.api",
    "load_encoder": "dabsmix.verbs.embed",
    "pretrain": "dabsmix.api",
    "transfer": "dabsmix.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dabsmix' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
