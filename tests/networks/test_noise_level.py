"""The network that reads off a state how much noise it holds."""

import torch
from lightning_fabric import Fabric
from toys import toy, updates

from pdlib.diffusion.sampler import build_diffusion
from pdlib.networks.noise_level import NoiseLevel
from pdlib.training.objectives import noise_level_objective

COSINE = {"name": "cosine", "steps": 100, "offset": 0.008, "max_beta": 0.999}
DIFFUSION = build_diffusion(schedule=COSINE, codec="zero_one", prediction="x_start")
OBJECTIVE = noise_level_objective(DIFFUSION, 30)


def network():
    torch.manual_seed(0)
    return NoiseLevel(in_channels=3, channels=[8, 8, 8, 8])


def test_it_learns_levels_far_better_than_their_mean():
    """The best constant has the variance of log(1 - abar) as its loss."""
    chance = float((1 - DIFFUSION.schedule.abar(torch.arange(30))).log().var(correction=0))
    losses = [parts["train_loss"] for parts in updates(network(), OBJECTIVE, (toy(i, 16) for i in range(250)), 5e-3)]
    assert losses[0] > chance and sum(losses[-20:]) / 20 < 0.4 * chance


def test_an_image_of_any_size_gives_one_level_in_mixed_precision_too():
    for size in ((3, 5), (16, 16), (40, 24)):
        found = network()(torch.randn(2, 3, *size))
        assert found.shape == (2,) and bool(((found > 0) & (found < 1)).all())
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    loss = OBJECTIVE(fabric.setup(network()), toy())["train_loss"]
    fabric.backward(loss)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
