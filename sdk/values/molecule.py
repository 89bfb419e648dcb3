"""Molecules: `sdk.Molecule`, files that are stored as they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..errors import Error, install_hint
from . import sources
from .blobs import snapshot
from .media import Media, known

_WHAT = "Molecule()"


class Molecule(Media):
    """A molecule in space (docs/media.md#molecules).

    Args:
        data_or_path: The path of a file of one of `SUPPORTED_TYPES`, a file open for reading as text or bytes, or its bytes.
        caption: A label.
        file_type: What a file is, where it has no name that says so.

    Raises:
        ValueError: Data of another type, an unknown or missing type, the address of something not on this machine.
        OSError: A file that cannot be read.
    """

    _type: ClassVar[str] = "molecule-file"

    SUPPORTED_TYPES: ClassVar[set[str]] = {
        "pdb", "pqr", "mmcif", "mcif", "cif", "sdf", "sd", "gro", "mol2", "mmtf",
    }  # fmt: skip
    SUPPORTED_RDKIT_TYPES: ClassVar[set[str]] = {"mol", "sdf"}

    def __init__(self, data_or_path: Any, caption: str | None = None, *, file_type: str | None = None) -> None:
        self._caption = None if caption is None else str(caption)
        content, self._format = _content_of(data_or_path, file_type)
        self._blob = snapshot(content, {"media": self._type, "format": self._format})

    @classmethod
    def from_rdkit(
        cls,
        data_or_path: Any,
        caption: str | None = None,
        convert_to_3d_and_optimize: bool = True,
        mmff_optimize_molecule_max_iterations: int = 200,
    ) -> Molecule:
        """A molecule of rdkit, or a mol or sdf file that rdkit reads, as pdb.

        With `convert_to_3d_and_optimize` rdkit finds where its atoms lie, here and now, which may take seconds.

        Raises:
            Error: rdkit is not installed.
            TypeError: Data of another type.
            ValueError: A file of another type, or one that rdkit cannot read.
        """
        iterations = mmff_optimize_molecule_max_iterations if convert_to_3d_and_optimize else None
        return cls(_Rdkit(lambda: _mol_of(data_or_path), iterations), caption)

    @classmethod
    def from_smiles(
        cls,
        data: str,
        caption: str | None = None,
        sanitize: bool = True,
        convert_to_3d_and_optimize: bool = True,
        mmff_optimize_molecule_max_iterations: int = 200,
    ) -> Molecule:
        """A molecule by its SMILES, which rdkit reads; else as `from_rdkit`.

        Args:
            sanitize: Refuse what chemistry does not allow.

        Raises:
            Error: rdkit is not installed.
            ValueError: rdkit cannot read it.
        """
        iterations = mmff_optimize_molecule_max_iterations if convert_to_3d_and_optimize else None
        return cls(_Rdkit(lambda: _mol_of_smiles(data, sanitize), iterations), caption)

    def describe(self) -> dict[str, Any]:
        return {**known(caption=self._caption), "format": self._format, "data": self._blob}


class _Rdkit(NamedTuple):
    """What rdkit has to make; by the constructor, which knows what becomes of errors.

    Attributes:
        read: Gives the Mol.
        iterations: How long rdkit looks for the places of its atoms; None: it does not.
    """

    read: Callable[[], Any]
    iterations: int | None

    def pdb(self) -> bytes:
        chem, molecule = _rdkit("rdkit.Chem"), self.read()
        if self.iterations is not None:
            all_chem = _rdkit("rdkit.Chem.AllChem")
            molecule = chem.AddHs(molecule)
            all_chem.EmbedMolecule(molecule)
            all_chem.MMFFOptimizeMolecule(molecule, maxIters=self.iterations)
        text: str = chem.rdmolfiles.MolToPDBBlock(molecule)
        return text.encode()


def _content_of(given: Any, file_type: str | None) -> tuple[bytes, str]:
    if isinstance(given, _Rdkit):
        return given.pdb(), "pdb"
    if sources.is_path(given):
        kind = _kind(sources.name_of(given), None)
        return sources.read_path(given, _WHAT), kind
    content = sources.read_given(given, is_text=True)
    if content is None:
        raise ValueError(f"{_WHAT} is given {type(given).__qualname__}, expected a path or an open file")
    return content, _kind(sources.name_of(given), file_type)


def _kind(name: str | None, file_type: str | None) -> str:
    types = ", ".join(sorted(Molecule.SUPPORTED_TYPES))
    if file_type is None and name is None:
        raise ValueError(f"{_WHAT} needs file_type for a file without a name: one of {types}")
    kind = file_type if file_type is not None else (name or "").rpartition(".")[2].lower()
    if kind not in Molecule.SUPPORTED_TYPES:
        raise ValueError(f"{_WHAT} is given a file of type {kind!r}, expected one of {types}")
    return kind


def _rdkit(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Error(
            f"{_WHAT} needs the package rdkit here, which is not installed", hint=install_hint("rdkit")
        ) from None


def _mol_of_smiles(smiles: str, sanitize: bool) -> Any:
    found = _rdkit("rdkit.Chem").MolFromSmiles(smiles, sanitize=sanitize)
    if found is None:
        raise ValueError(f"{_WHAT} from_smiles cannot read {smiles!r}, expected a SMILES")
    return found


def _mol_of(given: Any) -> Any:
    chem = _rdkit("rdkit.Chem")
    if not sources.is_path(given):
        if isinstance(given, chem.rdchem.Mol):
            return given
        raise TypeError(f"{_WHAT} from_rdkit is given {type(given).__qualname__}, expected a path or a Mol of rdkit")
    path = sources.name_of(given) or ""
    kind = path.rpartition(".")[2].lower()
    if kind not in Molecule.SUPPORTED_RDKIT_TYPES:
        raise ValueError(f"{_WHAT} from_rdkit is given {path!r}, expected a file of type mol or sdf")
    if kind == "mol":
        found = chem.MolFromMolFile(path)
    else:
        with chem.SDMolSupplier(path) as supplier:
            found = next(iter(supplier), None)
    if found is None:
        raise ValueError(f"{_WHAT} from_rdkit: rdkit finds no molecule in {path!r}")
    return found
