"""Networks scored on heads that they were not trained on, and the quality fitted to their agreement."""

import numpy as np
import pytest

from pdlib.data.wmh import Volume
from pdlib.evaluation import quality, records
from pdlib.inference.trained import Trained
from pdlib.methods import CHAIN
from pdlib.study import held_out_heads, preparation
from pdlib.study.held_out_heads import THRESHOLD


def test_the_best_threshold_s_mask_has_the_dice_that_notebook_01_tells(networks):
    for subject in networks.run.subjects("test"):
        volume: Volume = networks.run.volume(subject)
        mask, reference = held_out_heads.best_threshold(volume), (volume.mask == 1) & ~volume.ignore
        dice = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
        assert dice == pytest.approx(preparation.best_threshold_dice(volume)) and not (mask & volume.ignore).any()


def test_heads_of_validation_and_test_are_scored_and_make_the_quality_that_segment_reads(trained, capsys, monkeypatch):
    run = trained.run
    agreements = held_out_heads.agreements(run)
    rng = np.random.default_rng(0)  # networks of two updates may mark nothing, and nothing can be fitted to that
    drawn = {name: rng.uniform(0.1, 0.9, len(agreements)) for name in ("dice", *quality.AGREEMENT)}
    monkeypatch.setattr(held_out_heads, "agreements", lambda run: agreements.assign(**drawn))
    fitted = held_out_heads.write(run, trained.weights, folds=3)
    rows = records.read_table(run.place.results / "heads.csv")
    assert records.read_stamp(run.place.results / "heads.csv")["data_fingerprint"] == run.data["fingerprint"]
    heads = {*run.subjects("validation"), *run.subjects("test")}
    assert set(agreements.subject) == set(rows.subject) == heads and not heads & {*run.subjects("train")}
    assert set(rows.method) == {"attention_unet", CHAIN, THRESHOLD}
    assert {"dice", "lesion_f1", "avd_percent"} <= set(rows.metric)
    read = Trained.read(trained.weights)
    assert read.quality == fitted and dict(fitted.origin.networks) == read.digests
    sampling = read.sampling["ensemble"]
    assert (fitted.origin.members, fitted.origin.threshold) == (sampling["size"], sampling["threshold"])
    assert THRESHOLD in capsys.readouterr().out


def test_the_features_dice_is_the_table_s(trained):
    rows = held_out_heads.scores(trained.run).query("method == @CHAIN and metric == 'dice'").set_index("subject").value
    found = held_out_heads.agreements(trained.run).set_index("subject").dice
    assert found.to_dict() == pytest.approx(rows.to_dict(), nan_ok=True)


def test_a_run_that_is_not_there_is_told(tmp_path, capsys):
    assert held_out_heads.main(["--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
