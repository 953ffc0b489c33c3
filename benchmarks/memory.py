"""Peak memory of a training step on a CPU, by batch and image size, with activations kept or recomputed.

    python benchmarks/memory.py                                  # the lab's network
    python benchmarks/memory.py --ch 32 --batch_size 1 2 --image_resolution 16 --json memory.json

Each figure is the peak of a process of its own during one step in float32, less what it held before.
"""

import itertools

import bench
from bench_tables import MEMORY, markdown, table

from cli import exit_on_user_error, int_range
from progress import tqdm


def main() -> None:
    parser = bench.make_parser(__doc__)
    several = {"type": int_range(1), "nargs": "+", "metavar": "N"}
    parser.add_argument("--batch_size", default=[1, 4, 8], help="images per step", **several)
    parser.add_argument("--image_resolution", default=[64], help="height and width of the images", **several)
    parser.add_argument("--ch", type=int_range(32), default=128, metavar="N", help="channels of the first level")
    args = parser.parse_args()
    with exit_on_user_error():
        rows = []
        sizes = [*itertools.product(args.image_resolution, args.batch_size)]
        for resolution, batch_size in tqdm(sizes, desc="measuring", unit="size", leave=False):
            unet = {"ch": args.ch, "image_resolution": resolution}
            kept, seconds = bench.peak_memory(unet, batch_size)
            recomputed, longer = bench.peak_memory(unet, batch_size, activation_checkpointing=True)
            row = {"image_resolution": resolution, "batch_size": batch_size, "ch": args.ch}
            rows.append(row | {"kept_gib": kept, "recomputed_gib": recomputed, "slowdown": longer / seconds})
        print(markdown(table(rows, MEMORY)))
        bench.write_json(args.json, rows)


if __name__ == "__main__":
    main()
