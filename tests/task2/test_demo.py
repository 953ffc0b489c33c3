"""The demo, with stand-ins for the programs that it calls: `make demo` itself takes minutes."""

import json

import pytest


@pytest.fixture
def demo(load_report, tmp_path, monkeypatch):
    program = load_report("demo")
    for name in ("ROOT", "TASK1", "TASK2"):
        monkeypatch.setattr(program, name, tmp_path)
    monkeypatch.setattr(program, "DEMO", tmp_path / "results/demo")
    monkeypatch.setattr(program.sys, "argv", ["demo.py"])
    return program


def start_run(place, name, data_root, train_num_steps):
    folder = place / "results/predictor_x0/beta_cosine" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"data_root": data_root, "train_num_steps": train_num_steps}))
    return folder


def test_the_demo_keeps_what_it_shows_and_removes_no_run_but_its_own(demo, tmp_path, monkeypatch, capsys):
    start_run(tmp_path, "of an interrupted demo", demo.DATA, demo.NUM_STEPS)
    other = start_run(tmp_path, "longer", demo.DATA, 20_000)
    commands = []

    def run(folder, command, may_fail=False):
        commands.append(command)
        if command.startswith("train.py"):
            start_run(tmp_path, "started meanwhile", "data/afhq", demo.NUM_STEPS)
            new = start_run(tmp_path, "new", demo.DATA, demo.NUM_STEPS)
            for name in ("last.ckpt", "loss.png", f"step={demo.NUM_STEPS}-traj.png"):
                (new / name).touch()
        if command.startswith("sampling.py") and "cats64" not in command:
            assert "results/predictor_x0/beta_cosine/new/last.ckpt" in command
            (demo.DEMO / "samples").mkdir(parents=True)
        return not may_fail

    monkeypatch.setattr(demo, "run", run)
    (demo.DEMO / "of the last demo").mkdir(parents=True)
    demo.main()
    assert {path.name for path in demo.DEMO.iterdir()} == {"samples", "last.ckpt", "loss.png", "trajectory.png"}
    assert {path.name for path in other.parent.iterdir()} == {"longer", "started meanwhile"}
    assert [command.split()[0] for command in commands][:3] == ["ddpm_tutorial.py", "dataset.py", "train.py"]
    assert any("report/models/cats64.ckpt" in command for command in commands)
    assert "results/demo/trajectory.png" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_help_changes_nothing(demo, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    demo.DEMO.mkdir(parents=True)
    monkeypatch.setattr(demo, "run", interrupted)
    with pytest.raises(SystemExit, match="130"):
        demo.main()
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr(demo.sys, "argv", ["demo.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        demo.main()
    assert demo.DEMO.is_dir()
