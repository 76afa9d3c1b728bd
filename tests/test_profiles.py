"""Profiles and notebooks fit together: every parameter is known, every network runs, every notebook keeps the rules."""

import ast
import re

import nbformat
import papermill
import pytest
import torch

from pdlib import workflow
from pdlib.diffusion.sampler import Chain, sample
from pdlib.diffusion.schedule import scale_t_prime
from pdlib.inference.volumes import build_diffusion
from pdlib.kernels import noise
from pdlib.methods import METHODS
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.segmenters import SEGMENTERS, build_segmenter
from pdlib.paths import CONFIGS, NOTEBOOKS, Layout
from pdlib.training.fit import Batch, Fit, build_objective, diffusion_objective, hybrid_objective
from pdlib.workflow import NotebookFailed, load_profile, run_notebook

PROFILES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("phantom"))
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
OF_THE_JOB = {"profile", "out", "data", "architecture", "network", "test_folds"}  # the Snakefile sets these


def sections(profile):
    """The parameters of each notebook, as the Snakefile hands them over."""
    found = {name: dict(values) for name, values in load_profile(profile).items() if name[0].isdigit()}
    for values in found.values():
        if architectures := values.pop("architectures", {}):
            values["network"] = next(iter(architectures.values()))
    return found


def notebook(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def parameters_cell(name):
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def defaults(name):
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(parameters_cell(name).source).body}


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_sets_every_parameter_of_every_notebook_and_no_other(profile):
    found = sections(profile)
    assert sorted(found) == NAMES
    for name, values in found.items():
        workflow.check_parameters(NOTEBOOKS / f"{name}.ipynb", values)
        assert set(papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")) - OF_THE_JOB == set(values) - OF_THE_JOB


@pytest.mark.parametrize("name", NAMES)
def test_parameters_cell_holds_the_smoke_values(name):
    cell = defaults(name)
    assert cell["profile"] == "smoke" and cell["out"] == "" and cell.get("data", "") == ""
    expected = sections("smoke")[name]
    if "architecture" in cell:
        expected["network"] = load_profile("smoke")[name]["architectures"][cell["architecture"]]
    assert {key: value for key, value in cell.items() if key not in OF_THE_JOB - {"network"}} == expected


@pytest.mark.parametrize("name", NAMES)
def test_notebook_obeys_the_house(name):
    cells = code_cells(name)
    assert len(cells) <= 15
    for line in ast.parse(parameters_cell(name).source).body:
        assert isinstance(line, ast.AnnAssign) and re.fullmatch(r"[a-z][a-z0-9_]*", line.target.id)
    for cell in cells:
        assert cell.execution_count is None and not cell.outputs
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 20, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, node.name
    assert any(isinstance(line, ast.Assert) for line in ast.walk(ast.parse(cells[-1].source)))


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_agrees_with_itself(profile):
    found, whole = sections(profile), load_profile(profile)
    architectures = whole["02_train_segmenters"]["architectures"]
    steps = found["03_train_ddpm"]["diffusion"]["schedule"]["steps"]
    assert found["03_train_ddpm"]["t_max"] <= steps
    assert found["02_train_segmenters"]["fit"]["keep_validated"], "notebook 07 picks among the validated checkpoints"
    chains = [found["03_train_ddpm"]["sampling"], *(one for one in found.values() if "eta" in one)]
    assert {one["presegmenter"] for one in found.values() if "presegmenter" in one} <= set(architectures)
    assert found["04_compare_methods"]["t_prime_candidates"] == found["03_train_ddpm"]["tdpm"]["t_primes"]
    pooled = {name: found["13_all_folds"][name] for name in ("presegmenter", "few_calls", "margin", "seed")}
    assert pooled.items() <= found["11_claims"].items()
    assert found["13_all_folds"]["dice_gaps"] == found["07_preseg_accuracy"]["dice_gaps"]
    assert found["11_claims"]["few_calls"] == found["10_fewer_calls"]["few_calls"] in found["10_fewer_calls"]["calls"]
    assert found["06_ensemble_size"]["agreement_size"] == found["04_compare_methods"]["ensemble_size"]
    assert found["06_ensemble_size"]["deep_ensemble_seeds"] == found["04_compare_methods"]["deep_ensemble_seeds"]
    assert found["04_compare_methods"]["t_stop"] in found["08_truncate_both_ends"]["t_stops"]
    trained = {name for name in METHODS if name in SEGMENTERS}
    assert trained & set(found["04_compare_methods"]["methods"]) <= set(architectures)
    assert len({(one["step"], one["eta"], one["convention"]) for one in chains}) == 1
    strides = {name: one["stride"] for name, one in found.items() if "stride" in one}
    assert strides.pop("08_truncate_both_ends") <= min(strides.values()) == max(strides.values())
    for key in ("fold", "seed", "multiple", "threshold", "vote"):
        assert len({one[key] for one in found.values() if "fold" in one and key in one}) == 1, key
    assert max(found["06_ensemble_size"]["sizes"]) <= found["06_ensemble_size"]["pool"] // 2
    gaps = found["07_preseg_accuracy"]["dice_gaps"]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] == 0


def two_updates(network, objective, weight_decay, learning_rate, side):
    """Two Adam updates, which change the last weights; the random images and masks [2, ., side, side]."""
    rng = torch.Generator().manual_seed(0)
    image, mask = (
        torch.randn(2, 2, side, side, generator=rng),
        (torch.rand(2, 1, side, side, generator=rng) < 0.2) * 1.0,
    )
    *_, last = network.parameters()
    before = last.detach().clone()
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for _ in range(2):
        loss = sum(objective(network.train(), Batch(image, mask, 0, rng)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert not torch.equal(before, last)
    return image, mask


@pytest.mark.parametrize("profile", PROFILES)
def test_segmenters_of_the_profile_train(profile):
    values = load_profile(profile)["02_train_segmenters"]
    fit = Fit(**values["fit"], seed=0)
    usual = {"name": "segmentation", "loss": values["loss"], **values["loss_options"]}
    for name, network in values["architectures"].items():
        objective = build_objective(**network.pop("objective", usual))
        model = build_segmenter(name, **network)
        two_updates(model, objective, fit.weight_decay, fit.learning_rate, 2 * model.factor)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["03_train_ddpm", "12_wolleb2021"])
def test_denoiser_of_the_profile_trains_and_samples(profile, name):
    """Two updates, then two calls of every kind of chain that the notebooks run."""
    values, sampling = load_profile(profile)[name], load_profile(profile)["03_train_ddpm"]["sampling"]
    fit, setting = Fit(**values["fit"], seed=0), build_diffusion(**values["diffusion"])
    model = GuidedUNet(**values["network"])
    assert values["multiple"] % model.factor == 0 and all(side % model.factor == 0 for side in fit.crop)
    learned = (values["vlb_weight"],) if "vlb_weight" in values else ()
    objective = (hybrid_objective if learned else diffusion_objective)(setting, values["t_max"], *learned)
    image, mask = two_updates(model, objective, fit.weight_decay, fit.learning_rate, max(8, model.factor))
    streams = noise.subject_streams(0, "a", torch.arange(2), torch.zeros(2, dtype=torch.int64))
    how = {name: sampling[name] for name in ("step", "eta", "convention")}
    steps = setting.schedule.steps
    short = scale_t_prime(sampling["t_prime"], sampling["paper_steps"], steps)
    for start, finish, count in (
        ("gaussian", "run_to_zero", steps),
        ("preseg", "run_to_zero", short),
        ("preseg", "x0_jump", short),
    ):
        chain = Chain(start, finish, count, (count + 1) // 2, **how)
        visited = []
        with torch.no_grad():
            drawn = sample(
                model.eval(),
                image,
                mask,
                chain=chain,
                diffusion=setting,
                streams=streams,
                on_step=lambda index, x_t, x_start, visited=visited: visited.append(index),
            )
        assert visited == ([count - 1] if finish == "x0_jump" else [count - 1, 0])
        assert drawn.shape == mask.shape and 0 <= drawn.min() and drawn.max() <= 1


def test_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown profile 'laptop': choose one of .*'cpu'.*'smoke'"):
        load_profile("laptop")


def test_paper_profile_holds_the_printed_constants():
    """arXiv 2210.17408, Section 3; the schedule's s and clip: Nichol & Dhariwal; the EMA: the authors' ADDPM code."""
    found = sections("paper")
    ddpm, compare = found["03_train_ddpm"], found["04_compare_methods"]
    schedule = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
    assert ddpm["diffusion"] == {"schedule": schedule, "codec": "zero_one", "prediction": "eps"}
    assert ddpm["t_max"] == 1000
    wolleb = found["12_wolleb2021"]  # the schedule: Ho et al. 2020; the weight: Nichol & Dhariwal
    assert wolleb["diffusion"]["schedule"] == {"name": "linear", "steps": 1000, "first_beta": 1e-4, "last_beta": 0.02}
    assert wolleb["network"] == ddpm["network"] | {"out_channels": 2} and wolleb["vlb_weight"] == 0.001
    for fit in (ddpm["fit"], found["02_train_segmenters"]["fit"]):
        assert fit["learning_rate"] == fit["final_learning_rate"] == 1e-4 and fit["weight_decay"] == 1e-5
        assert fit["batch_size"] == 12 and fit["crop"] == [192, 128]  # rows (Y), columns (X)
    assert ddpm["fit"]["ema_decay"] == 0.9999
    assert compare["ensemble_size"] == 5 and compare["t_prime"] == 300 and compare["paper_steps"] == 1000
    assert compare["stride"] == 1 and compare["step"] == "ddpm" and compare["presegmenter"] == "attention_unet"
    assert found["05_sweep_t_prime"]["t_primes"] == [50, 100, 200, 300, 400, 500, 600, 700, 800, 1000]
    with torch.device("meta"):
        model = GuidedUNet(**ddpm["network"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(113.67e6, rel=1e-4)
    batch = torch.empty(1, 3, 192, 128, device="meta")
    assert model(batch, torch.zeros(1, device="meta")).shape == (1, 1, 192, 128)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of notebooks with one job that divides."""
    cells = [nbformat.v4.new_code_cell("by: int = 0", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell("print(1 / by)")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "divide.ipynb")
    monkeypatch.setattr(workflow, "NOTEBOOKS", tmp_path)
    return tmp_path


def test_unknown_parameter_is_refused_before_anything_runs(notebooks):
    with pytest.raises(ValueError, match=r"divide.ipynb: unknown parameters \['bye'\]"):
        run_notebook("divide", notebooks / "runs" / "divide.ipynb", {"bye": 1})
    assert not (notebooks / "runs").exists()


def test_a_failing_notebook_leaves_its_copy_and_a_readable_traceback(notebooks):
    executed = notebooks / "runs" / "divide.ipynb"
    with pytest.raises(NotebookFailed) as failure:
        run_notebook("divide", executed, {"by": 0})
    message = str(failure.value)
    assert message.startswith("divide.ipynb stopped in cell") and str(executed) in message
    assert "ZeroDivisionError: division by zero" in message and "print(1 / by)" in message and "\x1b" not in message
    assert "ZeroDivisionError" in executed.read_text(encoding="utf-8")
    run_notebook("divide", executed, {"by": 4})
    assert "0.25" in executed.read_text(encoding="utf-8")


def test_a_job_of_the_graph_does_not_wait_for_the_graph(tmp_path, monkeypatch):
    monkeypatch.setenv(workflow.IN_WORKFLOW, "1")
    with pytest.raises(RuntimeError, match="03_train_ddpm: missing"):
        place = Layout(tmp_path, "smoke")
        place.done("01_prepare_data").parent.mkdir(parents=True)
        place.done("01_prepare_data").touch()
        workflow.require(place, "03_train_ddpm")
