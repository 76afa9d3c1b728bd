"""README's computed parts: a picture, what was found, a few rows of Table 1, and the notebooks with what they cost.

The teacher's page has the notebooks' minutes from here, too.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.paths import RUN_TIMES, Layout
from pdlib.report import tables
from pdlib.report.findings import APART

QUESTIONS = (  # what a stranger asks, and the claims of the ledger that answer: the first so many rows of a number
    ("As good as longer chains?", {"C1": 2, "C8": 1, "C9": 1}),
    ("Better than the mask it starts from?", {"C2": 1, "C2b": 1}),
    ("Can its uncertainty be trusted?", {"C10": 2}),
)
MATCHED, MATCHING, ADVICE = "C11", 4, 5  # our own claim, its sentence in findings.md, and the sentence of advice there
VERDICTS = {"holds": "held", "does not hold": "failed", "undecided": "stayed undecided"}
ROWS = ("attention_unet", "deep_ensemble", "ddpm", "es_ddpm", "pd_ddpm", "addpm")  # of Table 1
TIMED = "lesson"  # the profile whose run times are told
LAST, FURTHER = "11_claims", "vanilla DDPM's own recipe, all folds together, and the accelerators"  # after LAST
LESSONS = {  # notebook: the question that it answers, and the picture that it draws, in figures/
    "00_tour": ("What is the idea, on one case?", "fig1"),
    "01_prepare_data": ("What are the data, and is the phantom like patients?", "phantom_calibration"),
    "02_train_segmenters": ("Where does the start come from?", "training/attention_unet_0"),
    "03_train_ddpm": ("How does a network learn to denoise a mask?", "training/denoiser_0"),
    "04_compare_methods": ("Which row of Table 1 is best, at what cost?", "fig2"),
    "05_sweep_t_prime": ("How far to diffuse?", "fig3"),
    "06_ensemble_size": ("How many members, and what is their spread worth?", "fig4"),
    "07_preseg_accuracy": ("How good must the start be?", "starts"),
    "08_truncate_both_ends": ("Can the chain also stop early (ADDPM)?", "truncation"),
    "09_read_the_kernels": ("What makes a step fast?", "speed_cpu"),
    "10_fewer_calls": ("How few calls are enough?", "fewer_calls"),
    "11_claims": ("Which of the papers' claims hold here?", "claims"),
    "12_wolleb2021": ("Is vanilla DDPM better by its authors' own recipe?", "training/wolleb2021"),
    "13_all_folds": ("What do all folds together say?", ""),
    "14_distillation": ("Can a network learn to take two steps in one?", "training/distillation"),
    "15_latent": ("What does a chain in an auto-encoder's codes lose?", "training/latent_calls"),
    "16_start_matched": ("Does it help to train the chain on its own starts (ours)?", "training/start_matched_0_masks"),
    "17_tdpm_generator": ("Can a GAN draw the state to start from?", "training/tdpm_0300"),
    "18_noise_level": ("Can a network read how much noise is left?", "training/noise_level"),
}


def picture(place: Layout) -> str:
    """Fig. 1, or nothing where the profile has not drawn it."""
    if not (place.figures / "fig1.png").exists():
        return ""
    said = "From noise (DDPM) and from a cheap mask (PD-DDPM) to a segmentation, on one axis of diffusion time; phantom"
    return f"![{said}](figures/{place.profile}/fig1.png)"


def found(place: Layout) -> str:
    """The ledger's answers to a stranger's questions, each verdict with its difference and interval, and the advice."""
    claims = pd.read_csv(place.figures / "claims.csv")
    whose, sentences = _findings(place)
    answers = [f"**{question}** {_answer(claims, rows)}" for question, rows in QUESTIONS if {*rows} & {*claims.number}]
    if (place.figures / "agreement.csv").exists() and "C10" in {*claims.number}:
        answers[-1] += _rank(pd.read_csv(place.figures / "agreement.csv"))
    for number in [MATCHING, ADVICE] if MATCHED in {*claims.number} else [ADVICE]:
        head, _, rest = sentences[number].partition(": ")
        answers.append(f"**{head}:** {rest.replace(f'{MATCHED}, ', '')}")
    listed = "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, start=1))
    run, _, own = whose.partition(APART)
    data_and_profile = ", ".join(run.split(", ")[:2])  # how many subjects stands beside the numbers in docs/
    apart = f" The claims have {own}, others than those of the tables and figures." if own else ""
    return f"{data_and_profile}. {_tally(claims)}{apart}\n\n{listed}"


def rows(place: Layout) -> str:
    """Some rows of Table 1: calls, seconds and Dice with its interval."""
    table = pd.read_csv(place.figures / "table1.csv")
    table = table[table.method.isin(ROWS)]
    columns = ["method", *(["n"] if table.n.nunique() > 1 else []), "dice", "nfe", "seconds"]
    kept = table[[*columns, *table.filter(regex="^dice_(low|high|undefined)$")]]
    whose = (place.figures / "table1.md").read_text(encoding="utf-8").partition("):")[0]
    said = (
        f"{whose}): some of its rows, with Dice and its interval, network calls a slice (members x levels visited, "
        f"the start's own, and one a member for ADDPM's last network), and seconds a subject"
    )
    return tables.table_markdown(kept, said)


def notebooks(place: Layout) -> str:
    """The notebooks with their questions, their minutes where they were measured, their pictures where there are any;
    the further ones folded away."""
    minutes, names = _minutes(), [*LESSONS]
    course, further = names[: names.index(LAST) + 1], names[names.index(LAST) + 1 :]
    first, more = (_lessons(place, some, minutes) for some in (course, further))
    return f"{first}\n\n<details><summary>{len(further)} more: {FURTHER}</summary>\n\n{more}\n\n</details>"


def times() -> str:
    """How long each notebook takes by itself, for a page of docs/; a sentence where nobody has measured it."""
    minutes = _minutes()
    if not minutes:
        return f"The notebooks' minutes at `{TIMED}` values have not been measured yet."
    rows = [
        (f"[{name}](../notebooks/{name}.ipynb)", LESSONS[name][0], minutes[name]) for name in LESSONS if name in minutes
    ]
    stamp = records.read_stamp(RUN_TIMES)
    of, vectors = stamp["processor"]["name"], stamp["processor"]["vectors"]
    has = "with" if any(one.endswith("bf16") for one in vectors) else "without"
    caption = (
        f"Minutes of each notebook, one after the other in a new clone (profile {TIMED}, {stamp['device']} of {of}, "
        f"{has} bfloat16): the first makes the phantom for all, and one may go on from what another has sampled"
    )
    return tables.table_markdown(pd.DataFrame(rows, columns=["Notebook", "Question", "Minutes"]), caption).strip()


def _lessons(place: Layout, names: Sequence[str], minutes: Mapping[str, str]) -> str:
    """A table of some notebooks, without a column that would be empty."""
    columns = {
        "Notebook": [f"[{name}](notebooks/{name}.ipynb)" for name in names],
        "The question it answers": [LESSONS[name][0] for name in names],
        "Minutes": [minutes.get(name, "") for name in names],
        "Picture": [_thumbnail(place, *LESSONS[name]) for name in names],
    }
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    lines = [kept, ["---" for _ in kept], *zip(*kept.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _findings(place: Layout) -> tuple[str, dict[int, str]]:
    """Whose the sentences of a run are, as their first line says in brackets, and the sentences by their numbers."""
    head, *lines = (place.figures / "findings.md").read_text(encoding="utf-8").strip().splitlines()
    whose = head[head.find("(") + 1 : head.rfind(")")]
    parts = [line.partition(". ") for line in lines if line]
    return whose[:1].upper() + whose[1:], {int(number): sentence for number, _, sentence in parts}


def _tally(claims: pd.DataFrame) -> str:
    counts = claims.verdict.value_counts()
    told = ", ".join(f"{counts.get(verdict, 0)} {said}" for verdict, said in VERDICTS.items())
    return (
        f"Of {len(claims)} claims, the papers' and ours, {told} ([the ledger](docs/results.md#the-ledger)). In "
        f"brackets: a difference (of Dice, if not said) and its interval. Energy distance: how far members lie from "
        f"the masks of several raters, 0 where they are drawn alike; *its less ours* is the other row's minus that of "
        f"the row that is claimed to be better."
    )


def _rank(agreement: pd.DataFrame) -> str:
    """How many of the rows beside it order the errors better than PD-DDPM does."""
    areas = agreement.set_index("method").risk_area.dropna()
    better = int((areas < areas[CHAIN]).sum())
    link = "[rows beside it](docs/results.md#members-and-raters)"
    return f" {better or 'None'} of the {len(areas) - 1} {link} rank{'s' if better == 1 else ''} them better."


def _answer(claims: pd.DataFrame, wanted: Mapping[str, int]) -> str:
    parts = [claims[claims.number == number].head(most) for number, most in wanted.items()]
    said = "; ".join(map(_verdict, pd.concat(parts).to_dict("records")))
    return f"{said[:1].upper()}{said[1:]}."


def _verdict(claim: Mapping) -> str:
    difference, low, high = (f"{claim[key]:+#.2g}" for key in ("estimate", "estimate_low", "estimate_high"))
    text, _, score = claim["claim"].partition(": ")
    shown = f"{score}: {difference}" if score else difference
    worse = claim["verdict"] == "undecided" and claim["estimate_high"] < 0
    verdict = "worse, but by how much is undecided" if worse else claim["verdict"]
    return f"{text}: *{verdict}* ({shown} [{low}, {high}])"


def _minutes() -> dict[str, str]:
    """Minutes by notebook, on the profile for lessons; empty where nobody has measured them."""
    if not RUN_TIMES.exists():
        return {}
    times = pd.read_csv(RUN_TIMES)
    times = times[times.profile == TIMED]
    return {name: f"{seconds / 60:.1f}" for name, seconds in zip(times.notebook, times.seconds, strict=True)}


def _thumbnail(place: Layout, question: str, stem: str) -> str:
    """A small picture that leads to the large one; nothing where the profile has not drawn it."""
    path = f"figures/{place.profile}/{stem}.png"
    if not (place.figures / f"{stem}.png").exists():
        return ""
    return f'<a href="{path}"><img src="{path}" alt="{question}" height="44"></a>'
