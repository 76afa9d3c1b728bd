"""A synthetic optic disc: colour photographs cropped around the disc, in which six raters outline disc and cup.

A stand-in, always called a phantom, for the RIGA data set, whose only truth is six raters' outlines. Lengths are in
widths of the square crop, x to the right and y down. Each subject owns one random stream. No number that shapes the
data has a default here: `parameters` holds them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import StrictFloat, StrictInt
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import expit

from pdlib.data.recipe import Range, Recipe

Colour = tuple[StrictFloat, StrictFloat, StrictFloat]  # red, green, blue
CLASSES = ("disc", "cup")  # the channels of every mask
VESSEL_STEP = 0.005  # between two points of a vessel; below a pixel of any crop up to 200 pixels wide
BEYOND = 0.75  # from the centre of the disc: no longer in the crop


class FundusRater(Recipe):
    """One simulated observer: how much larger they draw, and how much their hand scatters, in the log radius."""

    disc_bias: StrictFloat
    cup_bias: StrictFloat
    disc_noise: StrictFloat
    cup_noise: StrictFloat


class CupRatio(Recipe):
    """The law of the vertical cup-to-disc ratio: a normal one, clipped."""

    mean: StrictFloat
    sd: StrictFloat
    low: StrictFloat
    high: StrictFloat


class FundusParameters(Recipe):
    """All that shapes the photographs. A Range is drawn from uniformly for each subject; colours are RGB."""

    raters: tuple[FundusRater, ...]
    rater_orders: StrictInt
    # shape
    disc_width: Range
    disc_height: Range
    disc_irregularity: StrictFloat
    cup_ratio: CupRatio
    cup_width: Range
    cup_irregularity: StrictFloat
    cup_shift: StrictFloat
    shape_orders: StrictInt
    centre_jitter: StrictFloat
    # edges
    disc_edge: StrictFloat
    cup_edge: StrictFloat
    ambiguity: StrictFloat
    # colours
    fundus_dark: Colour
    fundus_light: Colour
    rim_colour: Colour
    cup_colour: Colour
    cup_contrast: Range
    vein_colour: Colour
    artery_colour: Colour
    # crescent
    crescent_chance: StrictFloat
    crescent_width: Range
    crescent_colour: Colour
    crescent_contrast: Range
    crescent_edge: StrictFloat
    crescent_tilt_degrees: StrictFloat
    # vessels
    vessels_per_side: StrictInt
    vessel_origin: StrictFloat
    vessel_spread_degrees: StrictFloat
    vessel_width: Range
    vessel_bend_degrees: StrictFloat
    vessel_wander_degrees: StrictFloat
    vessel_branches: StrictFloat
    vessel_branch_degrees: Range
    vessel_branch_width: StrictFloat
    vessel_edge: StrictFloat
    vessel_opacity: StrictFloat
    # camera
    vignette: Range
    light_offset: StrictFloat
    texture: StrictFloat
    texture_width: StrictFloat
    blur: StrictFloat
    noise: StrictFloat


@dataclass(frozen=True, eq=False)
class Fundus:
    """One subject's crop, as the camera stores it, and what each rater drew on it."""

    subject: str
    photograph: np.ndarray  # [3, H, W] uint8: red, green, blue
    raters: np.ndarray  # [R, 2, H, W] uint8: the disc including the cup; the cup, which each rater keeps in their disc

    @property
    def image(self) -> np.ndarray:
        """[3, H, W] float32: each channel z-scored over the whole crop, without clipping: all of it is tissue."""
        values = self.photograph.astype(np.float64)
        values -= values.mean((1, 2), keepdims=True)
        return (values / values.std((1, 2), keepdims=True)).astype(np.float32)

    @property
    def reference(self) -> np.ndarray:
        """[2, H, W] uint8, disc and cup: see `majority`."""
        return majority(self.raters)


def majority(raters: np.ndarray) -> np.ndarray:
    """Where more than half of the raters agree. [R, ..., H, W] uint8 -> [..., H, W] uint8.

    A tie is outside: of six raters four are needed. A majority for the cup is one for the disc around it.
    """
    return (2 * raters.sum(0, dtype=int) > len(raters)).astype(np.uint8)


def majority_of_others(raters: np.ndarray) -> np.ndarray:
    """What each rater is to be compared with, for theirs is no vote. [R, ..., H, W] uint8 -> the same.

    Of five others three are needed.
    """
    return np.stack([majority(np.delete(raters, r, axis=0)) for r in range(len(raters))])


class Contour(NamedTuple):
    """A closed line around a centre, as maps [H, W]."""

    level: np.ndarray  # distance from the centre over the line's distance in the same direction: below 1 inside
    angle: np.ndarray  # direction from the centre, in radians
    radius: float  # typical distance from the centre to the line
    softness: np.ndarray  # by direction, about 1: how blurred the edge is, and how much raters err there


def _wave(rng: np.random.Generator, angle: np.ndarray, orders: int) -> np.ndarray:
    """A random smooth function of the direction, of unit variance: Fourier terms of order 0 to `orders`."""
    total = np.full_like(angle, rng.standard_normal())
    for order in range(1, orders + 1):
        a, b = rng.standard_normal(2)
        total += a * np.cos(order * angle) + b * np.sin(order * angle)
    return total / np.sqrt(orders + 1)


def _contour(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    semi_axes: tuple[float, float],
    irregularity: float,
    unit: float,
    p: FundusParameters,
) -> Contour:
    """An irregular ellipse around (0, 0). Its semi-axes (x, y) and x, y [H, W] have a unit of `unit` widths."""
    angle = np.arctan2(y, x)
    level = np.hypot(x / semi_axes[0], y / semi_axes[1])
    level = level * np.exp(-irregularity * _wave(rng, angle, p.shape_orders))
    softness = np.exp(p.ambiguity * _wave(rng, angle, p.shape_orders))
    return Contour(level, angle, unit * np.sqrt(semi_axes[0] * semi_axes[1]), softness)


def disc_and_cup(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, p: FundusParameters
) -> tuple[Contour, Contour]:
    """The shapes that the photograph shows; x, y [H, W] from the centre of the disc. The cup is drawn in
    coordinates in which the disc is the unit circle, so that its ratio holds whatever the disc's shape.
    """
    width = rng.uniform(*p.disc_width) / 2
    disc = _contour(rng, x, y, (width, width * rng.uniform(*p.disc_height)), p.disc_irregularity, 1, p)
    law = p.cup_ratio
    ratio = np.clip(rng.normal(law.mean, law.sd), law.low, law.high)
    shift = p.cup_shift * (1 - ratio) * rng.standard_normal(2)
    inner = (disc.level * turn(disc.angle) - centre for turn, centre in zip((np.cos, np.sin), shift, strict=True))
    cup = _contour(rng, *inner, (ratio * rng.uniform(*p.cup_width), ratio), p.cup_irregularity, disc.radius, p)
    return disc, cup


def draw_raters(rng: np.random.Generator, disc: Contour, cup: Contour, p: FundusParameters) -> np.ndarray:
    """Each rater's masks, disc and cup; they err most where the edge is soft. [R, 2, H, W] uint8."""

    def outline(contour: Contour, bias: float, noise: float) -> np.ndarray:
        error = bias + noise * _wave(rng, contour.angle, p.rater_orders)
        return contour.level < np.exp(contour.softness * error)

    masks = np.array(
        [
            (outline(disc, rater.disc_bias, rater.disc_noise), outline(cup, rater.cup_bias, rater.cup_noise))
            for rater in p.raters
        ]
    )
    masks[:, 1] &= masks[:, 0]
    return masks.astype(np.uint8)


def grow_vessels(
    rng: np.random.Generator, macula: int, p: FundusParameters
) -> Iterator[tuple[np.ndarray, float, bool]]:
    """Every vessel that leaves the disc and every branch: points [P, 2] (x, y), width, whether an artery.

    `macula` is the sign of x on whose side it lies: the vessels come out on the other side, and bend around it.
    """
    growing, origin = [], np.array([-macula * p.vessel_origin, 0])
    for side in (-1, 1):  # up and down
        for index in range(p.vessels_per_side):
            heading = side * np.pi / 2 + np.deg2rad(p.vessel_spread_degrees) * rng.uniform(-1, 1)
            growing.append((origin, heading, rng.uniform(*p.vessel_width), index % 2 == 0))
    while growing:
        point, heading, width, artery = growing.pop()
        points = [point]
        while np.abs(point).max() < BEYOND:
            heading -= macula * np.sin(heading) * np.deg2rad(p.vessel_bend_degrees) * VESSEL_STEP
            heading += np.deg2rad(p.vessel_wander_degrees) * np.sqrt(VESSEL_STEP) * rng.standard_normal()
            point = point + VESSEL_STEP * np.array([np.cos(heading), np.sin(heading)])
            points.append(point)
            if rng.random() < p.vessel_branches * VESSEL_STEP and width > p.vessel_width[0]:
                fork = rng.choice([-1, 1]) * np.deg2rad(rng.uniform(*p.vessel_branch_degrees))
                growing.append((point, heading + fork, p.vessel_branch_width * width, artery))
        yield np.array(points), width, artery


def _over(photo: np.ndarray, opacity: np.ndarray, colour: Sequence[float]) -> np.ndarray:
    """Lay one colour (RGB) over a photograph [3, H, W] with an opacity [H, W] in [0, 1]."""
    return photo + opacity * (np.reshape(colour, (3, 1, 1)) - photo)


def paint(
    rng: np.random.Generator, disc: Contour, cup: Contour, x: np.ndarray, y: np.ndarray, p: FundusParameters
) -> np.ndarray:
    """The photograph of disc and cup; x, y [H, W] from the centre of the disc. [3, H, W] float64, light in [0, 1]."""
    pixel = x[0, 1] - x[0, 0]
    macula = rng.choice([-1, 1])  # a left or a right eye
    texture = ndimage.gaussian_filter(rng.standard_normal(x.shape), p.texture_width / pixel, mode="wrap")
    tissue = p.fundus_dark + rng.random() * np.subtract(p.fundus_light, p.fundus_dark)
    photo = tissue[:, None, None] * np.exp(p.texture * texture / texture.std())

    if rng.random() < p.crescent_chance:
        towards = np.deg2rad(p.crescent_tilt_degrees * rng.standard_normal() + (0 if macula > 0 else 180))
        outer = 1 + rng.uniform(*p.crescent_width) * np.maximum(np.cos(disc.angle - towards), 0)
        inside = expit((outer - disc.level) * disc.radius / p.crescent_edge)
        photo = _over(photo, rng.uniform(*p.crescent_contrast) * inside, p.crescent_colour)

    inside = expit((1 - disc.level) * disc.radius / (p.disc_edge * disc.softness))
    photo = _over(photo, inside, p.rim_colour)
    deep = expit((1 - cup.level) * cup.radius / (p.cup_edge * cup.softness))
    photo = _over(photo, rng.uniform(*p.cup_contrast) * inside * deep, p.cup_colour)

    pixels = np.stack([x, y], -1).reshape(-1, 2)
    for points, width, artery in grow_vessels(rng, macula, p):
        distance, _ = cKDTree(points).query(pixels, distance_upper_bound=3 * width)
        profile = expit((width / 2 - distance.reshape(x.shape)) / (p.vessel_edge * width))
        photo = _over(photo, p.vessel_opacity * profile, p.artery_colour if artery else p.vein_colour)

    off_x, off_y = rng.normal(0, p.light_offset, 2)
    photo = photo * np.exp(-rng.uniform(*p.vignette) * ((x - off_x) ** 2 + (y - off_y) ** 2))
    photo = ndimage.gaussian_filter(photo, (0, p.blur / pixel, p.blur / pixel))
    return photo + p.noise * rng.standard_normal(photo.shape)


def fundus_phantom(*, cases: int, size: int, seed: int, parameters: Mapping[str, Any]) -> list[Fundus]:
    """Draw `cases` subjects of size x size pixels; subject k is the same whatever their number.

    `parameters` is the content of configs/phantom_fundus.yaml. Raises ValueError for unknown or missing keys.
    """
    p = FundusParameters.from_mapping(parameters)
    middle = (np.arange(size) + 0.5) / size - 0.5
    found = []
    for case in range(cases):
        rng = np.random.default_rng(np.random.SeedSequence((seed, case)))
        centre_x, centre_y = p.centre_jitter * rng.standard_normal(2)
        x, y = np.meshgrid(middle - centre_x, middle - centre_y)
        disc, cup = disc_and_cup(rng, x, y, p)
        raters = draw_raters(rng, disc, cup, p)
        light = paint(rng, disc, cup, x, y, p)
        photograph = np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)
        found.append(Fundus(f"phantom/fundus_{case:03d}", photograph, raters))
    return found
