"""Landmines M: what others wrote runs nothing, what is secret is written nowhere, and a run stays in its folder."""

import io
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import fulltune
from fulltune import cli
from fulltune.base.errors import FulltuneError, RecipeError
from fulltune.base.files import begun_folder, private_folder, sweep, whole_folder
from fulltune.base.log import LOGGER
from fulltune.optim.optimizers import adamw
from fulltune.recipe.load import load_recipe
from fulltune.runs import open_run
from fulltune.training.journal import Journal
from tests import tiny
from tests.unit.model.test_trust import Canary

A36 = "aZ3" * 12
VARIABLES = {
    "HF_TOKEN": f"hf_{A36[:34]}",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "DB_PASSWORD": "Tr0ub4dor&3",
    "CLIENT_SECRET": "correct-horse-battery",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "PROXY_CREDENTIALS": "ann:letmein22",
    "BASIC_AUTH": "YW5uOmxldG1laW4yMg==",
    "my_ssh_key": "ssh-plain-nothing-known",
}
OPTIONS = {
    "api_key": "options-by-key-1",
    "hub_token": "options-by-key-2",
    "password": "opt-33",
    "note": f"sk-proj-{A36}",
    "other": "AKIAIOSFODNN7EXAMPLE",
    "nested": {"client_secret": "options-by-key-6", "values": [f"ghp_{A36}", "xoxb-123456789012-abcdefABCDEF"]},
}
LOGIN, QUERY = "hunter2222", "signed-with-0f0f0f"
SECRETS = [
    *VARIABLES.values(),
    *(value for value in OPTIONS.values() if isinstance(value, str)),
    OPTIONS["nested"]["client_secret"],  # type: ignore[index]
    *OPTIONS["nested"]["values"],  # type: ignore[index]
    LOGIN,
    QUERY,
    f"AIza{A36[:35]}",
    f"github_pat_{A36}",
]


def keyed(groups: Any, *, lr: float, weight_decay: float, **keys: Any) -> Any:
    """An optimizer that takes what the recipe gives; an export, which moves nothing, has it masked."""
    assert keys == OPTIONS or keys["api_key"] in ("exchanged-by-now", "***")
    return adamw(groups, lr=lr, weight_decay=weight_decay)


def found(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.fixture
def secret(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe file with a secret wherever one can stand; its rows say some too, in what is printed as samples."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    address = f"memory://ann:{LOGIN}@store/rows.jsonl?X-Amz-Signature={QUERY}"
    rows = [{**row, "prompt": f"{VARIABLES['DB_PASSWORD']} {row['prompt']}", "unused": 1} for row in tiny.rows(40)]
    with fsspec.open(address, "wb") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    place = tmp_path / VARIABLES["CLIENT_SECRET"]
    place.mkdir()
    more = [
        tiny.jsonl(place / f"{name}.jsonl", tiny.rows(9, seed=n))
        for n, name in enumerate((SECRETS[-2], "b", "c", SECRETS[-1]), 1)
    ]
    asked = tiny.recipe(
        llama,
        more[0],
        data={"train": [address, *map(str, more[:2])], "retention": [str(path) for path in more[2:]]},
        optim={"name": f"{__name__}:keyed", "options": OPTIONS},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(asked))
    yield path
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def _own_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line speaks to a stream that ends with its test."""
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOGGER, name, vars(LOGGER)[name])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["fulltune", *map(str, arguments)])
    return cli.main()


def test_landmine_M2_no_secret_stands_in_a_run_folder_or_a_message(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty of them: in the environment, the recipe's options, addresses and names of files."""
    assert len(set(SECRETS)) == 20
    folder = tmp_path / "run"

    def said(*arguments: str | Path) -> tuple[int, str]:
        code = run(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    for verb in ("train", "plan"):
        code, shown = said(verb, secret, "--out", folder, "--json")
        assert (code, found(shown)) == (0, []), shown
    written = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "data")]
    assert {path.name for path in written} >= {"recipe.yaml", "data.json", "plan.json", "journal.jsonl", "record.json"}
    for path in written:
        assert found(path.read_bytes().decode("latin-1")) == [], path
        assert found(str(path.relative_to(folder))) == []
    record = json.loads((folder / "record.json").read_text())
    assert "***" in json.dumps(record["samples"])

    assert said("train", secret, "--out", folder)[0] == 0, "the recipe itself goes on"
    code, shown = said("train", folder)
    assert (code, found(shown)) == (2, [])
    assert "optim.options.api_key" in shown
    assert f"--out {folder}" in shown
    assert said("export", folder, tmp_path / "exported")[0] == 0, "needs no secret"
    code, shown = said("evaluate", secret, "--out", folder, "--json")
    assert code == 0
    assert json.loads(shown)["result"]["scores"].keys() >= record["baseline"]["scores"].keys(), "names stay the same"
    assert said("plan", secret, "optim.options.api_key=exchanged-by-now", "--out", folder)[0] == 0, "the same recipe"

    for wrong in (
        "optim.lr=0.5",
        f"optim.lr={{api_key: {OPTIONS['api_key']}}}",
        f"model.path=/no/{VARIABLES['CLIENT_SECRET']}",
        f"data.train=memory://ann:{LOGIN}@nowhere/x.jsonl",
        f"optim.name={SECRETS[-2]}",
        f"{SECRETS[-1]}=1",
    ):
        code, shown = said("train", secret, wrong, "--out", folder if "0.5" in wrong else tmp_path / "other")
        assert code in (2, 3, 6)
        assert found(shown) == [], wrong


def test_landmine_M2_what_is_logged_and_raised_to_a_library_user_is_masked(
    secret: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fulltune"):
        fulltune.plan(secret, out=tmp_path / "run")
    assert "unused_column: 1 x: memory://***@store" in caplog.text
    assert found(caplog.text) == []
    with pytest.raises(FulltuneError) as caught:
        fulltune.plan(secret, out=tmp_path / "other", model={"path": f"/no/{VARIABLES['DB_PASSWORD']}"})
    assert found(str(caught.value)) == []


def test_landmine_M2_the_journal_and_who_listens_get_no_secret(secret: Path, tmp_path: Path) -> None:
    heard: list[Any] = []

    class Listener:
        def hear(self, kind: str, values: Any) -> None:
            heard.append(values)

    with Journal(tmp_path / "journal.jsonl", [Listener()]) as journal:
        journal.write(
            "warning", {"rows": [f"{value}/rows.jsonl:5" for value in VARIABLES.values()], "api_key": "abcdefg"}
        )
    assert found((tmp_path / "journal.jsonl").read_text() + str(heard)) == []
    assert heard[0]["api_key"] == "***"


@pytest.mark.slow
def test_landmine_M1_no_file_of_a_checkpoint_runs(tmp_path: Path, llama: Path, data: Path) -> None:
    """Each file in turn, and names that others pickle under, is a pickle that would leave a folder."""
    canary, folder = tmp_path / "ran", tmp_path / "run"
    asked = tiny.recipe(llama, data, train={"steps": 2}, evaluate={"samples": 0}, checkpoint={"every": 1})
    fulltune.train(asked, out=folder)
    (folder / "record.json").unlink()
    newest = max((folder / "checkpoints").glob("step-*"))
    originals = {path.name: path.read_bytes() for path in newest.iterdir()}
    for name in [*originals, "optimizer.pt", "rng_state.pth", "training_args.bin"]:
        newest.mkdir(exist_ok=True)
        for other, content in originals.items():
            (newest / other).write_bytes(content)
        torch.save(Canary(canary), newest / name)
        with suppress(FulltuneError):
            fulltune.train(asked, out=folder)
        (folder / "record.json").unlink(missing_ok=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [ran]",
        "!!python/object/new:os.mkdir [ran]",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/tuple [1]",
        "!ruby/object:Object {}",
        "{_target_: os.mkdir, path: ran}",
        "{_component_: os.mkdir, path: ran}",
        "{__reduce__: [os.mkdir, ran]}",
    ],
)
def test_landmine_M4_a_recipe_is_no_program(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (
        f"model: {value}\ndata: {{train: x}}\n",
        f"model: {{path: m, dropout: {value}}}\ndata: {{train: x}}\n",
    ):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError):
            load_recipe(tmp_path / "recipe.yaml")
        assert run(monkeypatch, "plan", "recipe.yaml") == 2
    assert run(monkeypatch, "plan", "recipe.yaml", f"model={value}", "data.train=x") == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["; touch X", "$(touch X)", "a'b\"c `touch X`", "new\nline", "-rf", "*"])
def test_landmine_M5_a_name_is_no_command(
    tmp_path: Path, name: str, llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / f"{name}.yaml").write_text(json.dumps(tiny.recipe(llama, data, train={"steps": 1})))
    assert run(monkeypatch, "plan", f"./{name}.yaml") == 0
    with pytest.raises(RecipeError) as caught:
        open_run(place / "runs" / name, {}).finished()
    pasted = caught.value.faults[0].mend.replace("fulltune train", "printf %s")
    said = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True).stdout
    assert said == str(place / "runs" / name), "the mend can be pasted into a shell"
    assert sorted(path.name for path in place.iterdir()) == sorted([f"{name}.yaml", "runs"])
    assert [path.name for path in (place / "runs").iterdir()] == [name]


def test_landmine_M8_no_text_of_a_row_stands_in_an_error_or_a_log(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that cannot be taught, and a run that ends since its loss is not finite, are told by file and line."""
    text = "unmistakable zebra"
    rows: list[Any] = [{"prompt": f"{text} {n}", "completion": f"{text} {n}"} for n in range(12)]
    asked = tiny.recipe(llama, tiny.jsonl(tmp_path / "rows.jsonl", rows), evaluate={"samples": 0})
    asked["train"] |= {"max_skipped": 1, "objective": f"{__name__}:Endless"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked))
    assert run(monkeypatch, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 5
    bad = [{"prompt": text}, {"prompt": text, "completion": ""}, {"prompt": [text], "completion": text}, text]
    tiny.jsonl(tmp_path / "rows.jsonl", [*rows, *bad])
    assert run(monkeypatch, "prepare", tmp_path / "recipe.yaml", "--out", tmp_path / "other") == 3
    shown = capsys.readouterr()
    assert "rows.jsonl:" in shown.err
    assert text not in shown.out + shown.err + (tmp_path / "run/journal.jsonl").read_text()


def Endless(model: Any, cut: Any, **options: Any) -> Any:
    """An objective whose loss is not finite while training."""
    from fulltune.objectives import NextToken

    class Infinite(NextToken):
        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            sums = super().forward(batch)
            return {name: value * (float("nan") if self.training else 1) for name, value in sums.items()}

    return Infinite(model, cut, **options)


# --- folders


def test_a_run_folder_is_private_and_its_result_is_ordinary(tmp_path: Path, llama: Path, data: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    asked = tiny.recipe(llama, data, train={"steps": 1}, evaluate={"samples": 0})
    before = os.umask(0o022)
    try:
        fulltune.train(asked, out=tmp_path / "runs/a")
        (tmp_path / "runs/b").mkdir(mode=0o755)
        fulltune.prepare(asked, out=tmp_path / "runs/b")
    finally:
        os.umask(before)
    assert mode(tmp_path / "runs/a") == 0o700
    assert mode(tmp_path / "runs") == mode(tmp_path / "runs/b") == mode(tmp_path / "runs/a/model") == 0o755
    assert mode(tmp_path / "runs/a/model/model.safetensors") == 0o644


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no run may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("x")
    return folder


def written(folder: Path) -> None:
    with whole_folder(folder / "data") as draft:
        (draft / "new").write_text("y")


def swept(folder: Path) -> None:
    sweep(folder)


def begun(folder: Path) -> None:
    with begun_folder(folder, "this") as made:
        (made / "part").write_text("y")


@pytest.mark.parametrize(
    ("name", "act"),
    [(".x.part-y", swept), (".data.old", written), ("data", written), (".begun-other", begun), (".begun-this", begun)],
)
def test_a_link_out_of_a_run_folder_is_removed_and_never_followed(
    tmp_path: Path, outside: Path, name: str, act: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    private_folder(folder)
    if name == ".data.old":
        (folder / "data").mkdir()
    (folder / name).symlink_to(outside)
    act(folder)
    assert not (folder / name).is_symlink()
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_links_in_a_folder_that_is_removed_are_not_followed(tmp_path: Path, outside: Path) -> None:
    draft = tmp_path / "run/.x.part-y"
    draft.mkdir(parents=True)
    (draft / "link").symlink_to(outside)
    sweep(draft.parent)
    assert not draft.exists()
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_checkpoints_that_lie_elsewhere_are_refused(tmp_path: Path, llama: Path, data: Path) -> None:
    asked = tiny.recipe(llama, data, train={"steps": 2}, evaluate={"samples": 0})
    fulltune.train(asked, out=tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    elsewhere = (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run/checkpoints").symlink_to(elsewhere)
    with pytest.raises(RecipeError, match="this is a link"):
        fulltune.train(asked, out=tmp_path / "run")
    assert list(elsewhere.glob("step-*"))


# --- network, terminal


@pytest.mark.slow
def test_nothing_is_connected_to_and_nothing_is_told(tmp_path: Path, llama: Path, data: Path) -> None:
    """A process of its own, since what it hears and what it imports first cannot be taken back."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny.recipe(llama, data, train={"steps": 2})))
    (tmp_path / "heard.py").write_text(
        "import os, socket, sys\n"
        "heard = []\n"
        "sys.addaudithook(lambda event, args: event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto')\n"
        "    and heard.append((event, str(args))))\n"
        "def connect(self, place): heard.append(('connect', str(place))); raise OSError('no network')\n"
        "socket.socket.connect = socket.socket.connect_ex = connect\n"
        "sys.argv = ['fulltune', 'train', 'recipe.yaml']\n"
        "from fulltune.cli import main\n"
        "code = main()\n"
        "from huggingface_hub import constants\n"
        "print('HEARD', code, heard, constants.HF_HUB_DISABLE_TELEMETRY)\n"
        "try: socket.create_connection(('127.0.0.1', 9))\n"
        "except OSError: print('LISTENING', len(heard) > 0)\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "OFFLINE" not in name
    }
    environment.pop("DO_NOT_TRACK", None)
    done = subprocess.run(
        [sys.executable, "heard.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert "HEARD 0 [] True" in done.stdout, done.stdout + done.stderr
    assert "LISTENING True" in done.stdout


def test_what_a_model_says_is_obeyed_by_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that answers with the characters that set a window's title."""
    from transformers import AutoModelForCausalLM

    folder = tiny.folder(tmp_path / "m", "phi")
    tokens = tiny.tokenizer()("\x1b", add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[tokens[0]] = 9.0
    model.save_pretrained(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n"))
    assert run(monkeypatch, "chat", folder, "--tokens", "3") == 0
    shown = capsys.readouterr().out
    assert "␛␛␛" in shown
    assert "\x1b" not in shown


def test_errors_and_logs_are_obeyed_by_no_terminal(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of files are the work of others too."""
    name = "rows\x1b]0;title\x07.jsonl"
    rows = tiny.jsonl(tmp_path / name, [*tiny.rows(8), {"prompt": "a", "completion": "b", "unused": 1}])
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny.recipe(llama, rows, data={"heldout": 0})))
    assert run(monkeypatch, "prepare", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 0
    tiny.jsonl(rows, [{"prompt": "a"}])
    assert run(monkeypatch, "prepare", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 3
    shown = capsys.readouterr()
    assert "rows␛]0;title␇.jsonl" in shown.err
    assert "\x1b" not in shown.err + shown.out
