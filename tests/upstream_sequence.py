"""Files generated in upstream's format: TAPE's JSON, the genomics tables, WM-811K's MATLAB file. Nothing is real."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
TAPE = {
    "pfam": ("train", "valid"),
    "remote_homology": ("train", "valid", "test_fold_holdout"),
    "secondary_structure": ("train", "valid", "cb513"),
    "stability": ("train", "valid", "test"),
    "fluorescence": ("train", "valid", "test"),
}


def write_tape(root: Path, folder: str, count: int = 60) -> Path:
    """The JSON files of one of TAPE's sets, each a list of records with the fields that its serialiser writes."""
    (root / folder).mkdir(parents=True)
    for number, part in enumerate(TAPE[folder]):
        rng = np.random.default_rng(number)
        parts = [_record(folder, rng, row, number) for row in range(count)]
        (root / folder / f"{folder}_{part}.json").write_text(json.dumps(parts))
    return root / folder


def _record(folder: str, rng: np.random.Generator, row: int, part: int) -> dict[str, Any]:
    length = int(rng.integers(20, 160))  # some are cut at 128
    text = "".join(rng.choice(list(RESIDUES), length))
    if row % 7 == 0:
        text = text[:5] + "X" + text[6:]
    record: dict[str, Any] = {"primary": text, "protein_length": length}
    match folder:
        case "pfam":
            record |= {"clan": [5, 17, 401][row % 3], "family": row % 9}
        case "remote_homology":
            record |= {"class_label": 0, "fold_label": row % 5, "superfamily_label": 100 * part + row % 8}
        case "secondary_structure":
            record |= {"ss3": [int(x) for x in rng.integers(0, 3, length)], "valid_mask": [True] * length}
        case "stability":
            record |= {"stability_score": [float(rng.normal())], "topology": "HHH", "parent": f"{part}-{row % 10}"}
        case "fluorescence":
            record |= {"log_fluorescence": [float(rng.normal())], "num_mutations": row % 4}
    return record


def write_genomics(root: Path, count: int = 60) -> Path:
    """The five tables of the genomics set, tab-separated with a header."""
    folder = root / "genomics_ood"
    folder.mkdir(parents=True)
    names = {
        "before_2011_in_tr": "Bacillus Yersinia",
        "between_2011-2016_in_val": "Bacillus Yersinia",
        "after_2016_in_test": "Bacillus Yersinia",
        "between_2011-2016_ood_val": "Actinoplanes Vibrio Zymomonas",
        "after_2016_ood_test": "Advenella",
    }
    for number, (name, classes) in enumerate(names.items()):
        rng = np.random.default_rng(number)
        lines = ["seq\tlabel\tseq_info\tdomain"]
        for row in range(count):
            known = classes.split()
            text = "".join(rng.choice(list("ACGT"), 250))
            lines.append(f"{text}\t{known[row % len(known)]}\tNC_{number}_{row}\t{'ood' if 'ood' in name else 'in'}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


PATTERNS = ("none", "Edge-Ring", "Center", "Loc", "Scratch", "Random", "Donut", "Edge-Loc", "Near-full")


def write_wafers(root: Path, count: int = 120) -> Path:
    """WM811K.mat as MATLAB 7.3 lays a struct of cells out in HDF5: references to cells of one text or one map.

    A third has no label, which MATLAB writes as an empty array; arrays are stored transposed.
    """
    folder = root / "MIR-WM811K" / "MATLAB"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    reference = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(folder / "WM811K.mat", "w") as file:
        refs, data = file.create_group("#refs#"), file.create_group("data")

        def add(values: np.ndarray[Any, Any], kind: bytes, empty: bool = False) -> Any:
            node = refs.create_dataset(f"n{len(refs)}", data=values)
            node.attrs["MATLAB_class"] = np.bytes_(kind)
            if empty:
                node.attrs["MATLAB_empty"] = np.uint8(1)
            return node.ref

        def cell(inner: Any) -> Any:
            node = refs.create_dataset(f"n{len(refs)}", (1, 1), dtype=reference)
            node[0, 0] = inner
            node.attrs["MATLAB_class"] = np.bytes_(b"cell")
            return node.ref

        def text(value: str) -> Any:
            return cell(add(np.array([[ord(character)] for character in value], np.uint16), b"char"))

        columns: dict[str, list[Any]] = {"failureType": [], "waferMap": [], "lotName": []}
        for row in range(count):
            height, width = int(rng.integers(20, 50)), int(rng.integers(20, 50))
            wafer = rng.integers(0, 3, (height, width)).astype(np.uint8)
            columns["waferMap"].append(cell(add(wafer.T, b"uint8")))
            columns["lotName"].append(text(f"lot{row // 6}"))
            pattern = PATTERNS[row % len(PATTERNS)]
            unlabelled = row % 3 == 2 and row > 30
            empty = cell(add(np.zeros(2, np.uint64), b"double", empty=True))
            columns["failureType"].append(empty if unlabelled else text(pattern))
        for name, values in columns.items():
            node = data.create_dataset(name, (1, count), dtype=reference)
            node[0, :] = np.array(values, dtype=reference)
    return folder
