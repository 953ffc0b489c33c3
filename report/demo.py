"""Small versions of both tasks, with the commands of a user: the Swiss roll, synthetic faces, and real cats.

    python report/demo.py

Each command is printed before it runs. Results go to `2d_plot_diffusion_todo/results/` and
`image_diffusion_todo/results/demo/`, in place of those of the last demo; the pictures are listed at the end.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import common
from cli import ArgumentParser, exit_on_user_error
from common import ROOT, TASK1

TASK2 = common.TASK2
DEMO = TASK2 / "results" / "demo"
DATA = "data/demo"

# Under two million weights at 32x32: minutes on a CPU. The x0 predictor shows something after so few steps; the noise
# predictor needs many more.
NUM_STEPS = 1500
SMALL = "--image_resolution 32 --ch 32 --ch_mult 1 2 2 2 --attn 2 --num_res_blocks 1 --dropout 0"
SHORT = f"--num_diffusion_train_timesteps 200 --batch_size 8 --learning_rate 1e-3 --train_num_steps {NUM_STEPS}"
SETTINGS = f"--data_root {DATA} --mode cosine --predictor x0 {SMALL} {SHORT} --log_interval {NUM_STEPS // 2}"


def run(folder: Path, command: str, may_fail: bool = False) -> bool:
    """Run `python <command>` in a folder; stop the demo if it fails, unless it may."""
    print(f"\n$ cd {folder.name} && python {command}", flush=True)
    code = subprocess.run([sys.executable, *command.split()], cwd=folder).returncode
    if code and not may_fail:
        sys.exit(code)
    return code == 0


def demo_runs() -> list[Path]:
    """The folders of the demo's training runs; others may use its data for longer ones."""
    configs = {path.parent: json.loads(path.read_text()) for path in TASK2.glob("results/*/*/*/config.json")}
    ours = {"data_root": DATA, "train_num_steps": NUM_STEPS}.items()
    return [folder for folder, config in configs.items() if ours <= config.items()]


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    with exit_on_user_error():
        run(TASK1, "ddpm_tutorial.py")

        for folder in (DEMO, *demo_runs()):
            shutil.rmtree(folder, ignore_errors=True)
        run(TASK2, f"dataset.py --data_root {DATA} --synthetic 300 --image_resolution 32")
        run(TASK2, f"train.py {SETTINGS}")
        (trained,) = demo_runs()
        ckpt = (trained / "last.ckpt").relative_to(TASK2)
        run(TASK2, f"sampling.py --ckpt_path {ckpt} --save_dir results/demo/samples --num_samples 64")
        run(TASK2, "image_grid.py results/demo/samples --out results/demo/samples.png")
        run(TASK2, f"image_grid.py {DATA}/eval --out results/demo/data.png")
        for name, copy in [(f"step={NUM_STEPS}-traj.png", "trajectory.png"), ("loss.png",) * 2, ("last.ckpt",) * 2]:
            shutil.copy(trained / name, DEMO / copy)
        shutil.rmtree(trained)  # report/figures.py would take it for one of the lab's runs
        if not run(TASK2, f"fid/measure_fid.py {DATA}/eval results/demo/samples --dims 192", may_fail=True):
            print("No distance without the Inception weights; everything else is there.")

        cats = "--save_dir results/demo/cats64 --num_samples 16 --sample_method dpm --last_timestep 75"
        run(TASK2, f"sampling.py --ckpt_path ../report/models/cats64.ckpt {cats}")
        run(TASK2, "image_grid.py results/demo/cats64 --out results/demo/cats64.png --per_row 4")

        print("\nPictures (cats64.png is by the model that comes with the project; all other faces are synthetic):")
        for path in [*sorted((TASK1 / "results").glob("swiss_roll_*.[pg]*")), *sorted(DEMO.glob("*.png"))]:
            print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
