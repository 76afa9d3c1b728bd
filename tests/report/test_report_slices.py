"""What a picture shows is what it was given."""

import numpy as np

from pdlib.report import slices


def brain(shape=(20, 16)):
    image = np.zeros(shape)
    image[3:-3, 3:-3] = np.random.default_rng(0).uniform(1, 2, (shape[0] - 6, shape[1] - 6))
    return image


def test_processes_draw_every_state_and_arrow():
    state = brain()
    chains = {
        "DDPM": [slices.State(f"t = {t}", state * t) for t in (3, 2, 1, 0)],
        "PD-DDPM": [slices.State("start", state), slices.State("t = 1", state, forward=True)],
    }
    axes = np.array(slices.processes_figure(state, chains, note="phantom").axes).reshape(2, 5)
    assert [ax.get_title() for ax in axes[1]] == ["PD-DDPM", "", "", "start", "t = 1"]
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), 2 * state[1:19, 1:15])
    assert [len(ax.texts) for ax in axes[0]] == [0, 0, 1, 1, 1]


def example(mask):
    image = brain()
    return slices.Example(
        "training/GE3T/1", image, image, mask[0], {"unet": mask[1]}, mask[0] * 0.2, {"unet": 0.5}, 1.2
    )


def test_overlays_paint_hits_extras_and_misses():
    mask = np.zeros((2, 20, 16), np.uint8)
    mask[0, 8, 8] = mask[1, 8, 8] = mask[0, 9, 9] = mask[1, 10, 10] = 1
    figure = slices.examples_figure([example(mask)] * 3, note="phantom")
    predicted = figure.axes[3]
    painted = [np.argwhere(layer.get_array()[..., 3]).tolist() for layer in predicted.images[1:]]
    assert painted == [[[7, 7]], [[9, 9]], [[8, 8]]]  # the brain's box starts at (1, 1)
    assert predicted.get_xlabel() == "0.500"
    assert figure.axes[0].get_ylabel() == "GE3T/1"


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
