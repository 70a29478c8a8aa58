"""TRL's environment: made on first use, of pinned packages, beside this file."""

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.fresh import ROOT

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".env-trl"
REQUIREMENTS = HERE / "requirements-trl.txt"
CONSTRAINTS = ROOT / "constraints.txt"


class Absent(Exception):
    """There is no environment with TRL; the message says why."""


def trl_python(given: Path | None) -> Path:
    """The Python that has TRL: the given one, or that of our own environment, which is made if need be."""
    if given is not None:
        # Not resolved: a virtual environment's Python is a link, and finds its packages by where the link lies.
        python = given.absolute()
        if not python.exists():
            raise Absent(f"there is no {given}")
        if subprocess.run([python, "-c", "import trl"], capture_output=True, check=False).returncode != 0:
            raise Absent(f"{given} cannot import trl")
        return python
    if not is_ready():
        _make()
    return ENVIRONMENT / "bin" / "python"


def is_ready() -> bool:
    """Whether our environment is there and made of what is asked for now."""
    stamp = ENVIRONMENT / ".ready"
    return stamp.exists() and stamp.read_text() == _wanted()


def _wanted() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()


def _make() -> None:
    if ENVIRONMENT.is_symlink():  # what is made anew is emptied first, and so would be what somebody else has there
        raise Absent(f"{ENVIRONMENT.name} is a link to an environment of other packages: remove the link")
    print(f"making {ENVIRONMENT.name}: minutes, once", file=sys.stderr)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([*pip, "--constraint", str(CONSTRAINTS), "--requirement", str(REQUIREMENTS)], check=True)
    except subprocess.CalledProcessError as fault:
        raise Absent(
            f"{ENVIRONMENT.name} cannot be made (see above). Give --trl-python the Python of an environment that has "
            f"{REQUIREMENTS.name}, or leave TRL out (--against)"
        ) from fault
    (ENVIRONMENT / ".ready").write_text(_wanted())
