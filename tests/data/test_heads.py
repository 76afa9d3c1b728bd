"""Heads from label maps: what a map has to hold, where lesions lie, the levels drawn, and the cases written."""

import hashlib

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import ndimage

from pdlib.data import head_cases, heads, painting, wmh
from pdlib.data.heads import HeadRecipe, posed_head, read_head
from pdlib.data.nifti import CaseError
from pdlib.data.phantom_anatomy import PhantomParameters
from pdlib.data.scanner import lesion_statistics
from pdlib.paths import CONFIGS
from pdlib.study import preparation

RECIPE = yaml.safe_load((CONFIGS / "phantom_heads.yaml").read_text(encoding="utf-8"))
LESIONS = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))["phantom"]
PHANTOM = PhantomParameters.from_mapping(LESIONS)
WHITE, CORTEX, VENTRICLE, PUTAMEN, NATIVE, SKULL = 2, 3, 4, 12, 77, 515
RIGHT_VENTRICLE, CAUDATE, THALAMUS = 43, 11, 10
STILL = {"scale": (1.0, 1.0), "rotation_degrees": 0.0, "warp_mm": 0.0}


def label_map(without=()):
    """A head of shells [X, Y, Z]: ventricle, white matter with a lesion of its own, cortex, CSF, skull; a putamen."""
    axes = np.ogrid[-48:48, -56:56, -48:48]
    radius = np.sqrt(sum((axis / scale) ** 2 for axis, scale in zip(axes, (36, 44, 36), strict=True)))
    labels = np.select([radius < 0.2, radius < 0.85, radius < 1, radius < 1.1, radius < 1.2], [4, 2, 3, 24, SKULL])
    labels[64:68, 50:60, 46:52] = PUTAMEN
    labels[34:38, 56:60, 46:50] = NATIVE
    for one in without:
        labels[labels == one] = 0
    return labels.astype(np.int16)


def saved(path, labels, spacing=1.0):
    nib.save(nib.Nifti1Image(labels, np.diag([spacing] * 3 + [1])), path)
    return path


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    for name in ("a", "b"):
        saved(folder / f"{name}.nii.gz", label_map())
    return folder


def recipe(**sections):
    """The recipe with other settings of some sections."""
    return HeadRecipe.from_mapping(RECIPE | {name: RECIPE[name] | changed for name, changed in sections.items()})


def test_a_map_is_cut_to_its_brain_and_the_skull_is_left(maps):
    usual = recipe()
    head = read_head(maps / "a.nii.gz", usual)
    assert head.native.sum() == 64 and (head.tissue == usual.codes[heads.PUTAMEN]).sum() == 240
    brain = (head.tissue > 0) & (head.tissue != usual.codes[heads.OUTER])
    assert (head.tissue == usual.codes[heads.OUTER]).any(), "the skull, for what brain extraction leaves of it"
    inside = ndimage.binary_erosion(brain, iterations=2)
    assert (head.tissue[inside] != 0).all() and brain.sum() == pytest.approx((label_map() % SKULL > 0).sum(), rel=0.25)
    assert (head.tissue == usual.codes[heads.INSULA]).any(), "cortex beside the putamen"


@pytest.mark.parametrize(
    ("labels", "spacing", "cause"),
    [
        (label_map(without=(VENTRICLE,)), 1.0, "no voxel of ventricles"),
        (np.zeros((8, 8, 8), np.int16), 1.0, "no voxel of white"),
        (label_map(), 2.0, "label maps of 1 mm are needed"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(tmp_path, labels, spacing, cause):
    path = saved(tmp_path / "map.nii.gz", labels, spacing)
    with pytest.raises(CaseError, match=cause) as caught:
        read_head(path, recipe())
    assert str(path) in str(caught.value)


def test_one_map_is_too_few(tmp_path):
    saved(tmp_path / "map.nii.gz", label_map())
    with pytest.raises(CaseError, match=r"1 label maps .* two or more"):
        heads.find_heads(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lesions_lie_in_white_matter_and_native_ones_join_where_asked(maps, share):
    plan = recipe(pose=STILL, native_lesions={"share": share})
    head = read_head(maps / "a.nii.gz", plan)
    posed = posed_head(np.random.default_rng(0), head, 0.2, plan, PHANTOM)
    assert (posed.tissue == head.tissue).all() and head.tilt == 0, "a pose that moves nothing"
    reference = posed.lesions.reference
    assert reference.any() and (posed.tissue[reference] == plan.codes[heads.WHITE]).all()
    assert reference[head.native].all() == bool(share) and reference[head.native].any() == bool(share)


def test_without_fields_and_blur_each_tissue_has_its_level(maps):
    none = {"rim_flair": (0.0, 0.0), "halo_gain": (0.0, 0.0), "blur_mm": (1e-3, 1e-3), "gamma": (1.0, 1.0)}
    none |= {"cortex_field": 0.0, "white_field": 0.0, "as_flair": 1.0, "stripped_mm": 0.0, "flair_lesion": (1.5, 1.5)}
    none |= {"left_over_mm": (0.0, 0.0)}
    tissues = {name: one | {"texture": 0.0, "flair": (1.1, 1.1)} for name, one in RECIPE["tissues"].items()}
    tissues["white"] |= {"flair": (1.0, 1.0)}
    plan = recipe(look=none, tissues=tissues)
    head = read_head(maps / "a.nii.gz", plan)
    posed = posed_head(np.random.default_rng(0), head, 0.2, plan, PHANTOM)
    painted = painting.paint_head(np.random.default_rng(1), posed, plan)
    shown, white = posed.lesions.shown, posed.tissue == plan.codes[heads.WHITE]
    np.testing.assert_allclose(painted.flair[white & (shown == 0)], 1.0, rtol=1e-5)
    np.testing.assert_allclose(painted.flair[shown > 0], 1 + 0.5 * shown[shown > 0], rtol=1e-5)
    np.testing.assert_allclose(painted.flair[(posed.tissue > 0) & ~white], 1.1, rtol=1e-5)
    assert (painted.brain == posed.brain).all()


def two_ventricles(degrees):
    """The head of `label_map` tipped back so far, as its nuclei tell; the ventricle in two halves, white between."""
    labels, middle = label_map(), np.array([48, 56, 48])
    labels[46:50][labels[46:50] == VENTRICLE] = WHITE
    labels[50:][labels[50:] == VENTRICLE] = RIGHT_VENTRICLE
    ahead = 16 * np.array([0, np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
    for side, label in ((1, CAUDATE), (-1, THALAMUS)):
        labels[tuple(slice(c - 3, c + 4) for c in np.rint(middle + side * ahead).astype(int))] = label
    return labels


def test_a_head_that_was_tipped_back_is_levelled(tmp_path):
    plan = recipe(pose=STILL)
    head = read_head(saved(tmp_path / "map.nii.gz", two_ventricles(34.0)), plan)
    assert np.rad2deg(head.tilt) == pytest.approx(30.0, abs=2.0)
    posed = posed_head(np.random.default_rng(0), head, 0.2, plan, PHANTOM)
    front, back = (np.argwhere(posed.tissue == plan.codes[name]).mean(0) for name in (heads.CAUDATE, heads.THALAMUS))
    up, ahead, _ = front - back
    assert np.rad2deg(np.arctan2(up, ahead)) == pytest.approx(heads.LEVEL_DEGREES, abs=2.0)


def test_what_lies_between_the_ventricles_is_no_white_matter_for_lesions(tmp_path):
    plan = recipe(pose=STILL)
    head = read_head(saved(tmp_path / "map.nii.gz", two_ventricles(heads.LEVEL_DEGREES)), plan)
    septum = head.tissue == plan.codes[heads.SEPTUM]
    ventricles = ndimage.distance_transform_edt(head.tissue != plan.codes[heads.VENTRICLES])
    assert septum.sum() > 100 and ventricles[septum].max() <= plan.septum.both_mm
    posed = posed_head(np.random.default_rng(0), head, 0.7, plan, PHANTOM)
    assert not posed.lesions.reference[posed.tissue == plan.codes[heads.SEPTUM]].any()


def test_brain_extraction_leaves_something_of_what_lies_around_the_brain(maps):
    plan = recipe(look={"left_over_mm": (10.0, 10.0), "stripped_mm": 0.0})
    posed = posed_head(np.random.default_rng(0), read_head(maps / "a.nii.gz", plan), 0.2, plan, PHANTOM)
    painted = painting.paint_head(np.random.default_rng(1), posed, plan)
    left = painted.brain & ~posed.brain
    assert 0.01 < left.sum() / posed.brain.sum() < 0.2 and not (posed.brain & ~painted.brain).any()
    assert painted.flair[left & (posed.tissue > 0)].std() > 0.1, "and it is of many levels"


def test_lesions_have_the_volumes_and_counts_of_patients(tmp_path):
    plan = recipe(pose=STILL, native_lesions={"share": 0.0})
    head = read_head(saved(tmp_path / "map.nii.gz", two_ventricles(heads.LEVEL_DEGREES)), plan)
    found = []
    for seed, level in enumerate((0.25, 0.4, 0.5, 0.6, 0.75)):
        posed = posed_head(np.random.default_rng(seed), head, level, plan, PHANTOM)
        found.append(lesion_statistics(posed.lesions.reference, (1, 1, 1), posed.anatomy.ventricle_mm))
    table = pd.DataFrame(found)
    assert table.lesion_ml.iloc[0] == pytest.approx(1.8, rel=0.2) and table.lesion_ml.is_monotonic_increasing
    assert table.lesion_ml.median() == pytest.approx(14, rel=0.2), "more has no room in so small a head"
    assert 40 < table.lesions.median() < 120


def digest(folder):
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.gz")}


@pytest.fixture(scope="module")
def written(maps, tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder in folders:
        assert head_cases.main([str(maps), str(folder), "--cases", "1", "--workers", "1"]) == 0
    return folders


def test_cases_are_read_as_any_are_and_are_the_same_bytes_again(written):
    assert digest(written[0]) == digest(written[1]) != {}
    cases = wmh.find_cases(written[0])
    volumes = [wmh.read_case(case, clip_percentiles=(0.5, 99.5)) for case in cases]
    assert len(cases) == 3 and all(volume.mask.any() for volume in volumes)
    assert preparation.is_phantom(written[0])
    assert preparation.anatomies(written[0]).eq("a.nii.gz").all(), "the cases of one number share an anatomy"


def test_a_folder_of_other_heads_is_refused(maps, written, tmp_path, capsys):
    assert head_cases.main([str(maps), str(written[0]), "--cases", "1", "--workers", "1", "--seed", "1"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert head_cases.main([str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "0 label maps" in capsys.readouterr().err
