"""What the tests of the networks that draw share: a toy batch, streams, a few updates, training in mixed precision."""

import torch
from lightning_fabric import Fabric
from torch import nn

from pdlib.kernels import noise
from pdlib.training.bank import Batch


def toy(step=0, count=4):
    """Noise with a bright square, its mask, and a generator that starts the same each time."""
    mask = torch.zeros(count, 1, 16, 16)
    for row in range(count):
        mask[row, :, 2 + row : 7 + row, 4:9] = 1
    image = torch.randn(count, 2, 16, 16, generator=torch.Generator().manual_seed(step)) + 2 * mask
    return Batch(image, mask, step, torch.Generator().manual_seed(100 + step))


def streams_of(members, slices=0):
    members = torch.as_tensor(members)
    return noise.subject_streams(0, "a", torch.full_like(members, slices), members)


def updates(network, objective, batches, learning_rate=1e-3):
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for batch in batches:
        parts = objective(network.train(), batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        yield {name: part.item() for name, part in parts.items()}


def hold_in_mixed_precision(network, objective):
    """Under Fabric convolutions are bfloat16 and losses float32; a draw stays finite."""
    dtypes = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    parts = objective(fabric.setup(network), toy())
    fabric.backward(sum(parts.values()))
    assert set(dtypes) == {torch.bfloat16}
    assert all(part.dtype == torch.float32 and torch.isfinite(part) for part in parts.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(toy().image, streams_of(range(4))).isfinite().all()
