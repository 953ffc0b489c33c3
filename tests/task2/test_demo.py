"""The demo, with stand-ins for the programs that it calls: `make demo` itself takes minutes."""

import json
import shutil

import pytest


@pytest.fixture
def demo(load_report, tmp_path, monkeypatch):
    program = load_report("demo")
    for name in ("ROOT", "ROLL", "FACES"):
        monkeypatch.setattr(program, name, tmp_path)
    monkeypatch.setattr(program, "DEMO", tmp_path / "results/demo")
    monkeypatch.setattr(program.sys, "argv", ["demo.py"])
    return program


def begin_run(place, name, **settings):
    folder = place / "results/predictor_x0/beta_cosine" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_the_demo_takes_its_own_run_and_puts_it_away(demo, tmp_path, monkeypatch, capsys):
    settings = {"data_root": demo.DATA, "train_num_steps": demo.NUM_STEPS}
    old = begin_run(tmp_path, "old", **settings)
    commands = []

    def run(folder, command, may_fail=False):
        commands.append(command)
        if command.startswith("train.py"):
            begin_run(tmp_path, "of somebody else", data_root="data/afhq", train_num_steps=demo.NUM_STEPS)
            ours = begin_run(tmp_path, "ours", **settings)
            for name in ("last.ckpt", "loss.png", f"step={demo.NUM_STEPS}-traj.png"):
                (ours / name).touch()
        if command.startswith("sampling.py"):
            assert "results/predictor_x0/beta_cosine/ours/last.ckpt" in command
            (demo.DEMO / "samples").mkdir(parents=True)
        return not may_fail

    monkeypatch.setattr(demo, "run", run)
    (demo.DEMO / "of the last demo").mkdir(parents=True)
    demo.main()
    assert {path.name for path in demo.DEMO.iterdir()} == {"samples", "last.ckpt", "loss.png", "trajectory.png"}
    assert {path.name for path in old.parent.iterdir()} == {"old", "of somebody else"}
    assert [command.split()[0] for command in commands][:3] == ["ddpm_tutorial.py", "dataset.py", "train.py"]
    said = capsys.readouterr().out
    assert "No distance without the Inception weights" in said and "results/demo/trajectory.png" in said


def test_asked_for_help_the_demo_changes_nothing(demo, tmp_path, monkeypatch, capsys):
    demo.DEMO.mkdir(parents=True)
    monkeypatch.setattr(demo.sys, "argv", ["demo.py", "--help"])
    monkeypatch.setattr(shutil, "rmtree", lambda *what, **how: pytest.fail("removed something"))
    with pytest.raises(SystemExit, match="0"):
        demo.main()
    assert "python report/demo.py" in capsys.readouterr().out and demo.DEMO.is_dir()
