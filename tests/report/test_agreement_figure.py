"""The figure of agreement shows every competitor's curve and its distance to the raters."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows

from pdlib.report.agreement import agreement_figure
from pdlib.report.style import method_colour

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


def test_agreement_shows_curves_and_the_raters_distance():
    risks = pd.DataFrame({"set_aside": [0.5, 0.1], "risk": [0.02, 0.05], "oracle": 0.0})
    risks = pd.concat([risks.assign(method="pd_ddpm"), risks.assign(method="ddpm", risk=risks.risk / 2)])
    distances = {"ddpm": [0.2, 0.4], "pd_ddpm": [0.3, 0.6], "unet": [np.nan] * 2}
    scores = pd.concat([rows(name, values, "energy_distance") for name, values in distances.items()])
    left, right = agreement_figure(risks, scores, interval=INTERVAL).axes
    drawn = {(line.get_color(), line.get_linestyle()): line.get_xydata() for line in left.lines}
    np.testing.assert_allclose(drawn[method_colour("pd_ddpm"), "-"], [[0.5, 0.02], [0.1, 0.05]])
    np.testing.assert_allclose(drawn[method_colour("ddpm"), "-"], [[0.5, 0.01], [0.1, 0.025]])
    np.testing.assert_allclose(drawn[method_colour("pd_ddpm"), "--"][:, 1], 0)
    names = [text.get_text() for text in right.get_yticklabels()]
    assert names == ["PD-DDPM, 0.45", "DDPM, 0.30"], "in the order of the curves"
    assert right.get_yticklabels()[1].get_color() == method_colour("ddpm"), "the labels are the key"
    assert right.containers[0].lines[0].get_xdata()[0] == pytest.approx(-0.15)
    left, right = agreement_figure(risks, scores.assign(value=np.nan), interval=INTERVAL).axes
    assert not right.axison and left.get_legend(), "there are no raters"
