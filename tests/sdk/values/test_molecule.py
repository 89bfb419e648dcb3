"""sdk.Molecule: files as they are, and what rdkit makes of its own."""

from __future__ import annotations

import io
import pathlib
import sys
import types
from typing import Any

import pytest

import sdk

KINDS = sorted(sdk.Molecule.SUPPORTED_TYPES)
CONTENT = b"HEADER\xff\r\n"


def content_of(molecule: sdk.Molecule, kind: str) -> bytes:
    described = molecule.describe()
    assert described["format"] == kind
    assert described["data"].meta == {"media": "molecule-file", "format": kind}
    return bytes(described["data"].view())


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_stored_as_they_are(tmp_path: pathlib.Path, kind: str) -> None:
    """By path as str and pathlib, open as bytes and as text, and without a name."""
    path = tmp_path / f"caffeine.{kind}"
    path.write_bytes(CONTENT)
    with open(path, "rb") as binary, open(path) as text:
        for given in (str(path), path, binary, text):
            assert content_of(sdk.Molecule(given), kind) == CONTENT
    assert content_of(sdk.Molecule(io.BytesIO(CONTENT), file_type=kind), kind) == CONTENT
    assert content_of(sdk.Molecule(io.StringIO("ATOM"), "c", file_type=kind), kind) == b"ATOM"
    assert sdk.Molecule(path, caption="c").describe()["caption"] == "c"


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        ("a.xyz", {}, ValueError, "'xyz'.*mol2"),
        ("/nowhere/a.pdb", {}, FileNotFoundError, "a.pdb"),
        ("s3://bucket/a.pdb", {}, ValueError, "not on this machine"),
        (io.StringIO("x"), {}, ValueError, "needs file_type"),
        (io.StringIO("x"), {"file_type": "xyz"}, ValueError, "'xyz'"),
        (5, {}, ValueError, "int"),
    ],
)
def test_bad_molecules(data: Any, options: Any, error: type[Exception], text: str) -> None:
    """The error that the reference names, and what was expected."""
    with pytest.raises(error, match=text):
        sdk.Molecule(data, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package that looks like rdkit as far as it is used here; gives what it was called with."""
    made: list[Any] = []
    chem: Any = types.ModuleType("rdkit.Chem")
    all_chem: Any = types.ModuleType("rdkit.Chem.AllChem")
    package: Any = types.ModuleType("rdkit")

    class Mol: ...

    class Supplier:
        def __init__(self, path: str) -> None:
            self.found = [] if "empty" in path else [Mol()]

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *args: object) -> None: ...

        def __iter__(self) -> Any:
            return iter(self.found)

    chem.rdchem = types.SimpleNamespace(Mol=Mol)
    chem.rdmolfiles = types.SimpleNamespace(MolToPDBBlock=lambda mol: "ATOM")
    chem.SDMolSupplier = Supplier
    chem.MolFromMolFile = lambda path: None if "bad" in path else Mol()
    chem.MolFromSmiles = lambda text, sanitize: (
        Mol() if text == "CC" and not made.append(("smiles", sanitize)) else None
    )
    chem.AddHs = lambda mol: mol
    all_chem.EmbedMolecule = lambda mol: made.append("embed")
    all_chem.MMFFOptimizeMolecule = lambda mol, maxIters: made.append(maxIters)  # noqa: N803 - rdkit's name
    chem.AllChem, package.Chem = all_chem, chem
    for module in (package, chem, all_chem):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_rdkit(calls: list[Any], tmp_path: pathlib.Path) -> None:
    """Its molecules, the files it reads and SMILES become pdb, optimized unless it is not wanted."""
    mol = sys.modules["rdkit.Chem"].rdchem.Mol()
    assert content_of(sdk.Molecule.from_rdkit(mol, "c"), "pdb") == b"ATOM"
    assert calls == ["embed", 200]
    assert (
        content_of(sdk.Molecule.from_smiles("CC", sanitize=False, mmff_optimize_molecule_max_iterations=7), "pdb")
        == b"ATOM"
    )
    assert calls[2:] == [("smiles", False), "embed", 7]
    for given in ("a.mol", tmp_path / "a.sdf"):
        sdk.Molecule.from_rdkit(given, convert_to_3d_and_optimize=False)
    assert len(calls) == 5


def test_what_rdkit_cannot_read(calls: list[Any]) -> None:
    """Each with the error that the reference names."""
    for given, text in (("a.pdb", "mol or sdf"), ("bad.mol", "no molecule"), ("empty.sdf", "no molecule")):
        with pytest.raises(ValueError, match=text):
            sdk.Molecule.from_rdkit(given)
    with pytest.raises(TypeError, match="int"):
        sdk.Molecule.from_rdkit(5)
    with pytest.raises(ValueError, match="'C1'"):
        sdk.Molecule.from_smiles("C1")


def test_without_rdkit(monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    """The error names the package; a run that goes on leaves the key out."""
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(sdk.Error, match="pip install rdkit"):
        sdk.Molecule.from_smiles("CC")
    sdk.init(misuse="warn")
    sdk.log({"m": sdk.Molecule.from_smiles("CC"), "loss": 1})
    assert world.rows == [{"loss": 1}]
