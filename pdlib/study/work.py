"""The work of a run, counted from its profile: updates, network calls on slices and scored masks of every job."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdlib.diffusion.sampler import Chain
from pdlib.graph import graph
from pdlib.inference.chains import chain_of
from pdlib.methods import CHAIN, METHODS, PRESEGMENTER
from pdlib.paths import Layout
from pdlib.profiles import Profile
from pdlib.sections.trainings import DenoiserTraining, Fit
from pdlib.study.fewer import chain_changes
from pdlib.study.levels import READ_INDICES, WATCHED_INDICES
from pdlib.study.preparation import sites

TOUR_MEMBERS = 5  # of the notebook's parameter
Unit = tuple[str, str]  # an "update" or a "call" of a training's network by its name; or a "case", a "score", a "start"


@dataclass
class Count:
    """The work of a profile's jobs, counted in the order in which they run: samples that one has kept cost no other.

    Args:
        profile: every setting.
        subjects: how many there are in all, further ones among them.
        slices: of a subject's brain.
    """

    profile: Profile
    subjects: int
    slices: int
    kept: dict[tuple, int] = field(default_factory=dict)  # members that earlier jobs have sampled, by split and chain

    def jobs(self, names: Sequence[str]) -> dict[str, Counter[Unit]]:
        """The work of jobs of the graph, each of which runs once."""
        points_first = sorted(names, key=lambda job: "." not in job or job.startswith("08"))  # others go on from them
        found = {job: self.job(job) for job in points_first}
        return {job: found[job] for job in names}

    def job(self, name: str) -> Counter[Unit]:
        """The work of one job; call it once for each, in the graph's order."""
        notebook, _, what = name.partition(".")
        count = {
            "00_tour": self._tour,
            "01_prepare_data": self._data,
            "02_train_segmenters": self._segmenter,
            "03_train_ddpm": self._denoisers,
            "04_compare_methods": self._comparison,
            "05_sweep_t_prime": self._sweep,
            "06_ensemble_size": self._members,
            "07_preseg_accuracy": self._preseg,
            "08_truncate_both_ends": self._truncation,
            "10_fewer_calls": self._fewer_calls,
            "12_wolleb2021": self._wolleb2021,
            "14_distillation": self._distillation,
            "15_latent": self._latent,
            "16_start_matched": self._start_matched,
            "17_tdpm_generator": self._tdpm,
            "18_noise_level": self._noise_level,
        }.get(notebook)
        work = Counter({("start", ""): 1})
        return work + count(what) if count else work

    def split(self, *splits: str) -> int:
        """Subjects of "validation", "test" (those that every row is tested on) and "rest" (the key rows alone)."""
        repeats = self.profile.repeats
        further = repeats.further_per_site * sites()
        few = further if repeats.others_per_site is None else repeats.others_per_site * sites()
        fold = round((self.subjects - further) / self.profile.data.folds)
        sizes = {"validation": fold, "test": few or fold, "rest": further - few}
        return sum(sizes[split] for split in splits)

    def tested(self, name: str) -> tuple[str, ...]:
        """The splits that Table 1 tests a row on."""
        return ("test", "rest") if name in self.profile.repeats.key_methods else ("test",)

    def _tour(self, what: str) -> Counter[Unit]:
        """One test subject at every T' of the sweep, which has kept some of the members."""
        sweep = self.profile.sweep
        fresh = max(0, TOUR_MEMBERS - sweep.ensemble_size)
        calls = sum(len(self._chain(CHAIN, t_prime=t_prime).indices) for t_prime in sweep.t_primes)
        results = len(sweep.t_primes) + 2
        return Counter({("call", "denoiser"): fresh * calls * self.slices, ("score", ""): results})

    def _data(self, what: str) -> Counter[Unit]:
        return Counter({("case", ""): self.subjects})

    def _segmenter(self, what: str) -> Counter[Unit]:
        name, fit = what.rpartition("_")[0], self.profile.segmenters.fit
        calls = self.slices * (
            validations(fit) * self.split("validation") + self.split("validation", *self.tested(name))
        )
        scores = (validations(fit) + 1) * self.split("validation")
        return Counter({("update", name): fit.steps, ("call", name): calls, ("score", ""): scores})

    def _denoisers(self, what: str) -> Counter[Unit]:
        return self._noisy("denoiser", self.profile.denoiser, 1)

    def _tdpm(self, what: str) -> Counter[Unit]:
        profile, work = self.profile, Counter()
        watched = min(profile.denoiser.validation_subjects, self.split("validation"))
        for t_prime in profile.tdpm.t_primes:
            times = validations(profile.tdpm.fit) * watched
            calls = len(self._chain("tdpm", t_prime=t_prime).indices)
            work[("update", "tdpm")] += profile.tdpm.fit.steps
            work[("call", "tdpm")] += times * self.slices
            work[("call", "denoiser")] += times * calls * self.slices
            work[("score", "")] += times
        return work

    def _wolleb2021(self, what: str) -> Counter[Unit]:
        return self._noisy("wolleb2021", self.profile.wolleb2021, 4)  # the last weights by three rules

    def _noisy(self, name: str, settings: DenoiserTraining, last: int) -> Counter[Unit]:
        """A denoiser's training, watched by chains from pure noise; last: how often its last weights are sampled."""
        row = "wolleb2021" if name == "wolleb2021" else "ddpm"
        times = (validations(settings.fit) + last - 1) * min(settings.validation_subjects, self.split("validation"))
        calls = times * len(self._chain(row).indices) * self.slices
        return Counter({("update", name): settings.fit.steps, ("call", name): calls, ("score", ""): times})

    def _comparison(self, what: str) -> Counter[Unit]:
        compared, work = self.profile.comparison, Counter()
        for name in compared.methods:
            for candidate in compared.t_prime_candidates if METHODS[name].own_t_prime else ():
                work += self._row(name, ("validation",), 1, t_prime=candidate)
            own = {"calls": compared.calls[name]} if name in compared.calls else {}
            work += self._row(name, self.tested(name), **own)
        return work

    def _sweep(self, what: str) -> Counter[Unit]:
        sweep, work, steps = self.profile.sweep, Counter(), self.profile.denoiser.diffusion.schedule.steps
        for t_prime in [int(what)] if what else sweep.t_primes:
            chain = self._chain(CHAIN, t_prime=t_prime)
            name = "ddpm" if chain.t_prime == steps else CHAIN
            work += self._row(name, ("validation", "test"), sweep.ensemble_size, t_prime=t_prime)
        return work

    def _members(self, what: str) -> Counter[Unit]:
        members = self.profile.members
        work = self._row(CHAIN, ("validation", "test"), members.pool)
        for name in members.agreement_methods:
            work += self._row(name, ("test",))
        work[("score", "")] += self.split("validation", "test") * len(members.sizes) * members.draws
        printed, every = self._chain(CHAIN), self._chain(CHAIN, stride=1, calls=None)
        calls = len(self.profile.comparison.deep_ensemble_seeds) * len(printed.indices)  # of the causes of their spread
        calls += members.spread_size * sum(len(one.indices) for one in (printed, every, self._chain("ddpm")))
        subjects = min(members.spread_subjects, self.split("validation"))
        work[("call", "denoiser")] += subjects * calls * self.slices
        return work

    def _preseg(self, what: str) -> Counter[Unit]:
        work, gaps = Counter(), self.profile.preseg_accuracy.dice_gaps
        for start in ("empty", *gaps[:-1], ""):  # "": the best
            work += self._row(CHAIN, ("test",), start=str(start))
        return work

    def _truncation(self, what: str) -> Counter[Unit]:
        profile, work = self.profile, Counter()
        truncation, refine = profile.truncation, profile.refine
        watched = min(refine.validation_subjects, self.split("validation"))
        networks = len(truncation.t_stops)
        networks += "addpm_mask_only" in {*profile.comparison.methods, *truncation.methods}
        chain = self._chain("addpm", stride=truncation.stride)
        times = networks * validations(refine.fit) * watched
        work[("update", "refine")] = networks * refine.fit.steps
        work[("call", "refine")] = times * self.slices
        work[("call", "denoiser")] = times * len(chain.indices) * self.slices
        work[("score", "")] = times
        pairs = [(start, stop) for start in truncation.t_primes for stop in truncation.t_stops if stop < start]
        for start, stop in pairs:
            work += self._row("addpm", ("validation",), 1, t_prime=start, t_stop=stop, stride=truncation.stride)
        test = (("test",), truncation.ensemble_size)
        for name in truncation.methods:
            work += self._row(name, *test, stride=truncation.stride)
        work += self._row("addpm", *test, t_prime=pairs[-1][0], t_stop=pairs[-1][1], stride=truncation.stride)
        return work + (self._photographs() if profile.fundus else Counter())

    def _photographs(self) -> Counter[Unit]:
        fundus, stride = self.profile.fundus, self.profile.truncation.stride
        lengths = {name: len(self._chain(name, stride=stride).indices) for name in ("ddpm", CHAIN, "addpm")}
        times, size = validations(fundus.fit) * fundus.held_out, self.profile.truncation.ensemble_size
        work = Counter({("update", f"fundus_{name}"): fundus.fit.steps for name in ("segmenter", "denoiser", "refine")})
        work[("call", "fundus_segmenter")] = 2 * times + 3 * fundus.held_out
        work[("call", "fundus_refine")] = times + size * fundus.held_out
        tested = size * fundus.held_out * sum(lengths.values())
        work[("call", "fundus_denoiser")] = times * (lengths["ddpm"] + lengths["addpm"]) + tested
        return work

    def _fewer_calls(self, what: str) -> Counter[Unit]:
        few, work = self.profile.fewer_calls, Counter()
        for name in [what] if what else few.starts:
            how = ("test",), few.ensemble_size
            for changes in chain_changes(self.profile, name):
                work += self._row(name, *how, **changes)
        return work

    def _distillation(self, what: str) -> Counter[Unit]:
        settings, work = self.profile.distillation, Counter()
        train = self.split("validation") * (self.profile.data.folds - 2)
        work[("call", self.profile.comparison.presegmenter)] = train * self.slices
        times = validations(settings.fit) * min(settings.validation_subjects, self.split("validation"))
        for calls in settings.students:
            work[("update", "student")] += settings.fit.steps
            work[("call", "student")] += times * calls * self.slices
            work[("score", "")] += times
        step = {"rule": "ddim", "eta": 0.0, "spacing": "trailing"}
        for calls in (settings.calls, *settings.students):
            work += self._row(CHAIN, ("validation",), settings.ensemble_size, calls=calls, **step)
        for calls in settings.students:
            work += self._row("distilled", ("validation",), settings.ensemble_size, calls=calls)
        return work

    def _noise_level(self, what: str) -> Counter[Unit]:
        settings, few = self.profile.noise_level, self.split("validation")
        t_prime, most = self._chain("noise_level").t_prime, max(settings.calls)
        watched, read = (min(count, t_prime) for count in (WATCHED_INDICES, READ_INDICES))
        chains = (sum(settings.calls) + most) * few  # as planned, and from too clean a start
        read = (validations(settings.fit) * watched + 2 * read) * few  # references; these and pre-segmentations
        work = Counter({("update", "noise_level"): settings.fit.steps})
        work[("call", "noise_level")] = (read + chains + most) * self.slices  # and for the indices visited
        work[("call", "denoiser")] = (3 * chains + 2 * most) * self.slices  # by network, closed form and plan
        work[("score", "")] = 3 * few * (len(settings.calls) + 1)
        return work

    def _latent(self, what: str) -> Counter[Unit]:
        settings, few = self.profile.latent, self.split("validation")
        fits = settings.autoencoder.fit, settings.fit
        looked_at = validations(fits[0]) + 2  # and for the ceiling, of references and pre-segmentations
        times = validations(fits[1]) * min(settings.validation_subjects, few)
        work = Counter({("update", "autoencoder"): fits[0].steps, ("update", "latent"): fits[1].steps})
        work[("call", "autoencoder")] = (looked_at * few + times) * self.slices
        work[("call", "latent")] = times * len(self._chain("ddpm").indices) * self.slices
        work[("score", "")] = looked_at * few + times
        for calls in settings.calls:
            for name in (CHAIN, "latent"):
                work += self._row(name, ("validation",), settings.ensemble_size, calls=calls)
        return work

    def _start_matched(self, what: str) -> Counter[Unit]:
        """The repeat's denoiser; in the first repeat the halves of the pre-segmenter and the controls as well."""
        settings, presegmenter = self.profile.start_matched, self.profile.comparison.presegmenter
        watched, size, few = self.split("validation"), settings.ensemble_size, max(settings.calls)
        train = watched * (self.profile.data.folds - 2)
        times = watched * validations(settings.fit)
        work = Counter({("update", "start_matched"): settings.fit.steps, ("score", ""): times + 2 * train})
        work[("call", "start_matched")] = times * len(self._chain("start_matched").indices) * self.slices
        work[("call", presegmenter)] = 2 * train * self.slices
        first = int(what) == self.profile.repeats.seeds[0]
        if first:
            halves, refined = 2 * validations(settings.halves), validations(settings.refiner.fit)
            work[("update", presegmenter)] += 2 * settings.halves.steps
            work[("call", presegmenter)] += halves * watched * self.slices
            work[("update", "unmatched")] += settings.fit.steps
            work[("call", "unmatched")] += times * len(self._chain("unmatched").indices) * self.slices
            work[("update", "refiner")] += settings.refiner.fit.steps
            work[("call", "refiner")] += refined * watched * self.slices
            work[("score", "")] += (halves + refined) * watched + times
        own, every = "" if first else what, {"stride": 1, "calls": None}
        for changes in (*({"calls": calls} for calls in settings.calls), every):
            work += self._row("start_matched", ("validation",), size, start=own, **changes)
        for changes in ({"calls": few}, every | {"rule": "ddpm"}):
            work += self._row(CHAIN, ("validation",), size, start=own, **changes)
        for name in ("start_matched", CHAIN):
            work += self._row(name, ("validation",), size, start=f"empty{own}", calls=few)
        work += self._row("unmatched", ("validation",), size, start=own, calls=few)
        for start in (own, f"empty{own}"):
            work += self._row("refiner", ("validation",), start=start)
        return work

    def _chain(self, name: str, **changes) -> Chain:
        network = self.profile.wolleb2021 if METHODS[name].denoiser == "wolleb2021" else self.profile.denoiser
        return chain_of(METHODS[name], self.profile.chain, network.diffusion.schedule.steps, **changes)

    def _row(
        self, name: str, splits: Sequence[str], size: int | None = None, start: str = "", **changes
    ) -> Counter[Unit]:
        """A row scored on splits, with what earlier jobs have kept left out.

        size: members, None: the profile's; start: what its chain starts from, where that is not its own source.
        """
        method = METHODS[name]
        many = method.members == "ensemble"
        members = (size or self.profile.ensemble.size) if many else 1
        work = Counter({("score", ""): self.split(*splits)})
        if method.start is None:
            return work + (self._draws(name, splits, members) if many and method.source != PRESEGMENTER else Counter())
        chain = self._chain(name, **changes)
        if method.start != "gaussian" and method.source != PRESEGMENTER:
            work += self._draws(method.source, splits, members)
        fresh = self._fresh(("chain", method.denoiser, method.source, method.mask_only, start, chain), splits, members)
        work[("call", method.denoiser)] += fresh * len(chain.indices) * self.slices
        if chain.t_stop:
            work[("call", method.last)] += fresh * self.slices
        if chain.rule == "noise_level":
            work[("call", "noise_level")] += fresh * len(chain.indices) * self.slices
        if method.denoiser == "latent":
            work[("call", "autoencoder")] += fresh * self.slices  # both halves
        return work

    def _draws(self, network: str, splits: Sequence[str], members: int) -> Counter[Unit]:
        return Counter({("call", network): self._fresh(("draws", network), splits, members) * self.slices})

    def _fresh(self, key: tuple, splits: Sequence[str], members: int) -> int:
        """Members of subjects that no earlier job has kept under this key."""
        fresh = 0
        for split in splits:
            have = self.kept.get((split, *key), 0)
            fresh += max(0, members - have) * self.split(split)
            self.kept[(split, *key)] = max(have, members)
        return fresh


def validations(fit: Fit) -> int:
    return math.ceil(fit.steps / fit.validate_every)


def works(profile: Profile, subjects: int, slices: int) -> dict[str, Counter[Unit]]:
    """The work of every job of a profile's graph."""
    return Count(profile, subjects, slices).jobs([*graph(profile)])


def missing(profile: Profile, place: Layout, targets: Sequence[str]) -> list[str]:
    """Jobs that have not run, of those that the targets (none: all) stand on."""
    return [job for job in stood_on(profile, targets) if not place.done(job).exists()]


def stood_on(profile: Profile, targets: Sequence[str]) -> list[str]:
    """The targets (none: all jobs) and the jobs that they stand on, in the graph's order."""
    jobs = graph(profile)
    asked, wanted = [*targets] or [*jobs], set()
    while asked:
        job = asked.pop()
        if job not in wanted and job in jobs:
            wanted.add(job)
            asked += jobs[job]
    return [job for job in jobs if job in wanted]
