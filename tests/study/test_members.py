"""Members of chains and draws of networks: nothing computed twice or left stale, whoever asks for how many."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import rewritten

from pdlib.inference.precision import Compute
from pdlib.inference.volumes import draw_member, sample_members
from pdlib.study.cache import file_name
from pdlib.study.members import TrainedChain, chain_members, drawn_once, draws, sampled, silent, starts


def of(trained, chain=None, refine=None):
    run = trained.run
    return TrainedChain(chain or trained.chain(), run.weights("denoiser_0"), refine and run.weights(refine))


def slices(run, subject):
    return int(run.volume(subject).brain.any(axis=(1, 2)).sum())


def recipes(place):
    return {path: str(np.load(path)["recipe"]) for path in sorted(place.runs.rglob("*.npz"))}


def forget_samples(place):
    for path in place.samples().rglob("*.npz"):
        path.unlink()


def test_nothing_is_computed_twice_until_something_changes(trained, calls):
    subject = trained.run.subjects("test")[0]
    each = slices(trained.run, subject)

    def members(chain=None, source="attention_unet_0", seed=0):
        profile = trained.profile.model_copy(update={"seed": seed})
        one = replace(trained, profile=profile)
        return chain_members(one.run, of(one, chain), source and one.run.weights(source), subject, 2).values

    first = members()
    assert calls.since() == each * (1 + 2 * 4)
    np.testing.assert_array_equal(members(), first)
    assert calls.since() == 0
    assert np.abs(members(seed=1) - first).max() > 1e-3
    assert calls.since() == each * 2 * 4
    assert not np.array_equal(members(chain=trained.chain(rule="ddim")), first)
    members(source=None)
    assert calls.since() == 2 * each * 2 * 4
    members()
    calls.since()
    rewritten(trained.place.weights("denoiser_0") / "best.safetensors", shift=0.1)
    assert not np.array_equal(members(), first)
    assert calls.since() == each * 2 * 4
    rewritten(trained.preseg, shift=0.1)
    members()
    assert calls.since() == each * (1 + 2 * 4)


def test_chains_and_last_networks_do_not_evict_each_other(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]
    stopped = trained.chain(calls=1, t_prime=3, finish="one_step", t_stop=2)
    kinds = [of(trained, trained.chain(rule="ddim", eta=eta)) for eta in (0.0, 1.0)]
    kinds += [of(trained, stopped, f"one_step_0200{name}") for name in ("", "_mask")]
    kinds += [of(trained, trained.chain(calls=count)) for count in (2, 3)]
    kinds += [of(trained, trained.chain(convention="official")), of(trained, trained.chain(t_prime=3))]

    def members():
        source = run.weights("attention_unet_0")
        return [chain_members(run, kind, source, subject, 1).values for kind in kinds]

    first = members()
    calls.since()
    for one, again in zip(first, members(), strict=True):
        np.testing.assert_array_equal(one, again)
    assert calls.since() == 0
    assert len({one.tobytes() for one in first}) == len(kinds)


def test_a_recipe_names_all_that_a_prediction_depends_on(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]
    refine = run.weights("one_step_0200")
    chain = trained.chain(calls=1, t_prime=3, finish="one_step", t_stop=2)
    source = run.weights("bayesian_unet_0")
    trained_chain = of(trained, chain, "one_step_0200")
    chain_members(run, trained_chain, source, subject, 1)
    drawn, sample = recipes(trained.place).values()
    for recipe in (drawn, sample):
        for part in (subject, run.data["fingerprint"], source.digest, "32-true", '"threshold": 0.5', '"multiple": 4'):
            assert part in recipe
    assert refine.digest in sample and trained_chain.denoiser.digest in sample and '"t_stop": 2' in sample
    assert [path.name for path in recipes(trained.place)] == [file_name(subject)] * 2


def test_other_data_under_the_same_names_are_predicted_anew(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]
    draws(run, run.weights("attention_unet_0"), subject, 1)
    text = trained.place.cases.read_text(encoding="utf-8")
    trained.place.cases.write_text(text.replace(run.data["fingerprint"], "other"), encoding="utf-8")
    calls.since()
    draws(trained.run, run.weights("attention_unet_0"), subject, 1)
    assert calls.since() == slices(run, subject)


def test_a_larger_ensemble_samples_only_what_is_missing(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]

    def members(count):
        return chain_members(run, of(trained), run.weights("attention_unet_0"), subject, count)

    two = members(2)
    calls.since()
    five = members(5)
    assert calls.since() == 3 * 4 * slices(run, subject)
    assert len(members(3).values) == 3 and calls.since() == 0
    np.testing.assert_array_equal(five.values[:2], two.values)
    assert (five.calls, two.calls) == (20, 8)
    forget_samples(trained.place)
    np.testing.assert_array_equal(members(5).values, five.values)


@pytest.mark.parametrize("name", ["attention_unet_0", "bayesian_unet_0", "probabilistic_unet_0", "tdpm_0300"])
def test_draws_are_the_networks_own_whatever_the_batch_and_the_order(trained, calls, name):
    """A deterministic network has one draw and needs no seed; others as many as are asked for, the first ones first."""
    run, subjects, weights = trained.run, trained.run.subjects("test"), trained.run.weights(name)
    network = run.network(weights, "segmenter", "generator")
    size = 3 if network.stochastic else 1
    kept = {subject: draws(run, weights, subject, 3) for subject in subjects[::-1]}
    assert calls.since() == size * sum(slices(run, subject) for subject in subjects)
    compute = Compute(run.compute.device, "32-true", 3)
    for subject, drawn in kept.items():
        assert len(drawn.values) == drawn.calls == size
        for member in range(size):
            direct = draw_member(network, run.subject(subject), member, compute, silent).values
            np.testing.assert_allclose(drawn.values[member], direct, atol=2e-3)
        np.testing.assert_array_equal(draws(run, weights, subject, 1).values, drawn.values[:1])
        np.testing.assert_array_equal(drawn_once(run, network, subject).astype(np.float16), drawn.values[0])


def test_members_are_those_of_the_sampler_whatever_the_batch(trained):
    run, subject = trained.run, trained.run.subjects("test")[1]
    kind, source = of(trained, trained.chain(calls=3)), run.weights("probabilistic_unet_0")
    begun = starts(run, source, subject, 3).values
    drawn = chain_members(run, kind, source, subject, 3)
    compute = Compute(run.compute.device, "32-true", 5)
    direct = sample_members(kind.sampler(run), run.subject(subject), begun, range(3), compute, silent)
    np.testing.assert_allclose(drawn.values, direct.values, atol=2e-3)
    assert drawn.calls == 3 * direct.calls == 9
    first = sampled(run, kind.sampler(run), subject, begun[0])
    np.testing.assert_array_equal(first.astype(np.float16), drawn.values[0])


@pytest.mark.fault("interrupted write or computation")
def test_killed_sampling_goes_on_where_it_was(trained, calls):
    run, kind, subjects = trained.run, of(trained), trained.run.subjects("test")

    def members(on_batch=silent):
        source = run.weights("attention_unet_0")
        return [chain_members(run, kind, source, subject, 2, on_batch).values for subject in subjects]

    def killed(images):
        if calls.images > slices(run, subjects[0]) * 9 + 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        members(killed)
    calls.since()
    resumed = members()
    assert calls.since() == sum(8 * slices(run, subject) for subject in subjects[1:]) + sum(
        slices(run, subject) for subject in subjects[2:]
    ), "the first subject is done, and so is the second one's pre-segmentation"
    forget_samples(trained.place)
    for one, again in zip(resumed, members(), strict=True):
        np.testing.assert_array_equal(one, again)
    assert not list(trained.place.runs.rglob(".*"))


def test_what_a_chain_starts_from(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]
    brain = run.volume(subject).brain

    def begun(training, count=3):
        return starts(run, run.weights(training), subject, count)

    empty = starts(run, None, subject, 3)
    assert empty.values.shape == (1, *brain.shape) and not empty.values.any() and empty.calls == calls.since() == 0
    hard = begun("attention_unet_0")
    assert hard.values.shape == (1, *brain.shape) and set(np.unique(hard.values)) <= {0, 1} and hard.calls == 1
    masks, states = begun("probabilistic_unet_0"), begun("tdpm_0300")
    assert set(np.unique(masks.values)) <= {0, 1} and len(masks.values) == len(states.values) == 3
    assert masks.calls == states.calls == 3
    differ = (states.values[0] != states.values[1])[brain]
    assert states.values.min() < 0 and differ.mean() > 0.9, "states are no masks; draws differ"
    np.testing.assert_array_equal(begun("tdpm_0300", 2).values, states.values[:2])


def test_networks_of_another_chain_are_refused(trained):
    stopped = trained.chain(calls=1, t_prime=2, finish="one_step", t_stop=1)
    with pytest.raises(ValueError, match=r"one_step_0200/best.* trained for t_stop 2, and the chain stops at 1"):
        of(trained, stopped, "one_step_0200")
    rewritten(trained.place.weights("denoiser_0") / "best.safetensors", t_max=3)
    with pytest.raises(ValueError, match=r"denoiser_0/best.* trained on 3 steps, and T' is 4"):
        of(trained)
    of(trained, trained.chain(t_prime=3))
