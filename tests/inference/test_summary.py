"""report.json: what it measures, what the score says, and that its schema holds."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from scipy.special import expit

from pdlib.data.nifti import CaseError, Grid
from pdlib.evaluation.metrics import score_volume
from pdlib.evaluation.quality import AGREEMENT, IMAGE, Origin, Quality, fit
from pdlib.inference import summary
from pdlib.inference.summary import Cost, InputFile, Networks, Settings, Summary, find_lesions, measured, score_of

SHAPE = (5, 12, 10)  # z, y, x
ORIGIN = Origin(networks={"denoiser_0": "12ab"}, phantom=True, members=5, calls=6, threshold=0.5)
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([1.0, 0.9, 3.0]), [-40, 90, -30])
AXES = ["RAS", "LPS", "PSR", "ILA"]


def grid_of(axes: str = "RAS", affine: np.ndarray = TURNED) -> Grid:
    """A grid whose canonical axes are those of affine and SHAPE, stored along `axes`."""
    image = nib.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), affine)
    start, end = (nib.orientations.axcodes2ornt(codes) for codes in (nib.aff2axcodes(affine), axes))
    stored = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    return Grid(stored.shape, stored.affine, stored.header)


def ensemble() -> dict[str, np.ndarray]:
    """Three lesions: of 6 voxels in two slices, of 2 that touch by a corner alone, and of 1."""
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 4, 2:5] = mask[3, 8, 8] = mask[4, 9, 9] = mask[0, 0, 0] = True
    mean = np.where(mask, 0.75, 0.25).astype(np.float32)
    mean[1, 4, 2] = 0.6
    return {"mask": mask, "mean": mean, "variance": (mean * (1 - mean) / 2), "brain": np.ones(SHAPE, bool)}


def report(tmp_path, quality: Quality | None = None, **changes) -> Summary:
    path = tmp_path / "FLAIR\n<b>.nii.gz"
    path.write_bytes(b"scan")
    parts = {
        **measured(**ensemble(), grid=grid_of("LPS")),
        "inputs": {"FLAIR": InputFile.read(path)},
        "networks": Networks(folder="weights", profile="scan", phantom=True, sha256={"denoiser_0": "a" * 64}),
        "settings": Settings(members=5, calls=6, threshold=0.5, vote="soft", seed=1, device="cpu"),
        "quality": score_of(quality, ORIGIN, dict.fromkeys(AGREEMENT, 0.0), dict.fromkeys(IMAGE, 0.0)),
        "warnings": ("low contrast",),
        "cost": Cost(seconds=1.5, peak_memory_mb=summary.peak_memory_mb()),
    }
    return Summary(**parts | changes)


@pytest.fixture(scope="module")
def quality() -> Quality:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.standard_normal(20) for name in (*AGREEMENT, *IMAGE)})
    table = table.assign(dice=expit(table.pair_dice), subject=range(20))
    return fit(table, ORIGIN, folds=2, resamples=20, confidence=0.95, seed=0)


@pytest.mark.parametrize("axes", AXES)
def test_lesions_lie_where_they_are_in_scanner_and_file(axes):
    grid, given = grid_of(axes), ensemble()
    lesions = find_lesions(given["mask"], given["mean"], given["variance"], grid)
    assert [one.mm3 for one in lesions] == pytest.approx([6 * 2.7, 2 * 2.7, 2.7], abs=1e-3)
    assert [one.ml for one in lesions] == pytest.approx([6 * 0.0027, 2 * 0.0027, 0.0027])
    assert [one.slices for one in lesions] == [(2, 3), (4, 5), (1, 1)]
    centres = [(3, 4, 1.5), (8.5, 8.5, 3.5), (0, 0, 0)]  # x, y, z
    for lesion, centre in zip(lesions, centres, strict=True):
        np.testing.assert_allclose(lesion.centre_mm, nib.affines.apply_affine(TURNED, centre), atol=0.01)
        np.testing.assert_allclose(
            nib.affines.apply_affine(grid.affine, lesion.centre_voxel), lesion.centre_mm, atol=0.03
        )
    marked = np.zeros(SHAPE, bool)
    marked[3, 8, 8] = True
    (only,) = find_lesions(marked, given["mean"], given["variance"], grid)
    assert grid.to_stored(marked)[tuple(np.rint(only.centre_voxel).astype(int))], "the voxel of the file itself"
    assert lesions[0].mean_probability == pytest.approx((5 * 0.75 + 0.6) / 6)
    assert lesions[0].mean_uncertainty == pytest.approx((5 * 0.75 * 0.25 + 0.6 * 0.4) / 12, abs=1e-6)
    assert lesions[1].mean_probability == pytest.approx(0.75)


def test_lesions_are_those_of_the_lesion_scores():
    given = ensemble()
    alone = np.zeros(SHAPE, np.uint8)
    alone[4, 9, 9] = 1
    precision = score_volume(alone, given["mask"], (3, 1, 1))["lesion_precision"]
    assert precision == 1 / len(find_lesions(given["mask"], given["mean"], given["variance"], grid_of()))


def test_no_lesion_is_no_lesion():
    given = ensemble() | {"mask": np.zeros(SHAPE, bool)}
    found = measured(**given, grid=grid_of())
    assert found["lesions"] == () and found["volumes"].lesion_ml == 0 and found["volumes"].lesion_count == 0


def test_volumes_and_grid():
    found = measured(**ensemble(), grid=grid_of("PSR"))
    assert found["volumes"].model_dump() == pytest.approx({"lesion_ml": 0.0243, "lesion_count": 3, "brain_ml": 1.62})
    grid = found["grid"]
    assert (grid.axes, grid.shape) == ("PSR", (12, 5, 10))
    assert grid.voxel_mm == pytest.approx((0.9, 3.0, 1.0))
    np.testing.assert_array_equal(grid.affine, grid_of("PSR").affine)


def test_a_report_is_as_its_schema_says(tmp_path, quality):
    for scored in (None, quality):
        one = report(tmp_path, scored)
        Draft202012Validator(json.loads(summary.SCHEMA.read_text(encoding="utf-8"))).validate(json.loads(one.text))
        assert json.loads(one.text) == one.content
        one.text.encode()


def test_the_schema_file_is_that_of_the_model():
    assert summary.SCHEMA.read_text(encoding="utf-8") == Summary.schema_text(), "python -m pdlib.inference.summary"
    Draft202012Validator.check_schema(json.loads(Summary.schema_text()))


def test_a_report_reads_back(tmp_path, quality):
    one = report(tmp_path, quality)
    content = one.content
    assert content.pop("notice").startswith(
        "The networks were trained on simulated heads (a phantom), never on patients"
    )
    assert Summary.model_validate(content) == one
    real = report(tmp_path, networks=one.networks.model_copy(update={"phantom": False}))
    assert real.notice == "This is no medical finding: do not use it for diagnosis or treatment."


def test_what_is_no_report_is_refused(tmp_path):
    given = dict(report(tmp_path))
    for change in ({"lesions": [1]}, {"seconds": 3}, {"cost": {"seconds": float("nan"), "peak_memory_mb": None}}):
        with pytest.raises(ValidationError):
            Summary(**given | change)


def test_two_reports_differ_in_their_cost_alone(tmp_path):
    one, two = (report(tmp_path, cost=Cost(seconds=s, peak_memory_mb=None)).content for s in (1, 2))
    assert one != two and one.pop("cost") != two.pop("cost")
    assert one == two


def test_an_input_is_hashed_or_named(tmp_path):
    path = tmp_path / "T1.nii.gz"
    path.write_bytes(b"scan")
    assert InputFile.read(path) == InputFile(file=str(path), sha256=hashlib.sha256(b"scan").hexdigest())
    with pytest.raises(CaseError, match=f"{tmp_path / 'gone'}: cannot be read"):
        InputFile.read(tmp_path / "gone")


def test_a_score_says_what_it_means(quality):
    agreement, image = dict.fromkeys(AGREEMENT, 0.0), dict.fromkeys(IMAGE, 0.0)
    score = score_of(quality, ORIGIN, agreement, image)
    assert score.predicted_dice == pytest.approx(quality.predict(agreement), abs=1e-4)
    assert (
        "fitted on 20 simulated heads" in score.means
        and f"by {quality.held_out.mean_error:.2f} on average" in score.means
    )
    assert score.do_not_trust is False and score.reasons == ()
    assert score.correlation_interval == (quality.held_out.low, quality.held_out.high)
    strange = score_of(quality, ORIGIN, agreement, image | {"slice_mm": 50.0})
    assert strange.do_not_trust and "The distance of slices in mm is 50" in strange.reasons[0]
    assert strange.predicted_dice == score.predicted_dice


def test_without_a_score_the_report_says_why(quality):
    image = dict.fromkeys(IMAGE, 0.0)
    nothing = dict.fromkeys(AGREEMENT, np.nan)
    cases = {
        "without quality.json": (None, ORIGIN, nothing, image),
        "another kind (members 3, not 5)": (quality, ORIGIN.model_copy(update={"members": 3}), nothing, image),
        "no lesion was found": (quality, ORIGIN, nothing, image),
        "a single member": (quality, ORIGIN, nothing | {"log10_ml": 0.1}, image),
    }
    for why, given in cases.items():
        score = score_of(*given)
        assert score.predicted_dice is None and score.means.startswith("No score: ") and why in score.means
        assert score.do_not_trust is (None if given[0] is None else False)
    far = score_of(*cases["no lesion was found"][:3], image | {"brain_ml": 99.0})
    assert far.do_not_trust and far.predicted_dice is None


def test_memory_is_that_of_this_process():
    before = summary.peak_memory_mb()
    held = np.ones(20_000_000)  # 160 MB
    assert summary.peak_memory_mb() >= before and summary.peak_memory_mb() > held.nbytes / 1e6
