"""Both tasks in small, with the commands that anybody would type: the Swiss roll, then drawn animal faces.

    python report/demo.py

Each command is printed before it runs. What they make lies in `2d_plot_diffusion_todo/results/` and in
`image_diffusion_todo/results/demo/`, in place of what the last demo left there; the pictures are listed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROLL, FACES = ROOT / "2d_plot_diffusion_todo", ROOT / "image_diffusion_todo"
sys.path.insert(0, str(FACES))

from cli import ArgumentParser

DEMO = FACES / "results" / "demo"

# A network of under two million weights on 32x32 faces: minutes on a CPU, where the lab's own takes hours on a GPU. The
# x0 predictor is the one that shows something after so few steps; the noise predictor needs many more.
NUM_STEPS = 1500
SMALL = "--image_resolution 32 --ch 32 --ch_mult 1 2 2 2 --attn 2 --num_res_blocks 1 --dropout 0"
SHORT = f"--num_diffusion_train_timesteps 200 --batch_size 8 --learning_rate 1e-3 --train_num_steps {NUM_STEPS}"
DATA = "data/drawn"
SETTINGS = f"--data_root {DATA} --mode cosine --predictor x0 {SMALL} {SHORT} --log_interval {NUM_STEPS // 2}"


def run(folder: Path, command: str, may_fail: bool = False) -> bool:
    """Run `python <command>` in a folder; stop the demo if it fails, unless it may."""
    print(f"\n$ cd {folder.name} && python {command}", flush=True)
    code = subprocess.run([sys.executable, *command.split()], cwd=folder).returncode
    if code and not may_fail:
        sys.exit(code)
    return code == 0


def only_new_run(before: set[Path]) -> Path:
    """The folder of the run of the demo, among those that were not there before: others may have begun some too."""
    wanted = {"data_root": DATA, "train_num_steps": NUM_STEPS}
    new = FACES.glob("results/*/*/*/config.json")
    (found,) = (
        path.parent
        for path in new
        if path.parent not in before and wanted.items() <= json.loads(path.read_text(encoding="utf-8")).items()
    )
    return found


def main() -> None:
    """The demo."""
    ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run(ROLL, "ddpm_tutorial.py")

    shutil.rmtree(DEMO, ignore_errors=True)
    before = set(FACES.glob("results/*/*/*"))
    run(FACES, f"dataset.py --data_root {DATA} --synthetic 300 --image_resolution 32")
    run(FACES, f"train.py {SETTINGS}")
    trained = only_new_run(before)
    ckpt = (trained / "last.ckpt").relative_to(FACES)
    run(FACES, f"sampling.py --ckpt_path {ckpt} --save_dir results/demo/samples --num_samples 64")
    run(FACES, "image_grid.py results/demo/samples --out results/demo/samples.png")
    run(FACES, f"image_grid.py {DATA}/eval --out results/demo/data.png")
    shutil.copy(trained / f"step={NUM_STEPS}-traj.png", DEMO / "trajectory.png")
    shutil.copy(trained / "loss.png", DEMO / "loss.png")
    shutil.copy(trained / "last.ckpt", DEMO / "last.ckpt")
    shutil.rmtree(trained)  # report/figures.py would take it for one of the lab's runs
    if not run(FACES, f"fid/measure_fid.py {DATA}/eval results/demo/samples --dims 192", may_fail=True):
        print("No distance without the Inception weights; everything else is there.")

    print("\nPictures (the faces are drawn by a program, and so are what the model learnt from):")
    for path in [*sorted((ROLL / "results").glob("swiss_roll_*.png")), *sorted(DEMO.glob("*.png"))]:
        print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
