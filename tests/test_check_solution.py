"""`check_solution.py` judges any solution of the lab: what is right passes, each known mistake is named."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

import check_solution
from planted import PLANTED
from solution_check.judge import judge_all
from solution_check.mistakes import MISTAKES
from solution_check.sandbox import bare_imports
from solution_check.worker import solution_and_checks

TESTS = Path(__file__).parent
EXAMPLE = TESTS / "example_solution"
TASKS = {1: "points", 2: "images"}
# Mistakes in helpers show in the functions that use them.
DEPENDENT = {"sigmas": {f"step_predict_{each}" for each in ("noise", "x0", "mean")}}


def copy_example(target: Path, changes=()) -> list[int]:
    """Copy the example with some changes (after, old, new); the tasks whose files have changed."""
    changed = []
    for task, name in TASKS.items():
        (target / name).mkdir(parents=True)
        for file in (EXAMPLE / name).glob("*.py"):
            text = file.read_text()
            for after, old, new in changes:
                head, mark, tail = text.partition(after)
                if mark and old in tail:
                    text = head + mark + tail.replace(old, new, 1)
                    changed.append(task)
            (target / name / file.name).write_text(text)
    return changed


def judge_here(folder: Path, task: int) -> dict:
    """The rows of one task by function, judged in this process."""
    with bare_imports(folder):
        solution, checks = solution_and_checks(task, folder)
        return {row.function: row for kind, row in judge_all(solution, checks) if kind == "row"}


@pytest.mark.parametrize("place", [TESTS.parent, EXAMPLE], ids=["project", "example"])
def test_a_right_solution_is_right_throughout(place):
    for task, folder in check_solution.find_tasks(place / "." if place == EXAMPLE else place).items():
        rows = judge_here(folder, task)
        assert {name: (row.verdict, row.details) for name, row in rows.items() if row.verdict != "right"} == {}


def test_every_mistake_of_the_catalogue_is_planted():
    assert {mistake for mistake, *_ in PLANTED} == {mistake.name for mistake in MISTAKES}
    assert len(MISTAKES) >= 25


@pytest.mark.parametrize("mistake, function, changes", PLANTED, ids=[f"{m}-{f}" for m, f, _ in PLANTED])
def test_a_planted_mistake_is_named_and_nothing_else_is_called_wrong(tmp_path, mistake, function, changes):
    tasks = copy_example(tmp_path, changes)
    assert len(tasks) == len(changes) and len(set(tasks)) == 1, "the change fits no line"
    rows = judge_here(tmp_path / TASKS[tasks[0]], tasks[0])
    assert rows[function].verdict == "wrong"
    assert {detail["name"] for detail in rows[function].details} == {mistake}
    others = {name: row.details for name, row in rows.items() if row.verdict != "right"}
    assert set(others) - DEPENDENT.get(function, set()) == {function}, others


STYLES = {
    "no_grad_in_the_loop_alone": [
        ("if noise is None", "    @torch.no_grad()\n    def p_sample(", "    def p_sample("),
        ("return x_t_prev", "    @torch.no_grad()\n    def p_sample_loop", "    def p_sample_loop"),
        (
            "def p_sample_loop",
            "            x = self.p_sample(x, t)",
            "            with torch.no_grad():\n                x = self.p_sample(x, t)",
        ),
    ],
    "t_as_float": [
        ("def compute_loss", ".long()", ".float()"),
        ("def p_sample_loop", "self.p_sample(x, t)", "self.p_sample(x, t.float())"),
        ("def get_loss_noise", "timestep=t", "timestep=t.float()"),
    ],
    "buffers_in_float64": [
        ("self.timesteps", "steps=num_train_timesteps", "steps=num_train_timesteps, dtype=torch.float64"),
        ("self.timesteps", "beta_T, steps=T", "beta_T, steps=T, dtype=torch.float64"),
    ],
    "extract_by_indexing": [
        ("as F", "torch.gather(input, 0, t)", "input[t]"),
        ("math", "torch.gather(input, 0, t)", "input[t]"),
    ],
    "variance_by_log": [
        ("def p_sample(", "var.sqrt()", "torch.exp(0.5 * torch.log(var.clamp(min=1e-20)))"),
        ("sigma_type", "var**0.5", "(var.clamp(min=1e-20).log() / 2).exp()"),
    ],
    "default_predictor": [("class DDPM", "net_out, predictor)", "net_out, predictor='noise')")],
    "own_helper_names": [
        (
            "return x_t_prev",
            "def compute_loss",
            "def diffuse(self, *a):\n        return DiffusionModule.q_sample(self, *a)\n\n    def compute_loss",
        ),
        ("def compute_loss", "self.q_sample(", "self.diffuse("),
        ("class DDPM", "def step_predict_x0", "def from_clean_image"),
        ("class DDPM", "self.step_predict_x0", "self.from_clean_image"),
    ],
    "t_of_the_whole_batch": [
        ("def p_sample_loop", "self.p_sample(x, t)", "self.p_sample(x, torch.full((len(x),), int(t)))"),
        ("def p_sample_loop", "tqdm(self.var_scheduler.timesteps)", "reversed(range(1000))"),
        ("def sample", "network(x_t, timestep=t.to(self.device)", "network(x_t, t.repeat(batch_size)"),
    ],
    "mean_by_eq_11_in_the_loss": [
        (
            "def get_loss_mean",
            "true_mean = ",
            "true_mean = (x_t - b / (1 - ab).sqrt() * noise) / a.sqrt()\n        unused = ",
        ),
    ],
    "eq_7_by_eq_11_in_float32": [
        (
            "def step_predict_x0",
            "x0_mean = ",
            "eps = (x_t - alpha_bar_t.sqrt() * x0_pred) / (1 - alpha_bar_t).sqrt()\n"
            "        x0_mean = (x_t - beta_t / (1 - alpha_bar_t).sqrt() * eps) / alpha_t.sqrt()\n        unused = ",
        ),
    ],
    "own_noise_by_torch_normal": [
        ("def p_sample(", "torch.randn_like(xt)", "torch.normal(0.0, 1.0, size=xt.shape, device=xt.device)"),
        ("def step_predict_mean", "torch.randn_like(x_t)", "torch.empty_like(x_t).normal_()"),
        (
            "def step_predict_x0",
            "torch.randn_like(x_t)",
            "torch.from_numpy(np.random.randn(*x_t.shape)).float().to(x_t.device)",
        ),
    ],
    "cuda_by_name_and_libraries_of_the_lab": [
        (
            "losses and sampling",
            "import torch\n",
            "import torch\nimport dotmap\nimport pytorch_lightning as pl\nfrom dotmap import DotMap\n",
        ),
        (
            "def sample",
            "torch.randn([batch_size, 3, self.image_resolution, self.image_resolution])",
            "torch.randn([batch_size, 3, self.image_resolution, self.image_resolution]).cuda()",
        ),
        (
            "super().__init__(num_train_timesteps, beta_1",
            "torch.tensor([1.0])",
            "torch.tensor([1.0], device='cuda').to('cuda:0')",
        ),
    ],
}


@pytest.mark.parametrize("changes", STYLES.values(), ids=STYLES)
def test_another_style_is_right(tmp_path, changes):
    tasks = copy_example(tmp_path, changes)
    assert len(tasks) >= len(changes), "a change fits no line"
    for task in set(tasks):
        rows = judge_here(tmp_path / TASKS[task], task)
        assert {
            name: (row.verdict, row.details, row.note) for name, row in rows.items() if row.verdict != "right"
        } == {}


SKELETON = [
    ("def q_sample(", "xt = alphas", "xt = x0; return xt; unused = alphas"),
    ("def p_sample(", "x_t_prev = mean", "y = mean"),
    ("def p_sample_loop", "x = torch.randn(shape)", "return torch.zeros(shape); x = torch.randn(shape)"),
    ("def compute_loss", "noise = torch", "return x0.mean(); noise = torch"),
    ("def ddim_p_sample(", "x_t_prev = ab", "return xt; x_t_prev = ab"),
    ("class SimpleNet", "for i, layer", "return x\n        for i, layer"),
    ('mode == "cosine"', "s = 0.008", 'raise NotImplementedError("TODO: implement")'),
    ("def add_noise", "x_t = alpha_bar", "x_t = None; unused = alpha_bar"),
    *[(f"def step_predict_{each}(", "\n", "\n        return None\n") for each in ("noise", "x0", "mean")],
    *[(f"def get_loss_{each}(", "\n", "\n        return None\n") for each in ("noise", "x0", "mean")],
]
GIVEN = {"ddim_p_sample_loop", "linear", "quad", "sigmas", "step", "get_loss", "sample"}


def test_the_skeleton_is_not_written_yet_rather_than_wrong(tmp_path):
    copy_example(tmp_path, SKELETON)
    rows = judge_here(tmp_path / "points", 1) | judge_here(tmp_path / "images", 2)
    assert {name for name, row in rows.items() if row.verdict == "right"} == GIVEN
    others = {name: (row.verdict, row.note) for name, row in rows.items() if name not in GIVEN}
    assert {verdict for verdict, _ in others.values()} == {"not written yet"}, others


def test_a_result_of_another_shape_is_a_crash_of_that_function_alone(tmp_path):
    copy_example(tmp_path, [("def p_sample(", "return x_t_prev", "return x_t_prev[:, :1]")])
    rows = judge_here(tmp_path / "points", 1)
    assert {name: row.verdict for name, row in rows.items() if row.verdict != "right"} == {"p_sample": "crashed"}
    assert "[4, 1]" in rows["p_sample"].note


HOSTILE = [
    ("class SimpleNet", "for i, layer", "raise KeyError('a\\nb')\n        for i, layer"),
    ("def q_sample(", "xt = alphas", "while True: pass\n        xt = alphas"),
    ("def p_sample(", "beta_t = ", "import os; os._exit(3); beta_t = "),
    ("def p_sample_loop", "x = torch.randn", "import sys; sys.exit(0); x = torch.randn"),
    ("def compute_loss", "batch_size =", "[print('x' * 80) for _ in range(10**5)]; open('left', 'w'); batch_size ="),
    ("class BaseScheduler", "def uniform_sample_t", "import a_library_that_is_not_there\n\n    def uniform_sample_t"),
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_function_that_hangs_or_ends_the_process_has_one_row_and_the_rest_goes_on(tmp_path, capsys):
    place = tmp_path / "a solution"
    assert len(copy_example(place, HOSTILE)) == len(HOSTILE)
    before = files_of(place)
    report = tmp_path / "out.json"
    assert check_solution.main([str(place), "--limit", "4", "--json", str(report)]) == 1
    rows = json.loads(report.read_text())["rows"]
    assert [(row["function"], row["verdict"]) for row in rows] == [
        ("SimpleNet", "crashed"),
        ("q_sample", "crashed"),
        ("p_sample", "crashed"),
        ("p_sample_loop", "crashed"),
        ("compute_loss", "right"),
        ("ddim_p_sample", "right"),
        ("ddim_p_sample_loop", "right"),
        ("scheduler.py", "crashed"),
        ("model.py", "crashed"),
    ]
    notes = {row["function"]: row["note"] for row in rows}
    assert "network.py line" in notes["SimpleNet"] and "KeyError" in notes["SimpleNet"]
    assert "4 s" in notes["q_sample"] and "3" in notes["p_sample"] and "SystemExit" in notes["p_sample_loop"]
    assert "a_library_that_is_not_there" in notes["scheduler.py"]
    output = capsys.readouterr().out
    assert "xxx" not in output and f"{sum(row['held'] for row in rows)} of 80 checks hold" in output
    assert files_of(place) == before


def test_folders_and_zips_of_a_class_become_one_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "handed in"
    copy_example(place / "b" / "deep", [("def q_sample(", "alphas_prod_t.sqrt()", "alphas_prod_t")])
    (place / "b" / "deep" / "images").rename(tmp_path / "aside")  # one task alone
    with zipfile.ZipFile(place / "412551014_lab1.zip", "w") as archive:
        for name in ("scheduler.py", "model.py"):
            archive.write(EXAMPLE / "images" / name, f"x/{name}")
        archive.writestr("../outside.py", "raise SystemExit")
    (place / "c.zip").write_bytes(b"PK no zip")
    (place / "d").mkdir()
    assert check_solution.main(["--many", str(place), "--csv", "class.csv"]) == 1
    with (tmp_path / "class.csv").open() as file:
        rows = {row["solution"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["412551014_lab1.zip", "b", "c.zip", "d"]
    assert rows["412551014_lab1.zip"]["held"] == rows["412551014_lab1.zip"]["checks"] == "54"
    assert rows["b"]["mistakes"] == "q_sample: forward-signal-root" and rows["b"]["1: q_sample"] == "wrong"
    assert rows["b"]["2: sample"] == rows["d"]["2: sample"] == "" and rows["d"]["held"] == "0"
    assert not list(tmp_path.rglob("outside.py"))


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_nothing_to_check_is_exit_code_2(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    assert check_solution.main([place]) == 2
    assert place in capsys.readouterr().err


@pytest.mark.slow
def test_training_is_checked_where_it_is_asked_for(capsys):
    assert check_solution.main([str(EXAMPLE), "--train"]) == 0
    assert "Chamfer distance" in capsys.readouterr().out
