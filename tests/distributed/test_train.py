"""`fulltune train` in several processes: the run of one, whoever starts them, and whatever befalls one of them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import fulltune
from fulltune import gathering
from fulltune.base.errors import DiskError, RankError, RecipeError
from fulltune.training.journal import read
from tests import tiny
from tests.conftest import ROOT
from tests.distributed.ranks import NEEDS_DEEPSPEED, run_together
from tests.unit.model.test_compiled import NEEDS_COMPILER

WORKER = "tests.distributed.worker"
NATIVE, DEEPSPEED = "fulltune.engine.native:NativeEngine", "fulltune.engine.zero:ZeroEngine"
LIMIT = 15
ZERO = [pytest.param(name, marks=NEEDS_DEEPSPEED) for name in ("zero1", "zero2", "zero3")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.rows(40))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """Eight updates, of four examples each, saved after every second."""
    folder = tmp_path_factory.mktemp("recipe")
    values = tiny.recipe(
        tiny.folder(folder / "model"),
        rows,
        data={"heldout": 0.2},
        train={"steps": 8, "batch_examples": 5, "micro_examples": 1, "precision": "float32"},
        optim={"lr": 1e-3},
        checkpoint={"every": 2, "keep": 9},
        evaluate={"every": 4, "samples": 1, "sample_tokens": 4},
        engine={"timeout": LIMIT},
    )
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    fulltune.train(recipe, out=folder)
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read(run / "journal.jsonl", "step")]


def same_curve(run: Path, reference: Path) -> None:
    steps = [line["step"] for line in read(run / "journal.jsonl", "step")]
    assert steps == list(range(1, 9)), "no update is missing, none stands there twice"
    assert losses(run) == pytest.approx(losses(reference), abs=1e-5)
    rates, wanted = ([line["lr"] for line in read(one / "journal.jsonl", "step")] for one in (run, reference))
    assert rates == wanted
    ours, theirs = (list(read(one / "journal.jsonl", "evaluation")) for one in (run, reference))
    for one, other in zip(ours, theirs, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5), "every held-out example counts once"
        assert one["counts"] == other["counts"]


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "model" / "model.safetensors")


def differ(one: Path, other: Path) -> float:
    found, wanted = weights(one), weights(other)
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def train(recipe: Path, out: Path, *words: str, size: int = 2, befall: str | None = None) -> Any:
    variables = {} if befall is None else {"BEFALL": befall}
    return run_together(size, WORKER, "train", str(recipe), *words, "--out", str(out), **variables)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", ZERO[2]])
def test_the_command_starts_its_own_processes(tmp_path: Path, recipe: Path, reference: Path, engine: str) -> None:
    words = ["train", str(recipe), "--out", str(tmp_path / "run"), f"engine.name={engine}", "engine.processes=2"]
    done = subprocess.run(
        [sys.executable, "-m", "fulltune", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heldout.perplexity") == 1, "told once, by whom the user started"
    assert f"engine: {engine}" in done.stderr
    trained_as_by_one(tmp_path / "run", reference)
    assert list((tmp_path / "run" / "logs").glob("*/attempt_0/1/stderr.log"))


def trained_as_by_one(run: Path, reference: Path) -> None:
    same_curve(run, reference)
    assert differ(run, reference) <= 1e-4
    assert json.loads((run / "record.json").read_text())["largest_logit_difference"] <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("engine", ZERO[:2])
def test_several_processes_train_as_one_does(tmp_path: Path, recipe: Path, reference: Path, engine: str) -> None:
    """The stages whose processes are forked here, not started by the command: a start takes 20 s."""
    ended = train(recipe, tmp_path / "run", f"engine.name={engine}")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    assert f"engine: {engine}" in ended.said[0]
    trained_as_by_one(tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["schedule_free_adamw", "galore", "apollo"])
def test_optimizers_that_need_whole_weights_train_by_two_as_by_one_and_so_do_tiles(
    tmp_path: Path, recipe: Path, optimizer: str
) -> None:
    words = [f"optim.name={optimizer}", "optim.schedule=constant", "memory.mlp_tile=8"]
    optim = {"name": optimizer, "schedule": "constant"}
    fulltune.train(recipe, out=tmp_path / "one", optim=optim, memory={"mlp_tile": 8})
    ended = train(recipe, tmp_path / "two", *words, "engine.name=ddp")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    trained_as_by_one(tmp_path / "two", tmp_path / "one")


@NEEDS_COMPILER
@pytest.mark.slow
def test_compiled_blocks_are_gathered_as_others(tmp_path: Path, recipe: Path, reference: Path) -> None:
    limits = ["engine.timeout=200"]  # they do not compile equally fast
    ended = train(recipe, tmp_path / "run", "engine.name=fsdp2", "train.compile=true", *limits)
    assert ended.codes == [0, 0], "\n".join(ended.said)
    trained_as_by_one(tmp_path / "run", reference)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's agent leaves its logs open
@pytest.mark.parametrize(("what", "restarts"), [("KILL", 2), ("HANG", 1), ("KILL", 0), ("ENOSPC", 2)])
def test_where_one_is_lost_all_are_started_anew_as_often_as_the_recipe_says(
    tmp_path: Path, recipe: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, what: str, restarts: int
) -> None:
    """F16 with a launcher that restarts: the same trajectory. What has a cause is not tried twice."""
    monkeypatch.setattr(gathering, "_command", lambda *words: [sys.executable, "-m", WORKER, "train", *words])
    monkeypatch.setenv("BEFALL", f"1,{NATIVE}.forward,20,{what}")
    monkeypatch.setenv("BEFALL_ONCE", str(tmp_path / "it-was-once"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = tmp_path / "run"
    asked = {"name": "fsdp2", "processes": 2, "restarts": restarts, "timeout": LIMIT}

    def trained() -> Any:
        return fulltune.train(recipe, out=run, engine=asked, checkpoint={"every": 1})

    if restarts == 0 or what == "ENOSPC":
        with pytest.raises(RankError if restarts == 0 else DiskError):
            trained()
        assert len(list(read(run / "journal.jsonl", "start"))) == 1
        return
    trained()
    starts = list(read(run / "journal.jsonl", "start"))
    assert len(starts) == 2 and starts[1]["resumed_at"] > 0
    same_curve(run, reference)
    assert differ(run, reference) <= 1e-4


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"],
    # Its own --cpu starts one process whatever is asked for; this is torchrun, and needs no GPU.
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--module"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_starts_the_same_command(tmp_path: Path, recipe: Path, reference: Path, launcher: str) -> None:
    if launcher == "accelerate" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    words = ["fulltune", "train", str(recipe), "--out", str(tmp_path / "run"), "engine.name=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCHERS[launcher], *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heldout.perplexity") == 1, "the first speaks for both"
    same_curve(tmp_path / "run", reference)
    [start] = read(tmp_path / "run" / "journal.jsonl", "start")
    assert (start["processes"], start["engine"]) == (2, "ddp")


CHAINS = {
    "native": [(2, "fsdp2"), (3, "fsdp2"), (1, "auto"), (4, "ddp"), (2, "fsdp2")],
    "zero": [(2, "zero2"), (3, "zero3"), (1, "auto"), (2, "zero1"), (2, "fsdp2"), (3, "zero2"), (1, "zero3")],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chain", ["native", pytest.param("zero", marks=NEEDS_DEEPSPEED)])
def test_what_one_engine_saved_another_goes_on_with(tmp_path: Path, recipe: Path, reference: Path, chain: str) -> None:
    """Saved by two processes that share the model, gone on with by other numbers, each time after one more update."""
    run, plans = tmp_path / "run", CHAINS[chain]
    for number, (size, engine) in enumerate(plans):
        words = ["checkpoint.every=1", f"engine.name={engine}"]
        last = number == len(plans) - 1
        befall = f"{size - 1},{kind(engine)}.update,1,TERM"
        ended = train(recipe, run, *words, size=size, befall=None if last else befall)
        assert ended.codes == [0 if last else 75] * size, "\n".join(ended.said)
    resumed = [line["resumed_at"] for line in read(run / "journal.jsonl", "start") if "resumed_at" in line]
    assert resumed == sorted(set(resumed)) and len(resumed) == len(plans) - 1, "each made updates"
    same_curve(run, reference)
    assert differ(run, reference) <= 1e-4


@pytest.mark.slow
def test_a_run_that_goes_on_takes_no_weights_of_the_base(tmp_path: Path, recipe: Path, reference: Path) -> None:
    """They would be overwritten by those of the checkpoint; the base is asked, not taken."""
    run, fill = tmp_path / "run", "fulltune.engine.native:NativeEngine.fill,1,RAISE"
    words = ["engine.name=fsdp2", "checkpoint.every=1"]
    ended = train(recipe, run, *words, befall=f"1,{NATIVE}.update,3,TERM")
    assert ended.codes == [75, 75], "\n".join(ended.said)
    ended = train(recipe, run, *words, befall=f"0,{fill}")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    same_curve(run, reference)
    other = train(recipe, tmp_path / "other", *words, befall=f"0,{fill}")
    assert other.codes[0] == 1, "one that begins takes them"


def own_recipe(folder: Path, kind: str, rows: Path, **train: Any) -> Path:
    """Two updates of a model of another kind."""
    model = tiny.folder(folder / "model", kind)
    asked = {"steps": 2, "batch_examples": 8, "micro_examples": 3, **train}
    values = tiny.recipe(model, rows, train=asked, engine={"name": "fsdp2", "timeout": LIMIT})
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_landmine_E12_a_model_whose_experts_are_converted_trains_in_shards_and_comes_back(
    tmp_path: Path, rows: Path
) -> None:
    """Loaded by one process after the other. The result's files have the base's names, with other weights."""
    asked = own_recipe(tmp_path, "mixtral", rows, precision="float32")
    ended = train(asked, tmp_path / "run")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    assert "loaded whole, by one process of a machine after the other" in ended.said[0]
    fulltune.train(asked, out=tmp_path / "alone", engine={"name": "single"})
    assert differ(tmp_path / "run", tmp_path / "alone") <= 1e-4
    base, found = load_file(tmp_path / "model" / "model.safetensors"), weights(tmp_path / "run")
    assert found.keys() == base.keys() and any("experts.3." in name for name in base)
    assert all(not (found[name] == base[name]).all() for name in base if "experts." in name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("gemma2", 0), ("mamba", 2)])
def test_what_is_asked_of_a_model_in_shards_is_asked_in_float32(
    tmp_path: Path, rows: Path, kind: str, code: int
) -> None:
    """In bfloat16 a head that caps its logits would not agree to the last digit, nor an example with itself alone."""
    asked = own_recipe(tmp_path, kind, rows, precision="bf16-mixed", layout="packed")
    ended = train(asked, tmp_path / "run")
    assert ended.codes == [code, code], "\n".join(ended.said)
    assert "the model's head is unusual" not in ended.said[0]
    assert ("see each other" in ended.said[0]) == (kind == "mamba")


@pytest.mark.slow
def test_the_others_wait_for_the_first_as_long_as_it_takes(tmp_path: Path, recipe: Path) -> None:
    ended = train(recipe, tmp_path / "run", "engine.timeout=10", befall="0,fulltune.stages:_made_ready,1,SLEEP")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    assert ended.seconds > 25


def kind(engine: str) -> str:
    """The class that something is to befall."""
    return DEEPSPEED if engine.startswith("zero") else NATIVE


@pytest.fixture(scope="module", params=["ddp", "fsdp2", *ZERO[1:]])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, recipe: Path, engine: str) -> Path:
    folder = tmp_path_factory.mktemp(f"undisturbed-{engine}") / "run"
    ended = train(recipe, folder, f"engine.name={engine}")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    return folder


def goes_on(recipe: Path, run: Path, engine: str, undisturbed: Path) -> None:
    """The same command gives the same bits."""
    ended = train(recipe, run, f"engine.name={engine}")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    assert losses(run) == losses(undisturbed)
    assert differ(run, undisturbed) == 0


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_all(tmp_path: Path, recipe: Path, engine: str, undisturbed: Path, rank: int) -> None:
    """F4."""
    run = tmp_path / "run"
    ended = train(recipe, run, f"engine.name={engine}", befall=f"{rank},{kind(engine)}.forward,20,TERM")
    assert ended.codes == [75, 75], "\n".join(ended.said)
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert int(saved[-1][5:]) == len(losses(run)) > 0, "what was done is saved"
    goes_on(recipe, run, engine, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("what", ["KILL", "HANG", "RAISE"])
def test_one_that_ends_or_hangs_ends_all(
    tmp_path: Path, recipe: Path, engine: str, undisturbed: Path, what: str
) -> None:
    """F15, F16."""
    run = tmp_path / "run"
    ended = train(recipe, run, f"engine.name={engine}", befall=f"1,{kind(engine)}.forward,20,{what}")
    own = {"KILL": -9, "HANG": 1, "RAISE": 1}[what]
    assert ended.codes == [8, own], "\n".join(ended.said)
    assert "another process ended, or did not answer in time" in ended.said[0]
    if what == "HANG":
        assert "in _do" in ended.said[1], "its stack tells where it hung"
    goes_on(recipe, run, engine, undisturbed)


@pytest.mark.faults
def test_a_loss_that_is_none_on_one_is_skipped_by_all(tmp_path: Path, recipe: Path, engine: str) -> None:
    """F11: the rows of the rank that had it are named, whichever that is; nothing moves on any."""
    run = tmp_path / "run"
    ended = train(recipe, run, f"engine.name={engine}", befall=f"1,{kind(engine)}.forward,20,NAN")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    [line] = read(run / "journal.jsonl", "warning")
    assert line["what"] == "update skipped: loss or gradient not finite"
    assert len(line["rows"]) == 1, "a micro-batch has one row here"
    steps = [line["step"] for line in read(run / "journal.jsonl", "step")]
    assert steps == list(range(1, 9)), "updates are counted, not tries"


@pytest.mark.faults
def test_a_full_disk_of_one_is_everybodys(tmp_path: Path, recipe: Path, engine: str, undisturbed: Path) -> None:
    run = tmp_path / "run"
    rank = 0 if engine == "ddp" else 1  # with ddp the first alone writes
    befall = f"{rank},fulltune.engine.capture:Capture.write,3,ENOSPC"
    ended = train(recipe, run, f"engine.name={engine}", befall=befall)
    assert 7 in ended.codes and 0 not in ended.codes, "\n".join(ended.said)
    assert all((path / "MANIFEST.json").exists() for path in (run / "checkpoints").glob("step-*"))
    goes_on(recipe, run, engine, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_while_it_writes_leaves_nothing_to_be_believed(
    tmp_path: Path, recipe: Path, engine: str, undisturbed: Path, rank: int
) -> None:
    """F1 of two: its half of a checkpoint is there, or that of the other, and neither counts."""
    if engine == "ddp" and rank == 1:
        pytest.skip("with ddp the first alone writes")
    run = tmp_path / "run"
    ended = train(recipe, run, f"engine.name={engine}", befall=f"{rank},fulltune.engine.capture:Capture.write,3,KILL")
    assert ended.codes[rank] == -9 and ended.codes[1 - rank] == 8, "\n".join(ended.said)
    assert all((path / "MANIFEST.json").exists() for path in (run / "checkpoints").glob("step-*"))
    goes_on(recipe, run, engine, undisturbed)


@pytest.mark.faults
def test_a_checkpoint_of_which_any_file_was_damaged_is_put_aside(
    tmp_path: Path, recipe: Path, engine: str, undisturbed: Path
) -> None:
    """F5 to F8 of two: a bit of every file in turn; all ranks go on from the one before."""
    stopped = tmp_path / "stopped"
    ended = train(recipe, stopped, f"engine.name={engine}", befall=f"1,{kind(engine)}.forward,20,TERM")
    assert ended.codes == [75, 75], "\n".join(ended.said)
    *_, newest = sorted((stopped / "checkpoints").glob("step-*"))
    names = sorted(path.name for path in newest.iterdir())
    parts = [name for name in names if name.endswith(".safetensors")]
    assert len(parts) >= (2 if engine == "ddp" else 4), "weights and moments, of each that writes"
    for number, name in enumerate([parts[0], parts[-1], "MANIFEST.json"]):
        run = tmp_path / f"run-{number}"
        shutil.copytree(stopped, run)
        path = run / "checkpoints" / newest.name / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        goes_on(recipe, run, engine, undisturbed)
        assert (run / "quarantine" / newest.name / name).exists(), "kept, for whoever wants to look"


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_one_process_is_a_group_too(tmp_path: Path, recipe: Path, reference: Path, engine: str) -> None:
    """On one GPU too weights may wait on the host. What was trained so is exported without a group."""
    run = tmp_path / "run"
    fulltune.train(recipe, out=run, engine={"name": engine})
    same_curve(run, reference)
    assert differ(run, reference) <= 1e-6
    folder = fulltune.export(run, tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    assert fulltune.evaluate(run)["result"].scores["heldout.loss"] == pytest.approx(losses_held(run), abs=1e-5)


def losses_held(run: Path) -> float:
    last = list(read(run / "journal.jsonl", "evaluation"))[-1]
    return float(last["scores"]["heldout.loss"])


def test_a_dry_run_is_of_one_process(tmp_path: Path, recipe: Path) -> None:
    for engine in ({"processes": 2}, {"name": "fsdp2"}):
        with pytest.raises(RecipeError, match="a dry run is of one process"):
            fulltune.dry_run(recipe, out=tmp_path / "run", engine=engine)


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["ddp", ZERO[0]])
def test_where_memory_runs_out_on_one_all_take_smaller_micro_batches(
    tmp_path: Path, recipe: Path, reference: Path, engine: str
) -> None:
    """F14, in a pass after which gradients are not exchanged yet: the same updates."""
    run = tmp_path / "run"
    words = [f"engine.name={engine}", "train.micro_examples=2"]
    ended = train(recipe, run, *words, befall=f"1,{kind(engine)}.forward,6,MEMORY")
    assert ended.codes == [0, 0], "\n".join(ended.said)
    [line] = read(run / "journal.jsonl", "warning")
    assert "out of memory" in line["what"] and line["micro_examples"] == 1
    same_curve(run, reference)


@pytest.mark.faults
def test_a_signal_to_who_started_them_stops_all(tmp_path: Path, recipe: Path, reference: Path) -> None:
    """The command passes it on, waits until all have saved, and ends as they did."""
    run = tmp_path / "run"
    words = ["train", str(recipe), "--out", str(run), "engine.name=ddp", "engine.processes=2", "train.steps=400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, "-m", "fulltune", *words], cwd=ROOT, env=environment)
    journal = run / "journal.jsonl"
    while started.poll() is None and not (journal.exists() and list(read_lines(journal))):
        time.sleep(0.1)
    started.terminate()
    assert started.wait(60) == 75
    assert len(losses(run)) == int(max((run / "checkpoints").glob("step-*")).name[5:]) > 0
    assert not (run / ".lock").exists()


def read_lines(journal: Path) -> list[str]:
    return [line for line in journal.read_text().splitlines() if '"kind": "step"' in line]


def test_a_launcher_and_a_recipe_that_disagree(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="engine.processes is 2, but 1 were started"):
        fulltune.train(recipe, out=tmp_path / "run", engine={"processes": 2})
