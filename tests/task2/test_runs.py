"""report/runs.py: which runs are found and chosen, and the run behind a distance."""

from pathlib import Path

import pytest
from PIL import Image

import runs
from run_inputs import make_run, measured
from sample_folder import SampleFolder


def test_the_longest_and_then_the_newest_run_without_labels_is_taken(tmp_path, capsys):
    for name, step in [("11-24-120000", 100), ("11-23-120000", 150), ("11-24-110000", 50)]:
        make_run(tmp_path / "runs", "linear", "noise", name, step)
    for name in ("11-24-120000-2", "11-24-120000-10", "11-24-120000"):
        make_run(tmp_path / "another disk", "quad", "x0", name)
    make_run(tmp_path / "another disk", "quad", "x0", "12-01-000000", 500, use_cfg=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "another disk")
    found = runs.find_runs([tmp_path / "runs", tmp_path / "runs/predictor_noise", tmp_path / "elsewhere"])
    assert len(found) == 7
    assert {key: run.folder.name for key, run in runs.choose_runs(found).items()} == {
        ("linear", "noise", "direct", "none"): "11-23-120000",
        ("quad", "x0", "direct", "none"): "11-24-120000-10",
    }
    assert "12-01-000000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "config.json").write_text("{"), "Expecting"),
        (lambda run: (run / "config.json").write_text("{}"), "lacks 'mode'"),
        (lambda run: (run / "last.ckpt").unlink(), "last.ckpt"),
        (lambda run: (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000]), "last.ckpt"),
        (lambda run: (run / "stats.csv").write_text("step,loss\n"), "stats.csv"),
        (lambda run: (run / "stats.csv").write_text("step,loss\n50,none\n"), "'none'"),
    ],
)
def test_damaged_and_unfinished_runs_are_named_and_skipped(tmp_path, capsys, damage, reason):
    damage(make_run(tmp_path, "linear", "noise", "damaged"))
    whole = make_run(tmp_path, "linear", "noise", "whole")
    (run,) = runs.find_runs([tmp_path])
    assert run.folder == whole and run.key == ("linear", "noise", "direct", "none")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"skipped: {tmp_path}/predictor_noise/beta_linear/damaged: ") and reason in line


def test_the_samples_and_the_run_of_a_distance_must_be_found(program, tmp_path):
    folder = make_run(tmp_path / "runs", "quad", "noise")
    flags = ["--ckpt_path", folder / "last.ckpt", "--save_dir", "noise", "--num_samples", 3]
    assert program("sampling.py", *flags).returncode == 0
    found = runs.find_runs([folder])
    distances = runs.read_distances([measured(tmp_path / "a.json", "noise", 12.5)])
    best, place = runs.best_of(distances, found)
    assert (best["predictor"], best["averaged_weights"], place) == ("noise", True, Path("noise"))
    with pytest.raises(runs.UserError, match="--runs"):
        runs.best_of(distances, [])
    assert program("checkpoint.py", folder / "last.ckpt", "--out", "half.ckpt", "--half").returncode == 0
    assert program("sampling.py", "--ckpt_path", "half.ckpt", "--save_dir", "half", *flags[4:]).returncode == 0
    assert runs.best_of(runs.read_distances([measured(tmp_path / "b.json", "half", 12.5)]), found)[0] == best
    (place / "3.png").write_bytes((place / "0.png").read_bytes())
    with pytest.raises(runs.UserError, match="noise does not hold the 3 images"):
        runs.best_of(distances, found)
    place.rename("moved")
    with pytest.raises(runs.UserError, match="no longer in noise"):
        runs.best_of(distances, found)


def test_images_of_older_versions_lack_settings_that_are_not_in_use(tmp_path):
    image = Image.new("RGB", (8, 8))
    SampleFolder(tmp_path / "s", {"seed": 0}).save(0, image)
    newer = SampleFolder(tmp_path / "s", {"seed": 0, "last_timestep": None})
    assert newer.missing(2) == [1]
    newer.save(1, image)
    assert runs.settings_of(tmp_path / "s", 2) == {"seed": 0}


@pytest.mark.parametrize(
    "changes", [{"name": "FID-768"}, {"gt_synthetic": True}, {"gen_images": 4}, {"gt_sizes": ["64x64"]}]
)
def test_distances_that_cannot_be_compared_are_refused(tmp_path, changes):
    files = measured(tmp_path / "a.json", "a", 12.5), measured(tmp_path / "b.json", "b", 11.0, **changes)
    with pytest.raises(runs.UserError, match=rf"--fid: .*b\.json .*{next(iter(changes))}"):
        runs.read_distances(files)
