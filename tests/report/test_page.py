"""The page of a result: it holds all it shows, shows it where it is, and takes no text for markup."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from pdlib.data.nifti import Grid
from pdlib.inference.summary import Cost, InputFile, Networks, Score, Settings, Summary, measured
from pdlib.paths import ROOT
from pdlib.report import page as pages
from pdlib.report.page import outline, page

AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([1.0, 0.5, 3.0]), [-40, 90, -30])
EVIL = """</script><script>alert("1")</script>&amp;<img src=x onerror='alert(2)'>"""
FINE = Score(
    predicted_dice=0.714,
    means="What it means.",
    mean_error=0.061,
    correlation=0.8,
    correlation_interval=(0.7, 0.9),
    do_not_trust=False,
    reasons=(),
)


class Page(HTMLParser):
    """Elements as (tag, attributes), and text by the tag that holds it."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def attributes(self, tag: str) -> list[dict]:
        return [found for name, found in self.elements if name == tag]

    @property
    def slices(self) -> list[dict]:
        return json.loads(next(text for text in self.texts["script"] if text.startswith("[")))


def volume(shape=(9, 40, 20)) -> dict[str, np.ndarray]:
    """A brain with an empty slice at either end, a lesion of 2 x 3 pixels near its front left, and one voxel."""
    brain = np.zeros(shape, bool)
    brain[1:-1, 4:-4, 3:-3] = True
    mask = np.zeros(shape, bool)
    mask[3, -8:-6, 5:8] = mask[6, 10, 12] = True
    rng = np.random.default_rng(0)
    flair = np.where(brain, rng.normal(0, 0.3, shape) + 3 * mask, 0).astype(np.float32)
    return {"flair": flair, "mask": mask, "variance": (0.2 * mask).astype(np.float32), "brain": brain}


def grid_of(shape: tuple[int, ...], axes: str) -> Grid:
    image = nib.Nifti1Image(np.zeros(shape[::-1], np.uint8), AFFINE)
    start, end = (nib.orientations.axcodes2ornt(codes) for codes in (nib.aff2axcodes(AFFINE), axes))
    stored = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    return Grid(stored.shape, stored.affine, stored.header)


def draw(shown: dict | None = None, overlay: bytes | None = None, axes: str = "LPS", **changes) -> str:
    shown = shown or volume()
    grid = grid_of(shown["mask"].shape, axes)
    parts = {
        **measured(shown["mask"], shown["mask"] * 0.8, shown["variance"], shown["brain"], grid),
        "inputs": {"FLAIR": InputFile(file="a/FLAIR.nii.gz", sha256="a" * 64)},
        "networks": Networks(folder="weights", profile="scan", phantom=True, sha256={"denoiser_0": "b" * 64}),
        "settings": Settings(members=5, calls=6, threshold=0.5, vote="soft", seed=1, device="cpu"),
        "quality": FINE,
        "warnings": (),
        "cost": Cost(seconds=12, peak_memory_mb=900),
    }
    report = Summary(**parts | changes).content
    return page(report, shown["flair"], shown["mask"], shown["variance"], grid, overlay)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (30, 20), "red").save(stream, format="png")
    return stream.getvalue()


def test_it_fetches_nothing_and_runs_its_own_script_alone():
    html = draw(overlay=png())
    found = Page(html)
    held = [one.get(key, "data:") for tag, one in found.elements if tag != "a" for key in ("src", "href")]
    assert len(found.attributes("image")) == 3 and len(found.attributes("img")) == 1
    assert all(uri.startswith("data:") for uri in held)
    assert [one.get("type") for one in found.attributes("script")] == ["application/json", None]
    assert "@import" not in html and "url(" not in html
    (policy,) = [
        one["content"] for one in found.attributes("meta") if one.get("http-equiv") == "Content-Security-Policy"
    ]
    script = base64.b64encode(hashlib.sha256(found.texts["script"][-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"


def test_no_text_becomes_markup():
    networks = Networks(folder=EVIL, profile=EVIL, phantom=True, sha256={EVIL: "b" * 64})
    inputs = {"FLAIR": InputFile(file=EVIL, sha256="a" * 64), EVIL: InputFile(file=EVIL, sha256="a" * 64)}
    score = FINE.model_copy(update={"means": EVIL, "do_not_trust": True, "reasons": (EVIL,)})
    settings = Settings(members=5, calls=6, threshold=0.5, vote="soft", seed=1, device=EVIL)
    html = draw(networks=networks, inputs=inputs, quality=score, settings=settings, warnings=(EVIL,))
    found, plain = Page(html), Page(draw(warnings=("one",), quality=score.model_copy(update={"reasons": ("one",)})))
    assert [tag for tag, _ in found.elements if tag in ("script", "img")] == ["script", "script"]
    more = 2 * (len(inputs) - 1)  # a line about each input
    assert len(found.elements) == len(plain.elements) + more
    for place in ("title", "li", "dd", "p", "dt"):
        assert any(EVIL in text for text in found.texts[place]), place


def test_the_headline():
    found = Page(draw())
    assert found.texts["h1"] == ["0.0105 ml in 2 lesions"]
    said = " ".join(" ".join(found.texts[tag]) for tag in ("strong", "dd", "small", "p"))
    assert "trained on simulated heads (a phantom), never on patients" in said
    assert "0.71" in said and "off by 0.06 on average" in said and "0.80 (0.70 to 0.90)" in said
    assert "Do not trust" not in said and "none" not in said


def test_do_not_trust_comes_first():
    score = FINE.model_copy(update={"do_not_trust": True, "reasons": ("The slices are 9 mm thick",)})
    html = draw(quality=score)
    assert html.index("Do not trust this mask") < html.index("simulated heads") < html.index("Predicted Dice")
    assert "The slices are 9 mm thick." in html and "not to be trusted" in html


def test_without_lesion_or_score_it_says_so():
    shown = volume()
    shown["mask"][:] = False
    nothing = dict.fromkeys(("predicted_dice", "mean_error", "correlation", "correlation_interval", "do_not_trust"))
    html = draw(
        shown | {"variance": 0.0 * shown["variance"]}, quality=Score(**nothing, means="No score: why.", reasons=())
    )
    found = Page(html)
    assert found.texts["h1"] == ["No lesion found"] and "none" in found.texts["dd"]
    assert "No score: why." in html and not found.attributes("table") and not found.attributes("rect")


def test_slices_are_shown_as_they_are_seen_from_above():
    """Front up, the patient's left on the left: the lesion is near the upper left, and hot there alone."""
    shown = volume()
    found = Page(draw(shown))
    assert [one["number"] for one in found.slices] == [2, 3, 4, 5, 6, 7, 8]
    (shape,) = {(one["viewbox"]) for one in found.attributes("svg") if one.get("role") == "img"}
    assert shape == "0 0 18.0 18.0"  # 18 pixels of 1 mm, 36 of 0.5 mm: the brain and two pixels about it
    one = found.slices[2]
    flair, heat = (picture(one[name]) for name in ("flair", "heat"))
    assert flair.size == heat.size == (18, 36) and flair.format == "WEBP" and heat.format == "PNG"
    hot = np.argwhere(np.asarray(heat.convert("RGBA"))[..., 3])
    np.testing.assert_array_equal([hot.min(0), hot.max(0)], [[4, 4], [5, 6]])
    assert np.asarray(flair.convert("L"))[4:6, 4:7].mean() > 200
    assert one["outline"] == outline(shown["mask"][3][2:38, 1:19]) != ""
    assert found.slices[0]["outline"] == ""
    (number,) = found.texts["output"]
    assert number == "slice 4 of 9", "the one with most lesion comes first"
    assert {image["href"] for image in found.attributes("image")} == {one["flair"], one["heat"]}


def test_an_outline_runs_along_the_edges_of_the_pixels():
    mask = np.zeros((3, 4))
    mask[0, 1:3] = 1  # the first row is the lowest
    assert outline(mask) == "M1 2h2M1 3h2M1 2v1M3 2v1"
    assert outline(np.ones((2, 3))) == "M0 0h3M0 2h3M0 0v2M3 0v2", "also where the picture ends"
    ring = np.ones((3, 3))
    ring[1, 1] = 0
    assert sum(int(length) for length in re.findall(r"[hv](\d+)", outline(ring))) == 12 + 4


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR"])
def test_a_click_on_a_lesion_leads_to_it(axes):
    rows = [one for one in Page(draw(axes=axes)).attributes("button") if "data-place" in one]
    assert [one["data-place"] for one in rows] == ["2", "5"]
    first, second = ([float(one[f"data-{name}"]) for name in "xyr"] for one in rows)
    assert first[:2] == pytest.approx([5.5, 2.5], abs=0.1)
    assert second[:2] == pytest.approx([11.5, 13.75], abs=0.1)
    assert first[2] == pytest.approx((0.75 * 6 * 1.5 / np.pi) ** (1 / 3) + pages.RING_MM, abs=0.06)


def test_the_lesions_are_tabled_largest_first():
    found = Page(draw())
    cells = [text for text in found.texts["td"] if text.strip()]
    assert cells[:2] == ["1", "0.009"] and "2" in cells and "0.80" in cells and "0.200" in cells


def test_many_lesions_are_folded_and_the_last_ones_left_to_the_report(monkeypatch):
    monkeypatch.setattr(pages, "MOST_ROWS", 20)
    shown = volume((9, 40, 30))
    shown["mask"][1:-1:2, 6:30:6, 5:25:4] = True
    html = draw(shown)
    assert len(re.findall(r"data-place=", html)) == 20
    assert "<summary>5 smaller ones</summary>" in html and "still smaller ones are in report.json" in html


def test_of_many_slices_some_are_shown():
    found = Page(html := draw(volume((140, 20, 20))))
    assert [one["number"] for one in found.slices] == list(range(2, 140, 3))
    assert "One slice in 3 is shown." in html


def test_the_page_of_a_large_volume_is_small():
    """Also where every voxel is noise, which no format packs well, and lesions are everywhere."""
    rng, shape = np.random.default_rng(0), (48, 240, 240)
    brain = np.zeros(shape, bool)
    brain[:, 20:-20, 35:-35] = True
    flair = np.where(brain, rng.standard_normal(shape, dtype=np.float32), 0)
    mask = np.zeros(shape, bool)
    mask[::2, 25:215:14, 40:200:14] = True
    variance = np.where(rng.random(shape) < 0.1, 0.2, 0) * brain
    html = draw({"flair": flair, "mask": mask, "variance": variance, "brain": brain}, overlay=png())
    assert len(html.encode()) < 3e6


def test_the_same_result_is_the_same_page():
    assert draw() == draw()


def test_what_to_cite_is_what_the_repository_says():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    html = draw()
    assert cited["title"] in html and "arxiv.org/abs/2210.17408" in html and "Guo X, Yang Y" in html
