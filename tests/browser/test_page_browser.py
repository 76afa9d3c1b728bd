"""The page of a result in a real browser: opened from the file system, on a laptop and a phone, bright and dark."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from screens import SCREENS, keep, tab_on, too_wide

from pdlib.data.nifti import Grid
from pdlib.inference.summary import Cost, InputFile, Networks, Score, Settings, Summary, measured
from pdlib.report.page import page

LONG = "a_name_without_a_space_" * 6


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A page with two lesions in a noisy brain."""
    affine, shape = np.diag([-1.0, -1.0, 3.0, 1.0]), (20, 120, 100)
    z, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, length) for length in shape), indexing="ij")
    brain = z**2 + y**2 + x**2 < 1
    mask = np.zeros(shape, bool)
    mask[8:11, 70:80, 40:46] = mask[12, 50:53, 60:63] = True
    flair = np.where(brain, np.random.default_rng(0).normal(3, 0.4, shape) + 3 * mask, 0)
    grid = Grid(shape[::-1], affine, nib.Nifti1Header())
    score = Score(
        predicted_dice=0.7,
        means="What it means.",
        mean_error=0.1,
        correlation=0.8,
        correlation_interval=(0.7, 0.9),
        do_not_trust=True,
        reasons=("It is strange",),
    )
    report = Summary(
        **measured(mask, 0.8 * mask, 0.1 * mask, brain, grid),
        inputs={"FLAIR": InputFile(file=f"{LONG}<b>.nii.gz", sha256="a" * 64)},
        networks=Networks(folder=LONG, profile="scan", phantom=True, sha256={"denoiser_0": "b" * 64}),
        settings=Settings(members=5, calls=6, threshold=0.5, vote="soft", seed=1, device="cpu"),
        quality=score,
        warnings=(LONG,),
        cost=Cost(seconds=12, peak_memory_mb=900),
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(report.content, flair, mask, 0.1 * mask, grid), encoding="utf-8")
    return path


@pytest.mark.parametrize("screen", SCREENS)
def test_it_opens_without_a_request_and_its_slider_works(file, screen):
    with tab_on(screen) as (tab, asked, said):
        tab.goto(file.as_uri())
        keep(tab, f"page_{screen}")
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        assert too_wide(tab) <= 0, "nothing is wider than the screen"
        number, first = tab.locator("#number"), tab.locator("image >> nth=0")
        shown = first.get_attribute("href")
        assert number.inner_text() == "slice 9 of 20"
        tab.locator("#slice").press("ArrowRight")
        assert number.inner_text() == "slice 10 of 20" and first.get_attribute("href") != shown
        tab.locator("#down").click()
        assert number.inner_text() == "slice 9 of 20" and first.get_attribute("href") == shown
        tab.locator("#outlined").uncheck()
        assert not tab.locator("path >> nth=0").is_visible()
        tab.locator("td button >> nth=1").click()
        ring = tab.locator(".mark >> nth=0")
        assert number.inner_text() == "slice 13 of 20" and ring.is_visible()
        tab.locator("#up").click()
        assert number.inner_text() == "slice 14 of 20" and not ring.is_visible()
        assert said == []
