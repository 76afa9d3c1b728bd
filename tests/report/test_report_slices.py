"""What a picture shows is what it was given."""

import numpy as np

from pdlib.report import slices


def brain(shape=(20, 16)):
    image = np.zeros(shape)
    image[3:-3, 3:-3] = np.random.default_rng(0).uniform(1, 2, (shape[0] - 6, shape[1] - 6))
    return image


def example(mask):
    image = brain()
    return slices.Example("training/GE3T/1", image, mask[0], {"unet": mask[1]}, mask[0] * 0.2, {"unet": 0.5}, 1.0)


def test_outlines_run_along_the_pixels_of_a_square_about_the_largest_lesion():
    mask = np.zeros((2, 20, 16), np.uint8)
    mask[0, 8:11, 8] = mask[1, 8, 8] = mask[0, 15, 3] = 1
    one = example(mask)
    rows, columns = one.zoom
    assert rows == slice(0, 20) and columns == slice(0, 16), "no more than there is"
    figure = slices.examples_figure([one] * 3, note="phantom")
    whole, reference, predicted = figure.axes[:3]
    (outline,) = [points.get_paths()[0].vertices for points in predicted.collections[1:]]
    np.testing.assert_allclose([outline.min(0), outline.max(0)], [[7.5, 7.5], [8.5, 8.5]], atol=0.07)
    (outline,) = [points.get_paths()[0].vertices for points in reference.collections]
    np.testing.assert_allclose(outline.max(0), [8.5, 15.5], atol=0.07)
    assert predicted.get_xlabel() == "0.500" and reference.get_xlabel() == "volume Dice"
    assert whole.get_ylabel() == "GE3T/1"


def test_a_zoom_is_as_wide_as_high_in_millimetres_and_stays_inside():
    flair, mask = np.ones((60, 80)), np.zeros((60, 80))
    mask[2:5, 70:78] = 1
    rows, columns = slices.Example("a", flair, mask, {}, mask, {}, 2.0).zoom
    assert rows.stop - rows.start == 12 and columns.stop - columns.start == 24
    assert rows.start == 0 and columns == slice(56, 80)


def test_overlay_takes_the_slices_with_most_lesion_and_never_an_empty_one():
    image = np.zeros((2, 9, 20, 16))
    image[:, 2:8] = brain()
    mask = np.zeros((9, 20, 16), np.uint8)
    mask[3, 8, 8:10] = mask[6, 8, 8] = 1
    figure = slices.overlay_figure(image, None, mask, mask * 0.1, spacing_mm=(3, 1, 1), columns=3)
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert {"slice 4", "slice 7"} < set(titles) and set(titles) <= {f"slice {z + 1}" for z in range(2, 8)}


def test_pictures_stand_below_their_titles():
    grid = [{"mask": brain(), "kernel": brain()}, {"mask": brain() / 2}]
    axes = np.array(slices.pictures_figure(grid, limits=(-1, 2)).axes).reshape(2, 2)
    assert [ax.get_title() for ax in axes.flat] == ["mask", "kernel", "mask", ""]
    np.testing.assert_array_equal(axes[1, 0].images[0].get_array(), grid[1]["mask"])
    assert axes[0, 1].images[0].get_clim() == (-1, 2) and not axes[1, 1].images
    (alone,) = slices.pictures_figure({"mask": brain()}).axes
    assert alone.get_title() == "mask"
