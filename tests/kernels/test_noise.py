"""Counter-based noise against its authors' answers, and the independence of the streams."""

import numpy as np
import torch

from pdlib.kernels import noise


def streams(rows, seed=0, subject="a"):
    return noise.subject_streams(seed, subject, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def test_philox_agrees_with_the_known_answers_of_its_authors():
    """kat_vectors of Random123: philox4x32-10 on zeros, on ones, and on the digits of pi."""
    words = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in words:
        packed = np.array(key[0] | key[1] << 32, dtype=np.uint64).astype(np.int64)
        out = noise.philox(torch.tensor(packed), tuple(torch.tensor(word) for word in counter))
        assert tuple(int(word) for word in out) == expected


def test_noise_is_standard_gaussian_and_every_stream_is_its_own():
    draws = noise.normal(streams(4), 7, 1, 200, 200)
    assert abs(float(draws.mean())) < 0.01 and abs(float(draws.std()) - 1) < 0.01
    assert abs(float((draws.abs() > 1.959964).float().mean()) - 0.05) < 0.002
    others = [
        noise.normal(streams(4), 8, 1, 200, 200),
        noise.normal(streams(4, seed=1), 7, 1, 200, 200),
        noise.normal(streams(4, subject="b"), 7, 1, 200, 200),
        draws.roll(1, 0),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1])) < 0.01


def test_noise_of_a_row_does_not_depend_on_its_batch():
    whole = noise.normal(streams(6), 3, 1, 9, 11)
    assert torch.equal(whole[4:5], noise.normal(streams(6)[4:5], 3, 1, 9, 11))
