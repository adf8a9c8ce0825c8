"""The order of rooms, read from the imports: values flow one way, and so do imports."""

import ast
import sys
from pathlib import Path
from types import FrameType

import pytest

PACKAGE = Path(__file__).parents[1] / "dabsmix"

# From the ground up; a module imports from its own layer's room or from lower layers.
LAYERS = (
    ("spec", "errors", "terminal", "files", "distributed", "interrupt", "tracking", "training"),
    ("model", "data"),
    ("pretext", "modalities", "scoring"),
    ("algorithm", "algorithms", "domains"),
    ("registry",),
    ("source", "run", "catalogue", "testing"),
    ("config",),
    ("board",),
    ("verbs",),
    ("api",),
    ("estimator",),
    ("arguments",),
    ("cli",),
)
# Rooms of one layer that may import each other, one way.
ASIDE = {
    ("scoring", "model"),
    ("terminal", "errors"),
    ("files", "errors"),
    ("tracking", "errors"),
    ("training", "errors"),
}


def modules() -> dict[str, Path]:
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(path: Path, known: set[str]) -> set[str]:
    """Our modules that a file imports, lazily or not; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dabsmix":
            base = node.module.removeprefix("dabsmix").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                names.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("dabsmix.") for alias in node.names if alias.name.startswith("dabsmix.")}
    return {name for name in names if name in known and name}


def test_nothing_imports_upward() -> None:
    known = modules()
    floor = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    wrong = []
    for name, path in known.items():
        ours = name.split(".")[0]
        if ours in ("", "__main__"):
            continue
        for other in sorted(imports(path, set(known))):
            theirs = other.split(".")[0]
            if theirs == ours or (ours, theirs) in ASIDE:
                continue
            if floor[theirs] >= floor[ours]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle() -> None:
    known = modules()
    graph = {name: imports(path, set(known)) - {name} for name, path in known.items()}
    while leaves := [name for name, others in graph.items() if not others]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: others - set(leaves) for name, others in graph.items()}
    assert not graph, f"these import each other, or what imports each other: {sorted(graph)}"


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_every_room_says_what_it_is(room: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert len(text) > 40


def test_a_dmix_step_runs_through_nine_files() -> None:
    """The loop, and every file of ours that a step's forward, backward and update run through."""
    import torch

    from dabsmix.algorithms.dmix import DMix
    from dabsmix.testing import SPECS, random_batch, small_encoder

    opened = {"verbs/pretrain.py"}

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            opened.add(path.relative_to(PACKAGE).as_posix())

    specs = SPECS["text"]
    algorithm = DMix(small_encoder(specs))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    batch = random_batch(specs, 4)
    sys.setprofile(note)
    try:
        algorithm(batch).value.backward()
        optimizer.step()
        algorithm.after_step(1.0)
    finally:
        sys.setprofile(None)
    assert sorted(opened) == [
        "algorithms/dmix.py",
        "distributed.py",
        "model/contract.py",
        "model/encoder.py",
        "pretext/algorithm.py",
        "pretext/contrast.py",
        "pretext/tokens.py",
        "pretext/views.py",
        "verbs/pretrain.py",
    ]


def test_a_transfer_is_twelve_files() -> None:
    """The verb and what it imports."""
    known = modules()
    assert len({"verbs.transfer", *imports(known["verbs.transfer"], set(known))}) <= 12


def test_a_name_means_one_thing() -> None:
    """Classes and aliases of types; what begins with an underscore is seen in its own file only."""
    homes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.ClassDef(name=name):
                    homes.setdefault(name, []).append(module)
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()) if name[0].isupper():
                    homes.setdefault(name, []).append(module)
    twice = {name: where for name, where in homes.items() if len(where) > 1 and not name.isupper()}
    assert not twice
