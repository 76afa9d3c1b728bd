"""Tables keep what they were given, to the byte, and know what made them."""

import os
import platform
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pdlib.evaluation import records
from pdlib.evaluation.metrics import score_volume
from pdlib.evaluation.records import COLUMNS, data_fingerprint, read_stamp, read_table, score_rows, stamp, write_table

STAMP = {"git": {"sha": "abc", "dirty": False}, "seed": 1}


def rows(method="pd-ddpm", subject="Utrecht/7", dice=0.75, **changes):
    about = {"fold": 0, "seed": 20221017, "site": "Utrecht", "split": "test", "nfe": 300, "seconds": 1.5}
    scores = {"dice": dice, "hd95_mm": np.nan}
    return score_rows(scores, method=method, subject=subject, **about | changes)


def test_rows_carry_every_score_with_its_unit():
    scores = score_volume(np.eye(4)[None], np.eye(4)[None], (3, 1, 1))
    frame = score_rows(
        scores, method="unet", fold=0, seed=1, subject="GE3T/1", site="GE3T", split="test", nfe=1, seconds=0.1
    )
    assert tuple(frame) == COLUMNS
    assert dict(zip(frame.metric, frame.value, strict=True)) == scores
    assert set(zip(frame.metric, frame.unit, strict=True)) >= {("hd95_mm", "mm"), ("avd_percent", "%"), ("dice", "1")}


@pytest.mark.parametrize(
    ("scores", "changes", "words"),
    [
        ({"fancy": 1.0}, {}, "fancy: a metric without a unit"),
        ({"dice": 1.0}, {"step": "ddim"}, "step: no column of a score .*rule"),
        ({"dice": 1.0}, {"method": None}, "method: a score has to say its method, site"),
    ],
)
def test_rows_refuse_what_they_have_no_column_for(scores, changes, words):
    about = {"method": "unet", "fold": 0, "seed": 1, "subject": "a", "split": "test"}
    about = {name: value for name, value in (about | {"site": "b"} | changes).items() if value is not None}
    if changes.get("method", "") is None:
        del about["site"]
    with pytest.raises(ValueError, match=words):
        score_rows(scores, **about)


def test_columns_that_say_how_a_chain_ran_survive_the_disk(tmp_path):
    chain = {"start": "best", "rule": "dpm_solver", "calls": 10, "t_prime": 30, "t_stop": 0}
    frame = pd.concat([rows(method="pd_ddpm", **chain), rows(method="unet")], ignore_index=True)
    back = write_table(tmp_path / "a.csv", frame, STAMP)
    pd.testing.assert_frame_equal(back, frame)
    assert back.start.tolist() == ["best"] * 2 + [""] * 2 and back.calls.tolist()[:2] == [10, 10]
    assert back.calls.isna().tolist() == [False, False, True, True]
    assert "pd_ddpm,best,dpm_solver,10,0," in (tmp_path / "a.csv").read_text()


def test_a_table_survives_the_disk_and_its_order(tmp_path):
    """An empty field beside whole numbers, a large seed, a NaN score, and a method that is called NA."""
    frame = pd.concat([rows(t_prime=300, ensemble_size=5), rows(method="NA", dice=0.123456789)], ignore_index=True)
    write_table(tmp_path / "a.csv", frame, STAMP)
    write_table(tmp_path / "b.csv", frame.sample(frac=1, random_state=0), STAMP)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    back = read_table(tmp_path / "a.csv")
    order = ["method", "metric"]
    pd.testing.assert_frame_equal(
        back.sort_values(order, ignore_index=True),
        frame.sort_values(order, ignore_index=True),
        rtol=1e-5,
    )
    assert back.seed.eq(20221017).all()
    write_table(tmp_path / "c.csv", back, STAMP)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{name}{end}" for name in "abc" for end in (".csv", ".stamp.json")
    )


def test_what_goes_on_in_memory_is_what_was_kept_in_the_order_given(tmp_path):
    given = pd.concat([rows(subject="Utrecht/9", dice=0.123456789), rows(subject="Utrecht/7", dice=0.1234567)])
    kept = write_table(tmp_path / "a.csv", given, STAMP)
    assert kept.index.tolist() == [0, 1, 2, 3] and kept.subject.tolist() == given.subject.tolist()
    assert kept[kept.metric == "dice"].value.tolist() == [0.123457, 0.123457]


# Score rows on disk: a line for each subject by a row, a column for each metric.
def test_a_score_that_is_undefined_is_no_score_that_there_is_not(tmp_path):
    about = {"fold": 0, "seed": 1, "subject": "Utrecht/7", "site": "Utrecht", "split": "test"}
    one = score_rows({"hd95_mm": np.nan, "dice": 1 / 3}, method="pd_ddpm", **about)
    other = score_rows({"dice": np.nan, "uncertainty": 1.5e-7}, method="unet", **about)
    back = write_table(tmp_path / "a.csv", pd.concat([one, other], ignore_index=True), STAMP)
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "method,start,rule,calls,fold,seed,subject,site,split,t_prime,t_stop,ensemble_size,nfe,seconds,"
        "dice,hd95_mm,uncertainty",
        "pd_ddpm,,,,0,1,Utrecht/7,Utrecht,test,,,,,,0.333333,nan,",
        "unet,,,,0,1,Utrecht/7,Utrecht,test,,,,,,nan,,1.5e-07",
    ]
    assert list(zip(back.method, back.metric, back.unit, strict=True)) == [
        *(("pd_ddpm", "hd95_mm", "mm"), ("pd_ddpm", "dice", "1")),
        *(("unet", "dice", "1"), ("unet", "uncertainty", "1")),
    ]
    np.testing.assert_array_equal(back.value, [np.nan, 0.333333, np.nan, 1.5e-7])
    long = "\n".join(["metric,value,unit", "dice,,1"])
    (tmp_path / "t.csv").write_text(long)
    assert read_table(tmp_path / "t.csv").value.isna().all(), "a table that has these columns of its own stays one"


def drawn(count=300):
    """Score rows of many kinds, some twice, each with metrics of its own, some of them undefined, in no order."""
    rng, parts = np.random.default_rng(0), []
    for _ in range(count):
        metrics = rng.choice(list(records.UNITS), rng.integers(1, 6), replace=False)
        values = rng.standard_normal(len(metrics)) * 10.0 ** rng.integers(-9, 9)
        scores = {metric: float(f"{value:.6g}") for metric, value in zip(metrics, values, strict=True)}
        scores |= {metrics[0]: np.nan} if rng.random() < 0.3 else {}
        about = {"fold": 0, "seed": 1, "site": "", "split": "test", "seconds": rng.integers(3) + 0.5}
        about |= {"subject": f"s/{rng.integers(9)}", "t_prime": None if rng.random() < 0.5 else int(rng.integers(9))}
        parts.append(score_rows(scores, method="pd_ddpm", **about))
    return pd.concat(parts, ignore_index=True)


def test_no_digit_no_type_and_no_row_is_lost(tmp_path):
    given = drawn()
    kept = write_table(tmp_path / "a.csv", given, STAMP)
    pd.testing.assert_frame_equal(kept, given, check_exact=True)
    again = read_table(tmp_path / "a.csv")
    assert again.sort_values(["subject", "t_prime"], kind="stable").index.equals(again.index)
    write_table(tmp_path / "b.csv", again, STAMP)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_large_table_goes_on_in_further_files(tmp_path, monkeypatch):
    given = drawn()
    whole = write_table(tmp_path / "whole.csv", given, STAMP)
    monkeypatch.setattr(records, "LARGEST", 6000)
    pd.testing.assert_frame_equal(write_table(tmp_path / "cut.csv", given, STAMP), whole, check_exact=True)
    files = sorted(tmp_path.glob("cut*.csv"), key=lambda file: (len(file.name), file.name))
    assert [file.name for file in files] == ["cut.csv", *(f"cut.{number}.csv" for number in range(2, len(files) + 1))]
    texts = [file.read_text() for file in files]
    assert len(files) > 3 and max(map(len, texts)) <= 6000 and len({text.splitlines()[0] for text in texts}) == 1
    assert read_stamp(tmp_path / "cut.csv")["git"] == STAMP["git"]
    files[-1].rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"cut\.csv: the table was changed"):
        read_stamp(tmp_path / "cut.csv")
    (tmp_path / "gone").rename(files[-1])
    write_table(tmp_path / "cut.csv", given.iloc[:9], STAMP)
    assert sorted(file.name for file in tmp_path.glob("cut*")) == ["cut.csv", "cut.stamp.json"], (
        "nothing of before stays"
    )


def test_a_table_of_another_kind_keeps_its_order(tmp_path):
    write_table(tmp_path / "t.csv", pd.DataFrame({"row": ["b", "a"], "nfe": [1.5, np.nan]}), STAMP)
    assert (tmp_path / "t.csv").read_text() == "nfe,row\n1.5,b\n,a\n"


@pytest.mark.fault("interrupted write or computation")
def test_an_interrupted_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    write_table(path, rows(), STAMP)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, rows(dice=0.1), STAMP)
    assert path.read_bytes() == before


def test_a_number_typed_into_a_table_is_noticed(tmp_path):
    path = tmp_path / "scores.csv"
    write_table(path, rows(dice=0.75), STAMP)
    assert read_stamp(path)["git"] == STAMP["git"]
    path.write_text(path.read_text().replace("0.75", "0.85"))
    with pytest.raises(ValueError, match=r"scores\.csv: the table was changed"):
        read_stamp(path)


def test_stamp_knows_the_commit(tmp_path):
    def git(*command):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *settings, *command], capture_output=True, text=True, check=True)

    about = {"device": "cpu", "seed": 3, "data_fingerprint": "f", "phantom": True, "profile": "smoke"}

    def here():
        return stamp(root=tmp_path, **about)

    assert here()["git"]["sha"] is None and here()["git"]["reason"]
    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "one")
    (tmp_path / "scores.csv").write_text("a run's own output is no change of the sources\n")
    assert here()["git"] == {"sha": git("rev-parse", "HEAD").stdout.strip(), "dirty": False}
    (tmp_path / "code.py").write_text("a = 2\n")
    assert here()["git"]["dirty"] is True
    assert here()["packages"]["numpy"] == np.__version__
    assert about.items() <= here().items() and here()["changes"] == {}
    assert stamp(root=tmp_path, **about, changes={"chain": {"eta": 0}})["changes"] == {"chain": {"eta": 0}}
    processor = stamp(root=tmp_path, **about)["processor"]
    assert processor["architecture"] == platform.machine()
    capability = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512f"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    assert {*capability} <= {*processor["vectors"]} and (sys.platform != "linux" or processor["name"])


def test_fingerprint_follows_names_and_bytes_only(tmp_path):
    def files(folder, **contents):
        for name, text in contents.items():
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "FLAIR.nii.gz").write_text(text)
        return [tmp_path / folder / name / "FLAIR.nii.gz" for name in contents]

    one = data_fingerprint(files("a", x="1", y="2"))
    assert one == data_fingerprint(reversed(files("b", x="1", y="2")))
    assert len({one, data_fingerprint(files("c", x="1", y="3")), data_fingerprint(files("d", x="2", y="1"))}) == 3
    with pytest.raises(ValueError, match=r"absent\.nii"):
        data_fingerprint([tmp_path / "absent.nii"])
    with pytest.raises(ValueError, match="no files"):
        data_fingerprint([])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda path: write_table(path, rows().assign(nfe=1.5), STAMP), "whole number"),
        (lambda path: read_table(path), "scores.csv: not a readable table"),
        (lambda path: read_stamp(path), "scores.csv: no readable stamp"),
    ],
)
def test_bad_input_is_named(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "scores.csv")
