"""Small scans for the tests of this wing: a noisy ellipsoid as a case, and how to damage its files."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from pdlib.data import wmh

SHAPE = (12, 10, 6)  # x, y, z
CLIP = (0.5, 99.5)
AFFINES = {
    "RAS": np.array([[1.2, 0, 0, -7], [0, 0.98, 0, 5], [0, 0, 3, 2], [0, 0, 0, 1]]),
    "LAS": np.array([[-1.2, 0, 0, 7], [0, 0.98, 0, 5], [0, 0, 3, 2], [0, 0, 0, 1]]),
    "RPI": np.array([[1.2, 0, 0, 7], [0, -0.98, 0, 5], [0, 0, -3, 2], [0, 0, 0, 1]]),
    "PSL": np.array([[0, 0, -1.2, 9], [-0.98, 0, 0, 5], [0, 3, 0, 2], [0, 0, 0, 1]]),
    "oblique": nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.3, 0.2, -0.25) @ np.diag([-0.96, -0.95, 3]), [80, 90, -40]
    ),
}


def scans(seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy ellipsoid in two contrasts, and a mask with both labels; [X, Y, Z]."""
    rng = np.random.default_rng(seed)
    centred = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    inside = (centred**2).sum(0) < 1
    flair = inside * rng.integers(200, 400, SHAPE)
    t1 = inside * rng.integers(300, 500, SHAPE)
    mask = np.zeros(SHAPE)
    mask[4:6, 5, 2] = 1
    mask[7, 4, 3] = 2
    return flair, t1, mask


def save(path: Path, array: np.ndarray, affine=AFFINES["RAS"], dtype=np.float32, kind=nib.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(array.astype(dtype), affine), path)


def save_case(folder: Path, seed: int = 7, **how) -> wmh.Case:
    """A sound case, to be damaged."""
    for name, array in zip(("pre/FLAIR", "pre/T1", "wmh"), scans(seed), strict=True):
        save(folder / f"{name}.nii.gz", array, **how)
    return wmh.Case("/".join(folder.parts[-3:]), folder.parent.name, folder)


def rewrite_header(path: Path, **fields) -> None:
    """Overwrite raw header fields, past every check nibabel makes on writing."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def change(path: Path, index: tuple, value: float) -> None:
    array = np.asarray(nib.load(path).dataobj).copy()
    array[index] = value
    save(path, array)


def flip_crc(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
