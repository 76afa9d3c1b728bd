"""The phantom: the same bytes from the same seed, the challenge's layout, real lesions' numbers, no cheap win."""

import copy
import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy.interpolate import NdBSpline

from pdlib.data import phantom, phantom_anatomy, phantom_lesions, scanner
from pdlib.paths import CONFIGS

CONFIG = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))
SETTINGS = {"seed": 5, "grid_scale": (2, 2, 2), "label2_fraction": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    phantom.write_phantom(folder, cases_per_site=1, parameters=CONFIG["phantom"], workers=1, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def cases(root):
    return sorted(path.parent for path in root.glob("training/**/wmh.nii.gz"))


def load(path):
    return np.asarray(nib.load(path).dataobj)


def observer(root, case, name):
    return load(root / "additional_annotations" / name / case.relative_to(root) / "result.nii.gz") > 0.5


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_bytes_do_not_depend_on_workers_or_on_the_other_cases(root, tmp_path):
    first_site = {**CONFIG["phantom"], "sites": CONFIG["phantom"]["sites"][:1]}
    phantom.write_phantom(tmp_path, cases_per_site=2, parameters=first_site, workers=2, **SETTINGS)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.gz"))
    assert len(made) == 2 * 5
    for name in (name for name in made if "0" in name.parts):
        ours, theirs = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (tmp_path, root))
        assert ours == theirs, name


def test_a_case_is_what_it_always_was(root):
    """Masks to the bit. Images to a rounding: NumPy's exponential differs in its last bit from one CPU to another."""
    case, drawn = root / "training/Utrecht/0", hashlib.sha256()
    annotations = root / "additional_annotations"
    for path in (case / "wmh.nii.gz", *sorted(annotations.glob("*/training/Utrecht/0/result.nii.gz"))):
        drawn.update(gzip.decompress(path.read_bytes()))
    assert drawn.hexdigest() == "27f1dfa428c7df9fbaaf73d306d81fa3ffd6d95d736c80e5a51696b4486d818f"
    for name, mean, deviation in (("FLAIR", 77.295891, 171.445553), ("T1", 34.315411, 77.326801)):
        image = load(case / "pre" / f"{name}.nii.gz").astype(float)
        assert image.mean() == pytest.approx(mean, rel=1e-6) and image.std() == pytest.approx(deviation, rel=1e-6)


def test_layout_grids_and_labels(root, cases):
    found = {case.relative_to(root).as_posix() for case in cases}
    assert found == {"training/Utrecht/0", "training/Singapore/50", "training/Amsterdam/GE3T/100"}
    grids = {
        "Utrecht": ((120, 120, 24), (1.92, 1.90, 6)),
        "Singapore": ((116, 128, 24), (2, 2, 6)),
        "GE3T": ((66, 128, 41), (2.4, 1.96, 6)),
    }
    seen, codes = set(), set()
    for case in cases:
        flair, t1, wmh = (nib.load(case / name) for name in ("pre/FLAIR.nii.gz", "pre/T1.nii.gz", "wmh.nii.gz"))
        shape, spacing = grids[case.parent.name]
        assert flair.shape == t1.shape == wmh.shape == shape
        np.testing.assert_allclose(wmh.header.get_zooms(), spacing, rtol=1e-5)
        assert np.array_equal(flair.affine, wmh.affine) and np.array_equal(t1.affine, wmh.affine)
        assert wmh.get_data_dtype() == np.float32
        seen |= set(np.unique(load(case / "wmh.nii.gz")))
        codes.add(nib.aff2axcodes(wmh.affine))
    assert seen == {0, 1, 2}
    assert len(codes) == 3


def test_complete_cases_are_kept_and_other_settings_refused(root, cases):
    before = (cases[0] / "wmh.nii.gz").stat().st_mtime_ns
    phantom.write_phantom(root, cases_per_site=1, parameters=CONFIG["phantom"], workers=1, **SETTINGS)
    assert (cases[0] / "wmh.nii.gz").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        other = {**SETTINGS, "seed": 6}
        phantom.write_phantom(root, cases_per_site=1, parameters=CONFIG["phantom"], workers=1, **other)


def test_looks_like_flair_and_t1(root):
    table = phantom.phantom_calibration(root, CONFIG["targets"]).set_index("quantity").phantom
    ranges = {
        "FLAIR lesion/WM, median": (1.3, 1.6),
        "FLAIR GM/WM, median": (1.12, 1.26),
        "FLAIR CSF/WM, median": (0.11, 0.23),
        "FLAIR WM variation, median": (0.06, 0.13),
        "T1 lesion/WM, median": (0.61, 0.79),
        "T1 GM/WM, median": (0.67, 0.75),
        "T1 CSF/WM, median": (0.08, 0.13),
        "volume in lesions within 2 mm of the ventricles": (20, 90),
        "cortical lesion volume": (0, 3),
    }
    for quantity, (low, high) in ranges.items():
        assert low <= table[quantity] <= high, (quantity, table[quantity])


def test_flair_threshold_fails_and_raters_agree_like_people(root, cases):
    thresholds, agreement = [], []
    for case in cases:
        flair, labels = load(case / "pre/FLAIR.nii.gz"), load(case / "wmh.nii.gz")
        counted = (flair > 0) & (labels != 2)
        levels = np.percentile(flair[counted], np.linspace(80, 99.95, 60))
        thresholds.append(max(dice(flair[counted] > level, labels[counted] == 1) for level in levels))
        agreement += [dice(labels == 1, observer(root, case, name)) for name in ("observer_o3", "observer_o4")]
    assert np.mean(thresholds) < 0.75
    assert 0.70 < np.mean(agreement) < 0.85


def test_drawn_lesions_follow_the_real_law():
    p = phantom_anatomy.PhantomParameters.from_mapping(CONFIG["phantom"])
    rng = np.random.default_rng(0)
    sizes = [phantom_lesions.lesion_sizes(rng, level, p) for level in (np.arange(200) + 0.5) / 200]
    volumes = np.array([case.sum() for case in sizes]) / 1000
    np.testing.assert_allclose(np.percentile(volumes, [25, 50, 75]), [1.8, 14, 28.5], rtol=0.05)
    assert 0.25 < volumes.min() and volumes.max() < 54
    fit = phantom.two_part_lognormal(np.concatenate(sizes))
    assert abs(fit["mu"][0] - 2.75) < 0.3 and abs(fit["sigma"][0] - 1.46) < 0.2


def test_two_part_fit_recovers_a_known_law():
    rng = np.random.default_rng(1)
    sample = np.concatenate([rng.lognormal(2.75, 1.0, 9000), rng.lognormal(7.5, 0.8, 1000)])
    fit = phantom.two_part_lognormal(sample)
    np.testing.assert_allclose([fit["weight"], *fit["mu"], *fit["sigma"]], [0.1, 2.75, 7.5, 1.0, 0.8], rtol=0.06)


def test_box_average_is_the_mean_over_each_voxel():
    volume = np.random.default_rng(2).random((6, 8, 10)).astype(np.float32)
    edges = [np.arange(0, n + 1, 2.0) for n in volume.shape]
    expected = volume.reshape(3, 2, 4, 2, 5, 2).mean((1, 3, 5))
    np.testing.assert_allclose(scanner.box_average(volume, edges), expected, rtol=1e-5)
    odd = [np.arange(6) * 2.3 - 0.7 for _ in range(3)]
    np.testing.assert_allclose(scanner.box_average(volume, odd).sum() * 2.3**3, volume.sum(), rtol=1e-5)


def test_smooth_field_is_scipys_b_spline():
    shape, knots_mm = (30, 26, 23), 4.0
    field = phantom_anatomy.smooth_field(np.random.default_rng(3), shape, knots_mm)
    knots = np.random.default_rng(3).standard_normal([int(np.ceil(n / knots_mm)) + 3 for n in shape], dtype=np.float32)
    spline = NdBSpline(tuple(np.arange(n + 4.0) - 3 for n in knots.shape), knots.astype(float), 3)
    points = np.stack(np.meshgrid(*(np.arange(n) / knots_mm for n in shape), indexing="ij"), -1)
    expected = spline(points)
    np.testing.assert_allclose(field / field.std(), expected / expected.std(), atol=1e-4)
    assert 0.9 < phantom_anatomy.smooth_field(np.random.default_rng(4), (100, 100, 100), knots_mm).std() < 1.1


def test_lesion_statistics_by_hand():
    mask = np.zeros((4, 5, 5), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 4, 4] = 1  # the first two touch at a corner: one lesion of two voxels
    distance = np.full(mask.shape, 9.0)
    distance[1, 1, 1] = 1.5
    found = scanner.lesion_statistics(mask, (3, 1, 2), distance)
    assert found["lesions"] == 2
    assert sorted(found["sizes_mm3"]) == [6, 12]
    assert found["lesion_ml"] == pytest.approx(0.018)
    assert found["near_ventricle_percent"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("change", ["missing", "unknown", "in a site", "of a wrong type", "of a wrong length"])
def test_parameters_are_checked(change):
    parameters = copy.deepcopy(CONFIG["phantom"])
    if change == "missing":
        del parameters["edge_mm"]
    elif change == "unknown":
        parameters["edge"] = 1
    elif change == "in a site":
        parameters["sites"][0]["colour"] = 1
    else:
        parameters["rim_mm"] = ["1e-1", 2] if change == "of a wrong type" else [1, 2, 3]
    with pytest.raises(ValueError, match=r"^PhantomParameters: (edge|sites\.0\.colour|rim_mm)[^\n]*$"):
        phantom_anatomy.PhantomParameters.from_mapping(parameters)


def test_unknown_target_is_refused(root):
    with pytest.raises(ValueError, match="thickness"):
        phantom.phantom_calibration(root, {"thickness": {"value": 1, "unit": "mm"}})
