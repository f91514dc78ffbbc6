"""Install the built wheel into an empty environment, outside of any clone, and train, predict and score with it.

python tests/stress/wheel.py --folder wheel_check

The environment has nothing of its own but the wheel; the libraries that the wheel needs are those of the environment
that runs this script, so nothing is downloaded.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = ["stages.pretrain.iterations=20", "stages.finetune.iterations=20", "trackers=[]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where to work; it must not exist yet")
    folder = parser.parse_args().folder.resolve()
    if folder.is_relative_to(REPOSITORY):
        parser.error(f"{folder} lies in the clone, which is what the check has to do without")
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str | Path) -> str:
        print("$", *words, flush=True)
        finished = subprocess.run(
            list(map(str, words)), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        if finished.returncode:
            sys.exit(f"exit code {finished.returncode}")
        print(finished.stdout, flush=True)
        return finished.stdout

    shutil.copytree(REPOSITORY, folder / "tree", ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", folder / "tree")
    shutil.rmtree(folder / "tree")
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Only a folder's own packages are found by its line in a .pth file, not those that its .pth files point to: an
    # editable installation of the clone stays out of sight.
    Path(packages, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import cagnet_hf; print(cagnet_hf.__file__)")
    if not where.startswith(packages):
        sys.exit(f"not the installed package: {where}")
    program = folder / "environment" / "bin" / "cagnet-hf"
    run(program, "--help")
    run(program, "train", "--recipe", "scenes", "--output_dir", "out", *KEYS)
    drawn = "from cagnet_hf.data.scenes import scenes_dataset; scenes_dataset(10, 'test')[0]['image'].save('a.png')"
    run(python, "-c", drawn)
    run(program, "predict", "--model", "out/model", "a.png", "--output", "predictions")
    run(program, "evaluate", "--model", "out/model", "--dataset", "scenes:0", "--output", "metrics.json")
    for path in ("out/metrics.json", "out/model/README.md", "predictions/a_overlay.png", "metrics.json"):
        if not (folder / path).is_file():
            sys.exit(f"{path} was not written")
    print("The wheel trains, predicts and scores without a clone.")


if __name__ == "__main__":
    main()
