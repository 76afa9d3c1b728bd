"""Labelled scans through `segment`: its written mask, the chain's start and the best threshold beside the reference."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.report.scan import LABELLED, START, THRESHOLD
from pdlib.study import labelled_scans


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    both = 2 * np.count_nonzero(mask & reference)
    return both / (np.count_nonzero(mask) + np.count_nonzero(reference))


def test_each_case_is_scored_by_its_written_mask_and_beside_its_best_threshold(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PDLIB_OUT", str(tmp_path / "out"))
    root, results = Path(networks.run.data["root"]), tmp_path / "results"
    assert labelled_scans.main([str(root), str(results), "--weights", str(networks.weights)]) == 0
    (path,) = (tmp_path / "out").rglob(LABELLED)
    rows, stamp = records.read_table(path), records.read_stamp(path)
    assert len(rows) == 9 * 3 and {*rows.method} == {THRESHOLD, START, CHAIN} and "denoiser_0" in stamp["networks"]
    for subject, own in rows.groupby("subject"):
        own = own.set_index("method")
        files = (results / subject / "mask.nii.gz", root / subject / "wmh.nii.gz", root / subject / "pre/FLAIR.nii.gz")
        mask, reference, flair = (nib.load(file).get_fdata() for file in files)
        lesion, kept = reference == 1, reference != 2
        if mask.any():
            assert own.dice[CHAIN] == pytest.approx(dice((mask != 0) & kept, lesion), rel=1e-5)
        levels = np.unique(flair[(flair > 0) & lesion])  # the best level is one of a lesion's voxel
        best = max(dice((flair >= level) & kept, lesion) for level in levels)
        assert own.dice[THRESHOLD] == pytest.approx(best, rel=1e-5)
        assert own.seconds[CHAIN] > 0 and np.isnan(own.seconds[START])
    assert len([*(tmp_path / "out").rglob("labelled_*.png")]) == 9
    assert THRESHOLD in capsys.readouterr().out


def test_a_scan_that_cannot_be_used_is_named(networks, tmp_path, capsys):
    folder = tmp_path / "cases" / "Utrecht" / "3"
    (folder / "pre").mkdir(parents=True)
    (folder / "wmh.nii.gz").write_bytes(b"")
    (folder / "pre" / "FLAIR.nii.gz").write_bytes(b"no image")
    assert labelled_scans.main([str(tmp_path / "cases"), str(tmp_path / "to"), "--weights", str(networks.weights)]) == 2
    assert "FLAIR.nii.gz" in capsys.readouterr().err
