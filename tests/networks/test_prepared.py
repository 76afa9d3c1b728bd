"""A prepared denoiser computes what its network computed when it was prepared."""

import pytest
import torch

from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser

SMALL = dict(
    in_channels=3,
    out_channels=1,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_downsample=(2,),
    num_heads=1,
    scale_shift=False,
    dropout=0.0,
)


def random_unet(**options):
    """A small network in which no parameter is zero or one, as trained weights are."""
    torch.manual_seed(0)
    network = GuidedUNet(**SMALL | options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.1) if parameter.ndim > 1 else parameter.uniform_(-0.5, 1.0)
    return network


@pytest.mark.parametrize(
    "options", [dict(), dict(scale_shift=True, resblock_updown=True), dict(middle_attention=False)]
)
def test_a_prepared_network_computes_what_the_network_computed_then(options):
    network, x = random_unet(**options), torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 71])
    with torch.no_grad():
        expected = network(x, t)
        exact, half = (PreparedDenoiser(network, 100, precision) for precision in ("32-true", "bf16-mixed"))
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(exact(x, t), expected, rtol=1e-5, atol=1e-5)
        coarse = half(x, t)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - expected).norm() < 0.05 * expected.norm()
    folded = [layer for layer in exact.network.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert len(folded) == (0 if options.get("resblock_updown") else 2)
    with pytest.raises(IndexError):
        exact(x, torch.tensor([0, 100]))
