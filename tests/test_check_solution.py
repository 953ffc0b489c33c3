"""`check_solution.py` judges any solution of the lab: right ones pass, and each known mistake is named."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

import check_solution
from conftest import files_in
from planted import PLANTED
from solution_check.mistakes import MISTAKES
from solution_check.worker import judge_folder

TESTS = Path(__file__).parent
EXAMPLE = TESTS / "example_solution"
TASKS = {1: "points", 2: "images"}
# Mistakes in helpers show in the functions that use them.
DEPENDENT = {"sigmas": {f"step_predict_{each}" for each in ("noise", "x0", "mean")}}


def parse(changes: str) -> list[tuple[str, ...]]:
    r"""(after, old, new) from lines `after >> old >> new`; \n stands for a line break."""
    return [tuple(line.strip().replace("\\n", "\n").split(" >> ")) for line in changes.strip().splitlines()]


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
    assert len(changed) >= len(changes), "a change fits no line"
    return changed


def judge_here(folder: Path, task: int) -> dict:
    """The rows of one task by function, judged in this process."""
    return {row.function: row for kind, row in judge_folder(task, folder) if kind == "row"}


def not_right(rows: dict) -> dict:
    return {name: (row.verdict, row.note, row.details) for name, row in rows.items() if row.verdict != "right"}


@pytest.mark.parametrize("place", [TESTS.parent, EXAMPLE], ids=["project", "example"])
def test_a_right_solution_is_right_throughout(place):
    tasks = check_solution.find_tasks(place)
    assert list(tasks) == [1, 2]
    for task, folder in tasks.items():
        assert not_right(judge_here(folder, task)) == {}


def test_every_mistake_of_the_catalogue_is_planted():
    assert {mistake for mistake, *_ in PLANTED} == {mistake.name for mistake in MISTAKES}
    assert len(PLANTED) >= 148


@pytest.mark.parametrize("mistake, function, changes", PLANTED, ids=[f"{m}-{f}" for m, f, _ in PLANTED])
def test_a_planted_mistake_is_named_and_nothing_else_is_called_wrong(tmp_path, mistake, function, changes):
    tasks = copy_example(tmp_path, changes)
    assert len(tasks) == len(changes) and len(set(tasks)) == 1
    rows = judge_here(tmp_path / TASKS[tasks[0]], tasks[0])
    assert rows[function].verdict == "wrong"
    assert {detail["name"] for detail in rows[function].details} == {mistake}
    others = not_right(rows)
    assert set(others) - DEPENDENT.get(function, set()) == {function}, others


STYLES = {
    "no_grad in the loop alone": r"""
        if noise is None >> @torch.no_grad()\n    def p_sample( >> def p_sample(
        return x_t_prev >> @torch.no_grad()\n    def p_sample_loop >> def p_sample_loop
        def p_sample_loop >> x = self.p_sample(x, t) >> with torch.no_grad():\n                x = self.p_sample(x, t)
    """,
    "t as float": """
        def compute_loss >> .long() >> .float()
        def p_sample_loop >> self.p_sample(x, t) >> self.p_sample(x, t.float())
        def get_loss_noise >> timestep=t >> timestep=t.float()
    """,
    "buffers in float64": """
        self.timesteps >> steps=num_train_timesteps >> steps=num_train_timesteps, dtype=torch.float64
        self.timesteps >> beta_T, steps=T >> beta_T, steps=T, dtype=torch.float64
    """,
    "extract by indexing": """
        as F >> torch.gather(input, 0, t) >> input[t]
        math >> torch.gather(input, 0, t) >> input[t]
    """,
    "variance by log": """
        def p_sample( >> var.sqrt() >> torch.exp(0.5 * torch.log(var.clamp(min=1e-20)))
        sigma_type >> var**0.5 >> (var.clamp(min=1e-20).log() / 2).exp()
    """,
    "own helper names": r"""
        return x_t_prev >> def compute_loss >> diffuse = q_sample\n\n    def compute_loss
        def compute_loss >> self.q_sample( >> self.diffuse(
        class DDPM >> def step_predict_x0 >> def from_clean_image
        class DDPM >> self.step_predict_x0 >> self.from_clean_image
    """,
    "t of the whole batch": """
        def p_sample_loop >> self.p_sample(x, t) >> self.p_sample(x, torch.full((len(x),), int(t)))
        def p_sample_loop >> tqdm(self.var_scheduler.timesteps) >> reversed(range(1000))
        def sample >> network(x_t, timestep=t.to(self.device) >> network(x_t, t.repeat(batch_size)
    """,
    "mean by eq. 11 in the loss": """
        def get_loss_mean >> true_mean = >> true_mean = (x_t - b / (1 - ab).sqrt() * noise) / a.sqrt(); unused =
    """,
    "eq. 7 by eq. 11 in float32": """
        def step_predict_x0 >> c0 = >> ab = alpha_bar_t; eps = (x_t - ab.sqrt() * x0_pred) / (1 - ab).sqrt(); c0 =
        def step_predict_x0 >> c0 * x0_pred + ct * x_t >> (x_t - beta_t / (1 - ab).sqrt() * eps) / alpha_t.sqrt()
    """,
    "own noise by torch.normal": """
        def p_sample( >> torch.randn_like(xt) >> torch.normal(0.0, 1.0, size=xt.shape, device=xt.device)
        def step_predict_mean >> torch.randn_like(x_t) >> torch.empty_like(x_t).normal_()
        def step_predict_x0 >> torch.randn_like(x_t) >> torch.from_numpy(np.random.randn(*x_t.shape)).float().to(x_t)
    """,
    "cuda by name and libraries of the lab": r"""
        losses and sampling >> import torch\n >> import dotmap, torch\nfrom pytorch_lightning import LightningModule\n
        def sample >> self.image_resolution]) >> self.image_resolution]).cuda()
        super().__init__(num_train_timesteps, beta_1 >> tensor([1.0]) >> tensor([1.0], device='cuda').to('cuda:0')
    """,
}


@pytest.mark.parametrize("changes", STYLES.values(), ids=STYLES)
def test_another_style_is_right(tmp_path, changes):
    for task in set(copy_example(tmp_path, parse(changes))):
        assert not_right(judge_here(tmp_path / TASKS[task], task)) == {}


def test_a_small_error_of_a_small_term_is_wrong(tmp_path):
    copy_example(tmp_path, [("def get_loss_mean", "ab_prev.sqrt()", "0.99 * ab_prev.sqrt()")])
    ((name, (verdict, _, details)),) = not_right(judge_here(tmp_path / "images", 2)).items()
    assert (name, verdict, details[0]["aspect"]) == ("get_loss_mean", "wrong", "target")


SKELETON = r"""
    def q_sample( >> xt = alphas >> xt = x0; return xt; unused = alphas
    def p_sample( >> x_t_prev = mean >> y = mean
    def p_sample_loop >> x = torch.randn(shape) >> return torch.zeros(shape); x = torch.randn(shape)
    def compute_loss >> noise = torch >> return x0.mean(); noise = torch
    def ddim_p_sample( >> x_t_prev = ab >> return xt; x_t_prev = ab
    class SimpleNet >> for i, layer >> return x\n        for i, layer
    mode == "cosine" >> s = 0.008 >> raise NotImplementedError("TODO: implement")
    def add_noise >> x_t = alpha_bar >> x_t = None; unused = alpha_bar
"""
GIVEN = {"ddim_p_sample_loop", "linear", "quad", "sigmas", "step", "get_loss", "sample"}


def test_the_skeleton_is_not_written_yet_rather_than_wrong(tmp_path):
    functions = [f"def {what}_{each}(" for what in ("step_predict", "get_loss") for each in ("noise", "x0", "mean")]
    copy_example(tmp_path, [*parse(SKELETON), *((name, "\n", "\n        return None\n") for name in functions)])
    rows = judge_here(tmp_path / "points", 1) | judge_here(tmp_path / "images", 2)
    others = not_right(rows)
    assert rows.keys() - others.keys() == GIVEN
    assert {verdict for verdict, *_ in others.values()} == {"not written yet"}, others


def test_a_result_of_another_shape_is_a_crash_of_that_function_alone(tmp_path):
    copy_example(tmp_path, [("def p_sample(", "return x_t_prev", "return x_t_prev[:, :1]")])
    ((name, (verdict, note, _)),) = not_right(judge_here(tmp_path / "points", 1)).items()
    assert (name, verdict) == ("p_sample", "crashed") and "[4, 1]" in note


HOSTILE = r"""
    class SimpleNet >> for i, layer >> raise KeyError('a' + chr(10) + 'b')\n        for i, layer
    def q_sample( >> xt = alphas >> while True: pass\n        xt = alphas
    def p_sample( >> beta_t = >> import os; os._exit(3); beta_t =
    def p_sample_loop >> x = torch.randn >> import sys; sys.exit(0); x = torch.randn
    def compute_loss >> batch_size = >> [print('x' * 80) for _ in range(2000)]; open('left', 'w'); batch_size =
    class BaseScheduler >> def uniform_sample_t >> import a_library_that_is_not_there\n\n    def uniform_sample_t
"""


def test_each_function_that_hangs_or_ends_the_process_has_one_row_and_the_rest_goes_on(tmp_path, capsys):
    place = tmp_path / "a solution"
    copy_example(place, parse(HOSTILE))
    before = files_in(place)
    report = tmp_path / "out.json"
    assert check_solution.main([str(place), "--limit", "8", "--json", str(report)]) == 1
    rows = json.loads(report.read_text())["rows"]
    crashed = ["SimpleNet", "q_sample", "p_sample", "p_sample_loop", "scheduler.py", "model.py"]
    right = ["compute_loss", "ddim_p_sample", "ddim_p_sample_loop"]
    expected = dict.fromkeys(crashed[:4], "crashed") | dict.fromkeys(right, "right")
    assert {row["function"]: row["verdict"] for row in rows} == expected | dict.fromkeys(crashed[4:], "crashed")
    notes = {row["function"]: row["note"] for row in rows}
    assert len(rows) == len(notes)
    assert "network.py line" in notes["SimpleNet"] and "KeyError" in notes["SimpleNet"]
    assert "8 s" in notes["q_sample"] and "3" in notes["p_sample"] and "SystemExit" in notes["p_sample_loop"]
    assert "a_library_that_is_not_there" in notes["scheduler.py"]
    output = capsys.readouterr().out
    assert "xxx" not in output and f"{sum(row['held'] for row in rows)} of 80 checks hold" in output
    assert files_in(place) == before


def test_folders_and_zips_of_a_class_become_one_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "handed in"
    copy_example(place / "b" / "deep", [("def q_sample(", "alphas_prod_t.sqrt()", "alphas_prod_t")])
    (place / "b" / "deep" / "images").rename(tmp_path / "aside")  # one task alone
    with zipfile.ZipFile(place / "412551014_lab1.zip", "w") as archive:
        for i in range(3000):  # data come first, in the order of their names
            archive.writestr(f"x/data/{i}.png", b"")
        archive.writestr("x/last.ckpt", bytes(30_000_000))
        archive.write(EXAMPLE / "images/scheduler.py", "x/scheduler.py")
        archive.writestr("x\\model.py", (EXAMPLE / "images/model.py").read_bytes())  # as Windows may write it
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
    assert check_solution.main(["nowhere"]) == check_solution.main([str(place / "d")]) == 2


@pytest.mark.slow
def test_training_is_checked_where_it_is_asked_for(capsys):
    assert check_solution.main([str(EXAMPLE), "--train"]) == 0
    assert "Chamfer distance" in capsys.readouterr().out
