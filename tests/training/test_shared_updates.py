"""How the processes of a training share an update. What they come to together: tests/slow/test_fabric.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import GAN, PROBABILISTIC
from test_fit import PLAN, small_bank
from torch import nn

from pdlib.diffusion.sampler import build_diffusion
from pdlib.networks.gan import build_generator
from pdlib.networks.segmenters import build_segmenter
from pdlib.training import objectives
from pdlib.training.bank import Batch
from pdlib.training.corruption import Mixture
from pdlib.training.fit import Learner, update
from pdlib.training.processes import share

FIT = replace(PLAN, batch_size=6)
MIXTURE = Mixture(corrupted=0.5, empty=0.2, dropped=0.4, added=0.4)
T_PRIME = 300


def of(rank, processes, step=3):
    return share(small_bank(), step, FIT, SimpleNamespace(global_rank=rank, world_size=processes))


def interleaved(shares):
    """The rows of shares, of rank 0, 1, ..., in the order of the whole batch."""
    return torch.stack(shares, dim=1).flatten(0, 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_are_the_batch_of_one_process(processes):
    whole, shares = of(0, 1), [of(rank, processes) for rank in range(processes)]
    assert torch.equal(interleaved([one.image for one in shares]), whole.image)
    assert torch.equal(interleaved([one.mask for one in shares]), whole.mask)


def drawn(batch):
    return [batch.integers(1000), batch.uniform(), batch.normal(1, 4, 5), batch.normal(3)]


@pytest.mark.parametrize("step", [0, 3])
def test_one_process_draws_torch_s_own_numbers(step):
    batch = of(0, 1, step)
    rng = torch.Generator().set_state(batch.generator.get_state())
    own = [torch.randint(1000, (6,), generator=rng), torch.rand(6, generator=rng)]
    own += [torch.randn(6, 1, 4, 5, generator=rng), torch.randn(6, 3, generator=rng)]
    assert all(map(torch.equal, drawn(batch), own))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_several_processes_draw_the_numbers_of_one(processes):
    shares = zip(*(drawn(of(rank, processes)) for rank in range(processes)), strict=True)
    assert all(map(torch.equal, map(interleaved, shares), drawn(of(0, 1))))


def test_each_process_has_dropout_of_its_own():
    learner, seen = Learner(nn.Sequential(nn.Conv2d(2, 1, 1)), FIT, torch.device("cpu"), "32-true"), []

    def objective(network, batch):
        seen.append(nn.functional.dropout(torch.ones(64)))
        return {"train_loss": network(batch.image).mean()}

    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        update(learner, objective, of(rank, processes))
    torch.manual_seed(of(0, 1).generator.initial_seed())
    assert torch.equal(seen[0], nn.functional.dropout(torch.ones(64))) and torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ValueError, match="batch_size 6: 4 processes cannot share it equally"):
        of(0, 4)


def diffusion(prediction):
    schedule = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
    return build_diffusion(schedule=schedule, codec="zero_one", prediction=prediction)


class Small(nn.Module):
    """A convolution, of an index too; whole: one number in 0..1 an image."""

    def __init__(self, channels, outputs=1, whole=False):
        super().__init__()
        self.conv, self.whole = nn.Conv2d(channels, outputs, 3, padding=1), whole

    def forward(self, x, t=None):
        x = self.conv(x) * (1 if t is None else 1 + t.reshape(-1, 1, 1, 1) / 1000)
        return x.mean(dim=(1, 2, 3)).sigmoid() if self.whole else x


def teacher(x, t):
    return 1.3 * x[:, 2:] + 0.2 * x[:, :1] + t.reshape(-1, 1, 1, 1) / 1000


def probabilistic():
    return build_segmenter(**PROBABILISTIC | {"norm": "instance"})


def generator():
    return build_generator(**GAN | {"norm": "instance"} | objectives.marginal(diffusion("eps"), T_PRIME - 1))


CASES = {
    "segmentation": (objectives.build_objective("segmentation", loss="ce"), lambda: Small(2)),
    "segmentation, Dice of each image": (
        objectives.build_objective("segmentation", loss="dice_ce", batch=False, lambda_ce=0.1),
        lambda: Small(2),
    ),
    "diffusion": (objectives.diffusion_objective(diffusion("v"), 1000), lambda: Small(3)),
    "diffusion of a logit": (objectives.diffusion_objective(diffusion("logit"), 1000), lambda: Small(3)),
    "hybrid": (objectives.hybrid_objective(diffusion("eps"), 1000, 0.001), lambda: Small(3, 2)),
    "one step": (
        objectives.one_step_objective(diffusion("eps"), 250, False, nn.functional.mse_loss),
        lambda: Small(3),
    ),
    "distillation": (
        objectives.distillation_objective(diffusion("v"), teacher, (299, 224, 149, 74), 0.5),
        lambda: Small(3),
    ),
    "noise level": (objectives.noise_level_objective(diffusion("eps"), 300), lambda: Small(3, whole=True)),
    "start-matched": (objectives.start_matched_objective(diffusion("logit"), 299, MIXTURE), lambda: Small(4)),
    "refiner": (objectives.refiner_objective(diffusion("eps"), MIXTURE, nn.functional.mse_loss), lambda: Small(3)),
    "probabilistic": (objectives.probabilistic_objective(2.0, 10, 0.0), probabilistic),
    "adversarial": (objectives.adversarial_objective(diffusion("eps"), T_PRIME, 10), generator),
}
PAIRS = ("distillation", "start-matched", "refiner")  # whose masks are references and then pre-segmentations


def computed(name, network, rank=0, processes=1):
    """What an objective shows the network, and its loss and gradient, for a share of a batch."""
    rng, seen = torch.Generator().manual_seed(2), []
    image = torch.randn(12, 2, 16, 16, generator=rng)
    mask = (torch.rand(12, 2 if name in PAIRS else 1, 16, 16, generator=rng) < 0.1).float()
    batch = Batch(image, mask, 0, torch.Generator().manual_seed(7)).share(rank, processes)
    hook = network.register_forward_pre_hook(lambda _, *shown: seen.append(shown), with_kwargs=True)
    parts = CASES[name][0](network, batch)
    hook.remove()
    network.zero_grad()
    sum(parts.values()).backward()
    ((places, names),) = seen
    shown = [one for one in (*places, *names.values()) if isinstance(one, torch.Tensor)]
    return shown, parts, torch.cat([one.grad.flatten() for one in network.parameters()])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_processes_come_to_the_loss_and_the_gradient_of_one(name, processes):
    torch.manual_seed(0)
    network = CASES[name][1]()
    shown, parts, gradient = computed(name, network)
    all_shown, all_parts, gradients = zip(
        *(computed(name, network, rank, processes) for rank in range(processes)), strict=True
    )
    for whole, shares in zip(shown, zip(*all_shown, strict=True), strict=True):
        assert torch.equal(interleaved(shares), whole)
    for part, value in parts.items():
        mean = sum(one[part].item() for one in all_parts) / processes
        assert value.item() != 0 and mean == pytest.approx(value.item(), rel=1e-5), part
    assert gradient.abs().max() > 0
    torch.testing.assert_close(sum(gradients) / processes, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "part", "channels"),
    [
        (objectives.build_objective("segmentation", loss="dice_ce", batch=True, lambda_ce=0.1), "train_loss", 2),
        (objectives.reconstruction_objective(5.0), "dice_loss", 1),
    ],
    ids=["segmentation", "reconstruction"],
)
def test_a_dice_over_the_batch_is_another_over_a_share(objective, part, channels):
    """As their docstrings say; here one image has all lesions."""
    torch.manual_seed(0)
    network, mask = Small(channels), torch.zeros(4, 1, 8, 8)
    mask[0] = 1
    whole = Batch(torch.randn(4, 2, 8, 8), mask, 0, torch.Generator())
    parts = [objective(network, one)[part].item() for one in (whole, whole.share(0, 2), whole.share(1, 2))]
    assert abs(parts[0] - sum(parts[1:]) / 2) > 0.01
