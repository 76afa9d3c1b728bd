"""The figure of what makes members differ shows the table's numbers."""

import numpy as np
import pandas as pd
import pytest

from pdlib.report.spread import TITLES, spread_figure, variant_title


def test_bars_are_means_rings_what_is_due_and_a_zero_is_no_trouble():
    table = pd.DataFrame(
        {
            "variant": ["from_noise", "from_noise", "start_mask", "start_mask"],
            "subject": ["a", "b", "a", "b"],
            "variance": [2e-4, 4e-4, 0.0, 1e-4],
            "due": [3e-3, 1e-3, 2e-3, 2e-3],
        }
    )
    ax = spread_figure(table, note="phantom").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        variant_title(name) for name in ("start_mask", "from_noise")
    ]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.5e-4, 3e-4])
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), [2e-3, 2e-3])
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] == 0, "lengths of bars are variances"


def test_every_variant_has_a_title_and_none_is_an_error():
    assert set(TITLES) == {"as_printed", "start_noise", "every_step", "start_mask", "from_noise"}
    with pytest.raises(ValueError, match="no variants"):
        spread_figure(pd.DataFrame({"variant": []}))
