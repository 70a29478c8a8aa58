"""DeepSpeed's ZeRO behind the contract, over real processes: what is asked of it besides equal curves.

It also pins what `engine/fragments.py` knows of DeepSpeed's insides.
"""

from pathlib import Path

import pytest

from fulltune.engine.deepspeed import require_library
from tests.distributed.ranks import NEEDS_DEEPSPEED, run_together
from tests.distributed.zero import BESIDE_ONE_PROCESS, BY_ITSELF

SLOW = [  # what one meeting of so many processes checks: most of the time goes into their imports
    (2, "float32", ["zero1", "zero3"]),
    (2, "float32", ["zero1offload", "zero2offload", "zero3offload"]),
    (3, "float32", ["zero2", "zero3"]),
    (2, "bf16-mixed", ["zero1", "zero2", "zero3offload"]),
    (3, "bf16-mixed", ["zero2offload", "zero3"]),
]


@NEEDS_DEEPSPEED
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("size", "precision", "layouts"),
    [(2, "float32", ["zero2"]), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_the_contract_holds(tmp_path: Path, size: int, precision: str, layouts: list[str]) -> None:
    ended = run_together(size, "tests.distributed.zero", str(tmp_path), precision, *layouts, timeout=500)
    assert ended.codes == [0] * size, "\n".join(ended.said)
    for layout in layouts:
        for check in BY_ITSELF + (BESIDE_ONE_PROCESS if precision == "float32" else []):
            assert f"done: {layout} {check.__name__}" in ended.said[0]


def test_where_it_is_not_installed_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    import fulltune
    from fulltune.base.errors import RecipeError

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "deepspeed" else real(name, *more)
    )
    with pytest.raises(RecipeError, match=r"not installed\n.*\n.*fulltune\[deepspeed\]"):
        require_library()
    values = {"model": {"path": str(tmp_path)}, "data": {"train": "/d.jsonl"}, "engine": {"name": "zero2"}}
    with pytest.raises(RecipeError, match="not installed"):
        fulltune.train(values, out=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "before anything is read or made"
