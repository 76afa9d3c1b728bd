"""Profiles: what may stand in them, what is refused, and that what they describe can be built, trained and sampled."""

import inspect
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
import yaml

from pdlib import profiles
from pdlib.diffusion import codec, formulas, schedule
from pdlib.diffusion.rules import RULES as STEPS
from pdlib.diffusion.sampler import CONVENTIONS, Sampler, build_diffusion
from pdlib.evaluation import stats
from pdlib.graph import place_of
from pdlib.inference.chains import chain_of
from pdlib.inference.volumes import combine
from pdlib.kernels import noise
from pdlib.methods import METHODS, RULES
from pdlib.networks.blocks import plain_unet
from pdlib.networks.gan import build_generator
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.segmenters import LOSSES, SEGMENTERS, build_segmenter, segmentation_loss
from pdlib.paths import CONFIGS
from pdlib.profiles import BASE, ProfileError, asked_changes, load_profile, profile_names
from pdlib.sections import design, networks, trainings
from pdlib.sections.base import Presegmenter, Rule
from pdlib.study.fewer import tries_rules
from pdlib.training import objectives
from pdlib.training.bank import Batch
from pdlib.training.fit import Fit

PROFILES = profile_names()
MISSING = object()
PHOTOGRAPHED = [name for name in PROFILES if load_profile(name).fundus]
REFUSED = [  # changes of the smoke profile, and the lines that refuse them
    # Far outside of what can be run.
    ({"seed": 10**22}, "seed: 10+: should be less than or equal to 4294967295"),
    ({"ensemble": {"size": 10**9}}, "ensemble.size: 10+: should be less than or equal to 1000"),
    ({"ensemble": {"threshold": 0.0}}, "ensemble.threshold: 0.0: should be greater than 0"),
    ({"reference": "../x"}, "reference: no profile '../x': choose one of cpu, .*"),
    # No such setting: the choices are told.
    ({"chian": {}}, "chian: no such setting; choose one of seed, fold, reference, fine_tune, .*, voxel_tolerance"),
    ({"chain": {"t_prim": 1}}, "chain.t_prim: no such setting; choose one of paper_steps, t_prime, .*, spacing"),
    ({"chain": {"t_prime.": 1}}, "chain.t_prime.: no such setting; choose one of .*"),
    ({"name": "mine"}, "name: no such setting; choose one of seed, .*"),
    ({"changes": {}}, "changes: no such setting; choose one of seed, .*"),
    ({"fundus": {"sise": 3}}, "fundus.sise: no such setting; choose one of cases, held_out, size, .*"),
    (
        {"wolleb2021": {"diffusion": {"schedule": {"offset": 0.1}}}},
        "wolleb2021.diffusion.schedule.offset: no such setting; choose one of name, steps, first_beta, last_beta",
    ),
    ({1: 2}, "1: .*Keys should be strings"),
    # The wrong type.
    ({"chain": {"t_prime": "300"}}, "chain.t_prime: '300': should be a valid integer"),
    ({"chain": {"t_prime": 300.0}}, "chain.t_prime: 300.0: should be a valid integer"),
    ({"chain": {"t_prime": True}}, "chain.t_prime: True: should be a valid integer"),
    ({"chain": {"t_prime": None}}, "chain.t_prime: None: should be a valid integer"),
    ({"chain": {"t_prime": {"of": 3}}}, "chain.t_prime: should be a valid integer"),
    ({"chain": 3}, "chain: 3: should be a valid dictionary .*"),
    ({"chain": None}, "chain: None: should be a valid dictionary .*"),
    ({"seed": 1.5}, "seed: 1.5: should be a valid integer"),
    ({"denoiser": {"network": {"scale_shift": 0}}}, "denoiser.network.scale_shift: 0: should be a valid boolean"),
    ({"denoiser": {"fit": {"crop": 64}}}, "denoiser.fit.crop: 64: should be a valid tuple"),
    ({"denoiser": {"fit": {"crop": [64]}}}, "denoiser.fit.crop.1: missing"),
    ({"denoiser": {"fit": {"steps": {1, 2}}}}, "changes .* are not plain settings .*"),
    (
        {"denoiser": {"fit": {"learning_rate": "1e-4"}}},
        "denoiser.fit.learning_rate: '1e-4': should be a valid number .write 1.0e-4, with a dot: .*",
    ),
    ({"voxel_tolerance": "0.1"}, "voxel_tolerance: '0.1': should be a valid number"),
    # Out of its range.
    ({"chain": {"t_prime": 0}}, "chain.t_prime: 0: should be greater than or equal to 1"),
    ({"chain": {"eta": 1.5}}, "chain.eta: 1.5: should be less than or equal to 1"),
    ({"denoiser": {"fit": {"learning_rate": float("inf")}}}, "denoiser.fit.learning_rate: inf: should be a finite .*"),
    ({"denoiser": {"fit": {"learning_rate": float("nan")}}}, "denoiser.fit.learning_rate: nan: .*"),
    ({"statistics": {"confidence": 1.0}}, "statistics.confidence: 1.0: should be less than 1"),
    ({"fold": -1}, "fold: -1: should be greater than or equal to 0"),
    ({"data": {"folds": 2}}, "data.folds: 2: should be greater than or equal to 3"),
    ({"members": {"sizes": []}}, "members.sizes: .*at least 1 item.*"),
    ({"comparison": {"methods": []}}, "comparison.methods: .*at least 1 item.*"),
    ({"segmenters": {"unet_plus_plus": {"channels": [8]}}}, "segmenters.unet_plus_plus.channels: .*at least 6 items.*"),
    # None of the choices.
    ({"machine": {"precision": "bf16"}}, "machine.precision: 'bf16': should be 'auto', 'bf16-mixed' or '32-true'"),
    ({"machine": {"device": "gpu"}}, "machine.device: 'gpu': should be 'auto', 'cpu' or 'cuda'"),
    ({"chain": {"rule": "euler"}}, "chain.rule: 'euler': should be 'ddpm', 'ddim', 'dpm_solver', .*"),
    ({"segmenters": {"unet": {"norm": "layer"}}}, "segmenters.unet.norm: 'layer': should be 'batch', .*"),
    ({"comparison": {"methods": ["unet", "vnet"]}}, "comparison.methods.1: 'vnet': should be 'unet', .*"),
    ({"fewer_calls": {"starts": ["pd_ddpm", "unet"]}}, "fewer_calls.starts.1: 'unet': should be 'ddpm', .*"),
    (
        {"denoiser": {"diffusion": {"schedule": {"name": "sigmoid"}}}},
        "denoiser.diffusion.schedule: .*'sigmoid'.*'cosine', 'linear'",
    ),
    # Settings that do not go together.
    ({"fold": 5}, "fold 5: there are folds 0 to 4"),
    ({"chain": {"t_prime": 2000}}, "chain: t_prime 2000 exceeds paper_steps 1000"),
    ({"chain": {"t_stop": 2000}}, "chain: t_stop 2000 exceeds paper_steps 1000"),
    ({"chain": {"t_stop": 200}}, "truncation.t_stops: ADDPM of Table 1 stops at chain.t_stop 200"),
    ({"chain": {"t_prime": 400}}, "tdpm.t_primes: a generator is needed for chain.t_prime and each of .*"),
    ({"comparison": {"t_prime_candidates": [200]}}, "tdpm.t_primes: a generator is needed for .*"),
    ({"sweep": {"t_primes": [50, 2000]}}, "sweep.t_primes: 2000 exceeds chain.paper_steps 1000"),
    ({"truncation": {"t_stops": [250, 2000]}}, "truncation.t_stops: 2000 exceeds chain.paper_steps 1000"),
    ({"denoiser": {"fit": {"patience": 2}}}, "denoiser.fit: patience 2: wants final_learning_rate equal to .*"),
    ({"denoiser": {"t_max": 21}}, "denoiser: t_max 21 exceeds the schedule's 20 steps"),
    ({"denoiser": {"vlb_weight": 0.1}}, "denoiser.vlb_weight: belongs to wolleb2021 alone"),
    ({"wolleb2021": {"vlb_weight": None}}, "wolleb2021.vlb_weight: belongs to wolleb2021 alone"),
    ({"segmenters": {"objective": {"loss": "ce"}}}, "segmenters.objective: .*options of dice_ce.*"),
    ({"members": {"sizes": [1, 4]}}, "members: sizes up to 4: draws from a pool of 6 .*"),
    ({"preseg_accuracy": {"dice_gaps": [0.1]}}, "preseg_accuracy: dice_gaps: .* the last is 0, .*"),
    ({"preseg_accuracy": {"dice_gaps": [0.0, 0.1]}}, "preseg_accuracy: dice_gaps: each is smaller .*"),
    ({"preseg_accuracy": {"dice_gaps": [0.1, 0.1, 0.0]}}, "preseg_accuracy: dice_gaps: each is smaller .*"),
    ({"fewer_calls": {"few_calls": 4}}, "fewer_calls: calls: the ledger reads 4"),
    ({"fewer_calls": {"starts": ["ddpm"]}}, "fewer_calls: starts: the ledger reads pd_ddpm"),
    ({"fewer_calls": {"rules": ["ddim"]}}, "fewer_calls: rules: the ledger reads dpm_solver"),
    ({"repeats": {"seeds": [0, 1, 0]}}, "repeats: seeds .0, 1, 0.: each stands there once"),
    ({"repeats": {"seeds": []}}, "repeats.seeds: .*at least 1 item.*"),
    ({"repeats": {"others_per_site": 3}}, "repeats: others_per_site 3 exceeds further_per_site 0"),
    (
        {"comparison": {"methods": ["pd_ddpm"]}, "repeats": {"key_methods": ["pd_ddpm", "ddpm"]}},
        "repeats.key_methods: ddpm is no row of comparison.methods",
    ),
    ({"data": {"clip_percentiles": [99.5, 0.5]}}, r"data\.clip_percentiles: \[99.5, 0.5\]: the first is below .*"),
    ({"data": {"clip_percentiles": [0.5, 101.0]}}, r"data\.clip_percentiles: \[0.5, 101.0\]: the first is below .*"),
    # No sections at all.
    (["chain"], "changes .*: should be sections: .*"),
    ("chain", "changes 'chain': should be sections: .*"),
]


def given(name):
    """The settings of a file in configs/; an AssertionError for a key that stands there twice."""

    class Loader(yaml.SafeLoader):
        pass

    def section(loader, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{name}: {keys}"
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, section)
    return yaml.load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), Loader)


def departures(settings, base, path=()):
    """Each setting by its path, with its value and the base's, MISSING where that has none."""
    for key, value in settings.items():
        of_base = base.get(key, MISSING) if isinstance(base, dict) else MISSING
        if isinstance(value, dict):
            yield from departures(value, of_base, (*path, key))
        else:
            yield ".".join((*path, key)), value, of_base


@pytest.mark.parametrize("name", PROFILES)
def test_every_setting_of_a_file_is_one_and_stands_in_the_profile(name):
    whole = load_profile(name).model_dump(mode="json")
    for path, value, used in departures(given(name), whole | {"base": given(name).get("base")}):
        assert value == used, path


@pytest.mark.parametrize("name", [name for name in PROFILES if name != BASE])
def test_a_departure_departs_from_what_it_says_it_does(name):
    paper, settings = load_profile(BASE).model_dump(mode="json"), given(name)
    base = load_profile(settings.pop("base", BASE)).model_dump(mode="json")
    base |= {section: paper[section] for section, value in base.items() if value is None}
    repeated = [path for path, value, of_base in departures(settings, base) if value == of_base]
    assert not repeated, "what the profile below it says already"


def test_a_profile_may_depart_from_another_than_the_paper(tmp_path, monkeypatch):
    for name in ("paper", "cpu"):
        (tmp_path / f"{name}.yaml").write_bytes((CONFIGS / f"{name}.yaml").read_bytes())
    monkeypatch.setattr(profiles, "CONFIGS", tmp_path)
    (tmp_path / "mine.yaml").write_text("base: cpu\nchain: {stride: 3}\nfundus: {size: 64}\n")
    mine, cpu, paper = (load_profile(name) for name in ("mine", "cpu", "paper"))
    assert mine.chain == cpu.chain.model_copy(update={"stride": 3}) and mine.segmenters == cpu.segmenters
    assert cpu.fundus is None and mine.fundus == paper.fundus.model_copy(update={"size": 64}), "taken up again"
    (tmp_path / "further.yaml").write_text("base: mine\nchain: {stride: 4}\n")
    assert load_profile("further").fundus == mine.fundus and load_profile("further").chain.stride == 4
    (tmp_path / "mine.yaml").write_text("base: other\n")
    for base in ("mine", "other", "laptop"):
        (tmp_path / "other.yaml").write_text(f"base: {base}\n")
        with pytest.raises(ProfileError, match=r"base: '\w+': should be a profile that departs from"):
            load_profile("other")


def test_further_subjects_are_the_phantom_s_alone():
    load_profile("cpu").repeats.require_phantom("/scans")
    repeats = load_profile("night").repeats
    repeats.require_phantom("")
    with pytest.raises(ProfileError, match="further subjects are drawn from the phantom, and /scans holds other cases"):
        repeats.require_phantom("/scans")


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=[told.partition(": ")[0] for _, told in REFUSED])
def test_a_setting_that_cannot_be_used_is_refused_in_one_line(changes, told):
    with pytest.raises(ProfileError, match=f"^profile smoke: {told}$"):
        load_profile("smoke", changes)


@pytest.mark.fault("bad settings and parameters")
def test_each_fault_has_its_line(record_property):
    record_property("faults", 5)
    faults = {"denoiser": {"fit": {"steps": 0, "batch_size": "8"}}, "chain": {"rule": "euler", "loops": 1}, "sead": 0}
    with pytest.raises(ProfileError) as refused:
        load_profile("smoke", faults)
    lines = str(refused.value).splitlines()
    assert all(line.startswith("profile smoke: ") for line in lines)
    paths = {line.split(": ")[1] for line in lines}
    assert paths == {"denoiser.fit.steps", "denoiser.fit.batch_size", "chain.rule", "chain.loops", "sead"}
    assert len(lines) == len(paths) and not str(refused.value).count("pydantic")


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{chain: {eta: 0.5}, chain: {eta: 0.1}}", r"chain stands there twice \(line 1, column 1\)"),
        ("a: &a [1, 1]\nb: [*a, *a]", r"an alias: write out what it stands for \(line 2, column 5\)"),
        ("&a {chain: *a}", "an alias"),
        ("{seed: " + "[" * 3000 + "]" * 3000 + "}", r"\[\.\.\.: nested too deeply"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("chain: {eta: 0.5}\n---\nseed: 1", "another document"),
        ("0", "has to be sections"),
        ("false", "has to be sections"),
        ("''", "has to be sections"),
        ("{1: 2}", "has to be sections"),
    ],
)
def test_changes_that_would_lose_something_in_silence_are_refused_in_one_line(text, told):
    with pytest.raises(ValueError, match=f"^CHANGES=.*{told}") as caught:
        asked_changes(text)
    assert "\n" not in str(caught.value)


def test_changes_as_they_are_typed():
    assert asked_changes("") == {}
    assert asked_changes("{chain: {eta: 0.5}, seed: 1}") == {"chain": {"eta": 0.5}, "seed": 1}


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize("name", ["laptop", "", "Smoke", "../configs/smoke", "phantom", "smoke.yaml", None])
def test_an_unknown_profile_lists_the_known(name):
    with pytest.raises(ProfileError, match=r"unknown profile .*: choose one of cpu, gpu, .*paper, scan, smoke"):
        load_profile(name)


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(
    ("text", "told"), [("a: [1", "mine.yaml: "), ("- 1", "mine.yaml: holds no sections"), ("\xe4", "mine.yaml: ")]
)
def test_a_file_that_is_no_profile_is_named(tmp_path, monkeypatch, text, told):
    (tmp_path / "paper.yaml").write_bytes((CONFIGS / "paper.yaml").read_bytes())
    (tmp_path / "mine.yaml").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(profiles, "CONFIGS", tmp_path)
    with pytest.raises(ProfileError, match=told) as refused:
        load_profile("mine")
    assert len(str(refused.value).splitlines()) == 1


def test_changes_nest_and_are_kept():
    changes = {"chain": {"eta": 0.5}, "denoiser": {"fit": {"steps": 3}}, "sweep": {"t_primes": [300]}}
    own, changed = load_profile("smoke"), load_profile("smoke", changes)
    assert (own.changes, changed.changes, changed.name) == ({}, changes, "smoke")
    assert changed.chain == own.chain.model_copy(update={"eta": 0.5})
    assert changed.denoiser.fit == own.denoiser.fit.model_copy(update={"steps": 3})
    assert changed.sweep.t_primes == (300,), "a list is replaced"
    assert changed.model_dump(exclude={"chain", "denoiser", "sweep", "changes"}) == own.model_dump(
        exclude={"chain", "denoiser", "sweep", "changes"}
    )
    changes["chain"]["eta"] = 1.0
    assert changed.changes["chain"]["eta"] == 0.5, "what the caller does with its own changes later is its own affair"
    with pytest.raises(ValueError, match="frozen"):
        changed.chain.eta = 1.0


def test_a_schedule_of_another_name_takes_nothing_from_the_one_before():
    linear = {"name": "linear", "steps": 20, "first_beta": 0.01, "last_beta": 0.5}
    found = load_profile("smoke", {"denoiser": {"diffusion": {"schedule": linear}}}).denoiser.diffusion
    assert found.arguments() == {"schedule": linear, "codec": "zero_one", "prediction": "x_start"}
    with pytest.raises(ProfileError, match=r"denoiser\.diffusion\.schedule\.steps: missing"):
        load_profile("smoke", {"denoiser": {"diffusion": {"schedule": {"name": "linear"}}}})


def test_a_place_tells_changed_settings_apart(tmp_path):
    def place(changes, fold=None):
        return place_of(load_profile("smoke", changes), str(tmp_path), fold)

    one, other = {"chain": {"eta": 0.5}}, {"chain": {"eta": 0.25}}
    both, turned = {"seed": 1, **one}, {**one, "seed": 1}
    results = [place(changes).results for changes in ({}, one, other, both)]
    assert len(set(results)) == 4 and results[0] == tmp_path / "results" / "smoke"
    assert place(both) == place(turned), "in whatever order"
    assert place(one, fold=2).fold == 2 and place({"fold": 3}).fold == 3


def test_explain_shows_sections_as_yaml():
    for one in map(load_profile, profile_names()):
        assert max(map(len, one.explain(*type(one).model_fields).splitlines())) < 100, one.name
    profile = load_profile("smoke", {"chain": {"eta": 0.5}})
    told = yaml.safe_load(profile.explain("chain", "ensemble"))
    assert told == profile.model_dump(mode="json", include={"chain", "ensemble"}) and told["chain"]["eta"] == 0.5


# Sections and what they configure.
def keywords(function, *also):
    """The keywords that a function needs, those that it hands on to others among them."""
    found = inspect.signature(function).parameters.values()
    needed = {one.name for one in found if one.kind is one.KEYWORD_ONLY and one.default is one.empty}
    hands_on = any(one.kind is one.VAR_KEYWORD for one in found)
    return needed.union(*(keywords(one) for one in also if hands_on))


def positional(function, *but):
    return set(inspect.signature(function).parameters) - set(but)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_s_section_is_its_builder_s_keywords(name):
    section = trainings.Segmenters.model_fields[name].annotation
    assert set(section.model_fields) == keywords(SEGMENTERS[name], plain_unet)


def test_sections_are_the_keywords_of_what_they_configure():
    for section, expected in (
        (networks.ConditionalGan, keywords(build_generator) - {"background", "lesion", "deviation"}),
        (networks.GuidedUNet, keywords(GuidedUNet.__init__)),
        (trainings.Diffusion, keywords(build_diffusion)),
        (trainings.Fit, {one.name for one in fields(Fit)} - {"seed"}),
        (trainings.CosineSchedule, positional(schedule.cosine_schedule) | {"name"}),
        (trainings.LinearSchedule, positional(schedule.linear_schedule) | {"name"}),
        (trainings.ProbabilisticObjective, positional(objectives.probabilistic_objective) | {"name"}),
        (design.Ensemble, keywords(combine) | {"size"}),
    ):
        assert set(section.model_fields) == expected, section.__name__
    interval = load_profile("smoke").interval
    assert set(interval) == keywords(stats.mean_interval) == keywords(stats.paired_comparison)


def test_choices_are_those_of_the_registries():
    def choices(section, name):
        return set(get_args(section.model_fields[name].annotation))

    assert set(get_args(Presegmenter)) == set(SEGMENTERS) <= set(METHODS)
    assert set(get_args(Rule)) == set(STEPS)
    assert set(trainings.SCHEDULES) == set(schedule.SCHEDULES)
    assert choices(trainings.Diffusion, "codec") == set(codec.CODECS)
    assert choices(trainings.Diffusion, "prediction") == set(formulas.PREDICTIONS)
    assert choices(design.ChainSettings, "convention") == set(CONVENTIONS)
    assert choices(trainings.SegmentationObjective, "loss") == set(LOSSES)
    (rules, _) = get_args(design.FewerCalls.model_fields["rules"].annotation)
    assert set(get_args(rules)) < set(RULES)


# What a profile describes can be built, trained and sampled.
def two_updates(network, objective, fit, side, image_channels=2, classes=1):
    """Two Adam updates, which change the last weights; the random images and masks [2, ., side, side]."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(2, image_channels, side, side, generator=rng)
    mask = (torch.rand(2, classes, side, side, generator=rng) < 0.2) * 1.0
    *_, last = network.parameters()
    before = last.detach().clone()
    how = {"lr": fit.learning_rate, "weight_decay": fit.weight_decay, "betas": fit.betas}
    optimizer = torch.optim.Adam(network.parameters(), **how)
    for _ in range(2):
        loss = sum(objective(network.train(), Batch(image, mask, 0, rng)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert not torch.equal(before, last)
    return image, mask


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("architecture", SEGMENTERS)
def test_segmenters_of_the_profile_train(profile, architecture):
    segmenters = load_profile(profile).segmenters
    model = build_segmenter(architecture, **segmenters.network(architecture).arguments())
    objective = objectives.build_objective(**segmenters.objective_of(architecture).arguments())
    two_updates(model, objective, segmenters.fit, 2 * model.factor)


def test_every_validated_checkpoint_of_a_segmenter_is_kept():
    for profile in PROFILES:
        assert load_profile(profile).segmenters.fit.keep_validated, "Table 2 picks among them"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["denoiser", "wolleb2021"])
def test_denoisers_of_the_profile_train_and_sample(profile, name):
    """Two updates, then at most two calls of every kind of chain, and of the study's chain by every rule."""
    whole = load_profile(profile)
    settings = getattr(whole, name)
    diffusion, model = build_diffusion(**settings.diffusion.arguments()), GuidedUNet(**settings.network.arguments())
    assert whole.data.multiple % model.factor == 0 and all(side % model.factor == 0 for side in settings.fit.crop)
    objective = objectives.diffusion_objective(diffusion, settings.t_max)
    if name == "wolleb2021":
        objective = objectives.hybrid_objective(diffusion, settings.t_max, settings.vlb_weight)
    image, mask = two_updates(model, objective, settings.fit, max(8, model.factor))
    network = build_segmenter("attention_unet", **whole.refine.network.arguments()).eval()
    streams = noise.subject_streams(0, "a", torch.arange(2), torch.zeros(2, dtype=torch.int64))
    steps = settings.diffusion.schedule.steps
    plain = [row for row, method in METHODS.items() if method.start and tries_rules(row)]
    chains = {row: chain_of(METHODS[row], whole.chain, steps) for row in plain}
    kinds = {(chain.start, chain.finish): replace(chain, calls=min(2, chain.calls)) for chain in chains.values()}
    assert {"gaussian", "preseg", "given"} == {start for start, _ in kinds}
    assert {"run_to_zero", "x0_jump", "one_step"} == {finish for _, finish in kinds}
    pd_ddpm = kinds["preseg", "run_to_zero"]
    rules = [rule for rule in RULES.values() if rule.step not in ("start_matched", "noise_level")]
    for chain in (*kinds.values(), *(replace(pd_ddpm, rule=rule.step, eta=rule.eta) for rule in rules)):
        visited = []
        sampler = Sampler(model.eval(), diffusion, chain, lambda x: network(x).sigmoid())
        with torch.no_grad():
            drawn = sampler.sample(image, mask, streams, on_step=lambda t, x_t, x_start, seen=visited: seen.append(t))
        assert tuple(visited) == chain.indices and visited[0] == chain.t_prime - 1
        assert drawn.shape == mask.shape and 0 <= drawn.min() and drawn.max() <= 1


@pytest.mark.parametrize("profile", PROFILES)
def test_generators_and_last_networks_of_the_profile_train(profile):
    whole = load_profile(profile)
    diffusion = build_diffusion(**whole.denoiser.diffusion.arguments())
    game = build_generator(**whole.tdpm.network.arguments(), **objectives.marginal(diffusion, 2))
    objective = objectives.adversarial_objective(diffusion, 3, whole.tdpm.mismatched_steps)
    two_updates(game, objective, whole.tdpm.fit, 32)
    loss = segmentation_loss(**_loss(whole.refine.objective))
    last = build_segmenter("attention_unet", **whole.refine.network.arguments())
    objective = objectives.one_step_objective(diffusion, 3, False, loss)
    two_updates(last, objective, whole.refine.fit, 2 * last.factor)


@pytest.mark.parametrize("profile", PHOTOGRAPHED)
def test_networks_for_photographs_train(profile):
    whole = load_profile(profile)
    fundus, diffusion = whole.fundus, build_diffusion(**whole.denoiser.diffusion.arguments())
    assert 2 * fundus.held_out < fundus.cases, "some are left to train on"
    loss = segmentation_loss(**_loss(fundus.objective))
    segmenter = build_segmenter("attention_unet", **fundus.segmenter.arguments())
    two_updates(segmenter, objectives.segmentation_objective(loss), fundus.fit, 2 * segmenter.factor, 3, 2)
    denoiser = GuidedUNet(**fundus.denoiser.arguments())
    assert fundus.size % denoiser.factor == 0 and all(side % denoiser.factor == 0 for side in fundus.fit.crop)
    objective = objectives.diffusion_objective(diffusion, diffusion.schedule.steps)
    two_updates(denoiser, objective, fundus.fit, max(8, denoiser.factor), 3, 2)
    last = build_segmenter("attention_unet", **fundus.refine.arguments())
    two_updates(last, objectives.one_step_objective(diffusion, 3, False, loss), fundus.fit, 2 * last.factor, 3, 2)


def _loss(objective):
    arguments = objective.arguments("name")
    return {"name": arguments.pop("loss"), **arguments}


def test_the_paper_s_profile_holds_the_printed_constants():
    """arXiv 2210.17408, Section 3; the schedule's s and clip: Nichol & Dhariwal; the EMA: the authors' ADDPM code."""
    paper = load_profile("paper")
    denoiser, wolleb = paper.denoiser, paper.wolleb2021
    cosine = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
    assert denoiser.diffusion.arguments() == {"schedule": cosine, "codec": "zero_one", "prediction": "eps"}
    assert denoiser.t_max == 1000
    linear = {"name": "linear", "steps": 1000, "first_beta": 1e-4, "last_beta": 0.02}  # Ho et al. 2020
    assert wolleb.diffusion.schedule.arguments() == linear
    assert wolleb.network == denoiser.network.model_copy(update={"out_channels": 2})
    assert wolleb.vlb_weight == 0.001 and wolleb.fit == denoiser.fit  # the weight: Nichol & Dhariwal
    for fit in (denoiser.fit, paper.segmenters.fit):
        assert fit.learning_rate == fit.final_learning_rate == 1e-4 and fit.weight_decay == 1e-5
        assert fit.batch_size == 12 and fit.crop == (192, 128)  # rows (Y), columns (X)
    assert denoiser.fit.ema_decay == 0.9999
    assert paper.ensemble.size == 5 and paper.chain.t_prime == 300 and paper.chain.paper_steps == 1000
    assert paper.chain.stride == 1 and paper.chain.calls is None and paper.chain.rule == "ddpm"
    assert paper.comparison.presegmenter == "attention_unet"
    assert paper.sweep.t_primes == (50, 100, 200, 300, 400, 500, 600, 700, 800, 1000)
    with torch.device("meta"):
        model = GuidedUNet(**denoiser.network.arguments())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(113.67e6, rel=1e-4)
    batch = torch.empty(1, 3, 192, 128, device="meta")
    assert model(batch, torch.zeros(1, device="meta")).shape == (1, 1, 192, 128)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent": {"network": {"in_channels": 11}}}, "latent.network.in_channels 11.* come to 12 at factor 2"),
        ({"latent": {"network": {"out_channels": 3}}}, "network.out_channels 3: a code has 4 channels"),
        ({"latent": {"network": {"channel_mult": [1, 1, 1, 1]}}}, r"data.multiple \[8\].* multiples of 16"),
        ({"latent": {"fit": {"crop": [64, 46]}}}, r"latent.fit.crop \[64, 46\].* multiples of 4"),
        ({"latent": {"autoencoder": {"fit": {"crop": [63, 48]}}}}, r"autoencoder.fit.crop \[63, 48\].* multiples of 2"),
        ({"latent": {"autoencoder": {"network": {"factor": 8}}}}, "latent.autoencoder.network.factor: 8: .*1, 2 or 4"),
    ],
)
def test_codes_have_to_fit_the_slices(changes, said):
    with pytest.raises(ProfileError, match=said):
        load_profile("smoke", changes)
