"""What test_lean.py runs in processes of their own; importing it loads no torch.

`python -m tests.without_torch FOLDER`: two processes beside this one say, in `FOLDER/0` to `FOLDER/4`, what they have.
"""

import os
import sys
from pathlib import Path

from fulltune.base import torchless
from fulltune.data import pool


class Telling:
    """Writes into a file which process it is, and whether that has torch once a tokenizer was asked for."""

    def __call__(self, task: Path) -> None:
        import transformers.tokenization_utils_base  # noqa: F401 - what unpickling a tokenizer loads

        task.write_text(f"{os.getpid()} {sys.modules.get('torch') is not None}")


def main(folder: Path) -> None:
    torchless.begin()
    pool.do([folder / str(number) for number in range(5)], Telling, Telling, 2)
    print(os.getpid(), torchless.begun())


if __name__ == "__main__":
    from tests.without_torch import main as imported  # other processes know what is made here by its module's name

    imported(Path(sys.argv[1]))
