"""What dabsmix and each of its extras bring and weigh, as a Markdown table; of what is installed where this runs.

pip install '.[test,docs,slurm,track,export]' && python scripts/extras.py
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def main() -> None:
    own = distribution("dabsmix")
    base = brought(own, "")
    print("| extra | packages | MiB | the largest |\n|---|---|---|---|")
    print(line("(none)", base))
    for extra in sorted(own.metadata.get_all("Provides-Extra") or ()):
        print(line(f"`[{extra}]`", {name: each for name, each in brought(own, extra).items() if name not in base}))


def brought(own: Distribution, extra: str) -> dict[str, float]:
    """The packages that an extra needs, base included, with what each weighs in MiB; 0 where it is not installed."""
    found: dict[str, float] = {}
    waiting = [(own, extra)]
    while waiting:
        package, of = waiting.pop()
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": of}):
                continue
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if name in found:
                continue
            try:
                needed = distribution(name)
            except PackageNotFoundError:
                found[name] = 0.0
                continue
            found[name] = weight(needed)
            waiting += [(needed, ""), *((needed, each) for each in requirement.extras)]
    return found


def weight(package: Distribution) -> float:
    """MiB of the files of a package."""
    files = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in files if path.is_file()) / 2**20


def line(title: str, packages: dict[str, float]) -> str:
    largest = sorted(packages, key=lambda name: -packages[name])[:5]
    named = ", ".join(f"{name} {packages[name]:.0f}" for name in largest if packages[name] >= 0.5)
    absent = [name for name, size in packages.items() if not size]
    missing = f"; not installed here: {', '.join(absent)}" if absent else ""
    return f"| {title} | {len(packages)} | {sum(packages.values()):,.0f} | {named}{missing} |"


if __name__ == "__main__":
    main()
