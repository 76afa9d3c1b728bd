"""Which rows' titles say that the row is weak, from tables made by hand."""

import pandas as pd
import pytest
from conftest import rows

from pdlib.evaluation import records
from pdlib.study.remarks import remarks

SOUND = {"mean in lesions": 0.9, "mean outside": 0.0, "deviation outside": 0.4, "deviation between draws": 0.4}


def states(run, **drawn):
    parts = {"diffused": SOUND, "rater": SOUND | {"mean in lesions": 0.7}, "drawn": SOUND | drawn}
    table = pd.DataFrame(parts).T.rename_axis("state").reset_index().assign(t_prime=300)
    records.write_table(run.place.trained.results / "training" / "tdpm_states.csv", table, run.stamp())


@pytest.mark.parametrize(
    ("lesions", "between", "weak"), [(0.65, 0.4, False), (0.5, 0.4, True), (0.7, 0.2, True), (0.78, 0.4, False)]
)
def test_a_generator_is_held_against_the_raters(trained, lesions, between, weak):
    states(trained.run, **{"mean in lesions": lesions, "deviation between draws": between})
    scores = rows("tdpm", [0.5, 0.6], t_prime=3)
    assert remarks(trained.run, scores) == ({"tdpm": "weak generator"} if weak else {})


def test_a_probabilistic_u_net_is_held_against_the_u_net(trained):
    unet, es_ddpm = rows("unet", [0.6, 0.7]), rows("es_ddpm", [0.6, 0.7])
    near, far = rows("probabilistic_unet", [0.58, 0.63]), rows("probabilistic_unet", [0.5, 0.6])
    assert remarks(trained.run, pd.concat([unet, near, es_ddpm])) == {}
    assert remarks(trained.run, pd.concat([unet, far])) == {"probabilistic_unet": "weak"}
    both = remarks(trained.run, pd.concat([unet, far, es_ddpm]))
    assert both == {"probabilistic_unet": "weak", "es_ddpm": "weak start"}
