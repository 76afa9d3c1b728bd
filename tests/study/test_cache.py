"""The cache: one file a subject, whatever its name, and nothing that another recipe made."""

import threading
import time

import numpy as np
import pytest

from pdlib.inference.slices import Timed
from pdlib.study import cache
from pdlib.study.cache import file_name, first_members

SUBJECTS = [
    *("Utrecht/7", "Utrecht__7", "Utrecht%2F7", "utrecht/7", "UTRECHT/7", "Utrecht_7", "Utrecht/7 ", "Utrecht//7"),
    *("a" * 300, "a" * 299 + "b", "A" * 300, "/".join("ab" * 99), "é" * 60, "é" * 61),
    *("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", "\u2603\n", "..", ".", "-n", "*?"),
]


class Draw:
    """Draws that tell member and subject, and how many were drawn."""

    def __init__(self, subject="a", seconds=2.0):
        self.number, self.seconds, self.drawn = sum(subject.encode()) % 97, seconds, []

    def values(self, members):
        return np.stack([np.full((2, 2, 2), self.number + member / 8, np.float32) for member in members])

    def __call__(self, members):
        self.drawn += members
        return Timed(self.values(members), 7, self.seconds)


def test_no_two_subjects_share_a_file_on_any_file_system():
    names = [file_name(subject) for subject in SUBJECTS]
    assert len({name.casefold() for name in names}) == len(SUBJECTS) == len(set(SUBJECTS))
    locks = {name.removesuffix(".npz").casefold() for name in names}
    assert len(locks) == len(SUBJECTS), "nor a lock"
    for name in names:
        assert name.isascii() and len(name) <= 120 and not set(name) & set('/\\:*?"<>|\n ')
    assert file_name("Utrecht/7") == file_name("Utrecht/7") and file_name("Utrecht/7").startswith("Utrecht%2F7-")


def test_no_subject_gets_another_s_members(tmp_path):
    for subject in SUBJECTS:
        first_members(tmp_path, {"subject": subject}, 2, Draw(subject))
    for subject in SUBJECTS:
        again = Draw(subject)
        found = first_members(tmp_path, {"subject": subject}, 2, again)
        assert not again.drawn
        np.testing.assert_array_equal(found.values, again.values(range(2)))


def test_another_subject_s_file_in_its_place_is_not_taken(tmp_path, monkeypatch):
    """Were two names ever to meet in a file, the recipe inside would tell them apart."""
    monkeypatch.setattr(cache, "file_name", lambda subject: "one.npz")
    for subject in ("Utrecht/7", "Utrecht__7", "Utrecht/7", "utrecht/7"):
        draw = Draw(subject)
        found = first_members(tmp_path, {"subject": subject}, 1, draw)
        assert draw.drawn == [0]
        np.testing.assert_array_equal(found.values, draw.values(range(1)))


def test_only_what_is_missing_is_drawn_and_the_first_stay_the_first(tmp_path):
    recipe, draw = {"subject": "a", "seed": 1}, Draw()
    two = first_members(tmp_path, recipe, 2, draw)
    five = first_members(tmp_path, recipe, 5, draw)
    three = first_members(tmp_path, dict(reversed(recipe.items())), 3, draw)
    assert draw.drawn == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(five.values, draw.values(range(5)))
    for part in (two, three):
        np.testing.assert_array_equal(part.values, five.values[: len(part.values)])
    assert (two.calls, three.calls, five.calls) == (14, 21, 35)


def test_the_seconds_are_the_mean_member_s(tmp_path):
    assert first_members(tmp_path, {"subject": "a"}, 2, Draw(seconds=2.0)).seconds == 4.0
    found = first_members(tmp_path, {"subject": "a"}, 5, Draw(seconds=4.0))
    assert found.seconds == pytest.approx(2 * 2.0 + 3 * 4.0)
    assert first_members(tmp_path, {"subject": "a"}, 1, Draw()).seconds == pytest.approx(16 / 5)


def test_members_are_returned_as_a_later_run_reads_them(tmp_path):
    third = Timed(np.full((1, 1, 1, 1), 1 / 3, np.float32), 1, 0.0)
    first = first_members(tmp_path, {"subject": "a"}, 1, lambda members: third)
    again = first_members(tmp_path, {"subject": "a"}, 1, lambda members: pytest.fail("drawn again"))
    assert first.values.dtype == again.values.dtype == np.float32
    assert first.values.tobytes() == again.values.tobytes() == np.float32(np.float16(1 / 3)).tobytes()


def test_another_recipe_is_drawn_anew(tmp_path):
    first_members(tmp_path, {"subject": "a", "seed": 1}, 3, Draw())
    draw = Draw()
    assert len(first_members(tmp_path, {"subject": "a", "seed": 2}, 2, draw).values) == 2 and draw.drawn == [0, 1]


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: b"", lambda whole: b"no file of ours"])
def test_a_damaged_file_is_drawn_anew(tmp_path, damage):
    recipe = {"subject": "a"}
    first_members(tmp_path, recipe, 2, Draw())
    path = tmp_path / file_name("a")
    path.write_bytes(damage(path.read_bytes()))
    draw = Draw()
    np.testing.assert_array_equal(first_members(tmp_path, recipe, 2, draw).values, draw.values(range(2)))
    assert draw.drawn == [0, 1]


@pytest.mark.fault("interrupted write or computation")
def test_a_draw_that_is_killed_leaves_what_was_there(tmp_path):
    recipe, draw = {"subject": "a"}, Draw()
    first_members(tmp_path, recipe, 2, draw)

    def killed(members):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_members(tmp_path, recipe, 3, killed)
    assert [path.name for path in tmp_path.glob("*.npz")] == [file_name("a")] and not list(tmp_path.glob(".*"))
    first_members(tmp_path, recipe, 3, draw)
    assert draw.drawn == [0, 1, 2]


def test_two_runs_at_once_draw_once_and_the_second_says_for_whom_it_waits(tmp_path, capsys):
    draw, begun = Draw(), threading.Event()

    def slow(members):
        begun.set()
        time.sleep(0.2)
        return draw(members)

    first = threading.Thread(target=first_members, args=(tmp_path, {"subject": "a"}, 2, slow))
    first.start()
    assert begun.wait(10)
    first_members(tmp_path, {"subject": "a"}, 2, draw)
    first.join()
    assert draw.drawn == [0, 1]
    assert capsys.readouterr().err.startswith("members of a: waiting for members of a (process ")


def test_no_flipped_bit_gets_past(tmp_path):
    """Every byte of a small file: the members are those that were kept, or are drawn anew."""
    recipe, draw = {"subject": "a"}, Draw()
    kept = first_members(tmp_path, recipe, 1, draw).values
    path = tmp_path / file_name("a")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 1 << place % 8, *whole[place + 1 :]]))
        np.testing.assert_array_equal(first_members(tmp_path, recipe, 1, draw).values, kept)
    assert len(draw.drawn) > len(whole) / 2


def test_a_pickle_in_its_place_is_not_opened(tmp_path):
    path, draw = tmp_path / file_name("a"), Draw()
    with path.open("wb") as stream:
        np.savez(stream, values=np.array([print], dtype=object), calls=1, seconds=1.0, recipe='{"subject": "a"}')
    first_members(tmp_path, {"subject": "a"}, 1, draw)
    assert draw.drawn == [0]
