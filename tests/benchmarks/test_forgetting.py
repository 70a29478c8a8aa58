"""The benchmark of forgetting: pairs, claims, recipes and rows; and the whole of it in its smallest setting."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import undone
from benchmarks.cures import CURES, PLAIN, named
from benchmarks.lessons import LESSONS, Amounts, Material, material
from benchmarks.trials import Losses, Measured, Setting, Trial, blends, done, fisher, remove, trial
from fulltune.base.files import write_record
from fulltune.recipe.load import load_recipe
from tests.conftest import ROOT

SHAKESPEARE = LESSONS[1]
ROWS = Material(*(Path(f"/rows/{name}.jsonl") for name in ("train", "heldout", "kept", "replayed")))


def measured(cure: str, seed: int, target: float, stories: float) -> Measured:
    before = Losses(target=8.0, stories=1.5)
    return Measured(
        lesson="gsm8k",
        seed=seed,
        cure=cure,
        before=before,
        after=Losses(target=target, stories=stories),
        updates=40,
        cpu=20.0,
        seconds=30.0,
    )


FOUND = [
    measured(PLAIN, 0, 2.0, 2.5),
    measured(PLAIN, 1, 4.0, 1.7),
    measured("replay 5%", 0, 2.0, 1.6),  # 0.9 of a rise of 1
    measured("replay 5%", 1, 4.1, 1.54),  # 0.8 of a rise of 0.2
    measured("replay 10%", 0, 2.2, 1.5),
    measured("replay 10%", 1, 4.4, 1.5),
]


def test_what_is_undone_is_paired_by_seed() -> None:
    plain, some, all_of_it = undone.outcomes(FOUND)
    assert (plain.undone.mean, plain.worse.mean) == (0.0, 0.0)
    assert some.undone.mean == pytest.approx(0.85), "of the means it would be 0.883"
    assert (some.undone.low, some.undone.high) == (pytest.approx(0.8), pytest.approx(0.9))
    assert some.worse.mean == pytest.approx(0.0125)
    assert all_of_it.undone.mean == pytest.approx(1.0)
    assert all_of_it.worse.mean == pytest.approx(0.1)
    assert some.stories.error == pytest.approx(0.03)


def test_the_claim_takes_both_of_its_numbers() -> None:
    said = list(undone.verdicts(undone.outcomes(FOUND)))
    assert said == [
        "replay 5%: 85% undone at +1.2% target loss, as claimed",
        "replay 10%: 100% undone at +10.0% target loss, not as claimed",
    ]


def test_the_table_has_a_line_for_each_and_says_whom_nobody_beats() -> None:
    lines = undone.table(undone.outcomes(FOUND)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [PLAIN, "replay 5%", "replay 10%"]
    assert [line.split("|")[6].strip() for line in lines[2:]] == ["yes", "yes", "yes"]
    assert "85% (80 to 90)" in lines[3]
    assert "±" not in undone.table(undone.outcomes(FOUND[:1]))


def test_where_plain_training_forgets_nothing_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="forgot nothing"):
        undone.outcomes([measured(PLAIN, 0, 2.0, 1.5)])


def test_the_picture_is_a_file_of_its_own() -> None:
    drawn = ElementTree.fromstring(undone.picture(undone.outcomes(FOUND), 1.5))
    svg = "{http://www.w3.org/2000/svg}"
    assert drawn.tag == f"{svg}svg"
    assert {PLAIN, "replay 5%", "replay 10%"} <= {text.text for text in drawn.iter(f"{svg}text")}
    style = drawn.find(f"{svg}style")
    assert style is not None
    assert style.text is not None
    assert ".ring {" in style.text


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(model=tmp_path / "model", work=tmp_path, lr=1e-3, epochs=2.0, batch=8)


def test_every_cure_is_a_recipe_and_another_one(setting: Setting) -> None:
    trials = [trial(setting, "gsm8k", 0, ROWS, cure) for cure in CURES if cure.blended is None]
    assert len({json.dumps(one.recipe, sort_keys=True) for one in trials}) == len(trials) > 10
    for one in trials:
        load_recipe(one.recipe, {})
    assert trial(setting, "gsm8k", 1, ROWS, CURES[0]).folder != trials[0].folder


def test_fisher_information_is_not_estimated_on_the_stories_that_judge_it(setting: Setting) -> None:
    (cure, *_) = [cure for cure in CURES if cure.needs_fisher]
    one, source = trial(setting, "gsm8k", 0, ROWS, cure), fisher(setting, "gsm8k", 0, ROWS)
    assert one.recipe["optim"]["pulls"]["file"] == str(source.folder / "fisher.safetensors")
    assert one.recipe["data"]["retention"] == str(ROWS.kept)
    assert str(ROWS.kept) not in json.dumps(source.recipe)
    load_recipe(source.recipe, {})


def test_names_of_cures_bring_plain_training_along() -> None:
    assert [cure.name for cure in named(["replay 5%"])] == [PLAIN, "replay 5%"]
    with pytest.raises(KeyError, match="magic"):
        named(["magic"])


def test_what_is_done_is_read_and_blends_do_not_take_the_run_away(setting: Setting) -> None:
    plain = trial(setting, "gsm8k", 0, ROWS, CURES[0])
    mixed = blends(plain, [cure for cure in CURES if cure.blended is not None])
    assert done(plain) == done(mixed) == []
    for one in (plain, mixed):
        stand(one)
    assert [one.cure for one in done(plain)] == [PLAIN]
    assert [one.cure for one in done(mixed)] == ["blend 0.75", "blend 0.5", "blend 0.25"]
    remove(mixed)
    assert done(mixed) == []
    assert done(plain)
    assert plain.folder.exists()
    remove(plain)
    assert done(plain) == []
    assert not plain.folder.exists()


def stand(one: Trial) -> None:
    one.folder.mkdir(parents=True, exist_ok=True)
    for cure in one.cures:
        write_record(one.folder.parent / "measured" / f"{one.folder.name} {cure}.json", measured(cure, 0, 2.0, 2.0))


def test_rows_are_drawn_by_the_seed_and_stories_of_both_kinds_differ(tmp_path: Path) -> None:
    for name in (SHAKESPEARE.train, SHAKESPEARE.heldout):
        write(tmp_path / name, [f"{name} {number}" for number in range(30)])
    for name in ("train", "val"):
        write(tmp_path / f"data/tinystories/{name}.norm.jsonl", [f"{name} {number}" for number in range(9)])
    amounts = Amounts(rows=50, heldout=10, kept=4, replayed=6)
    first, same, other = (material(SHAKESPEARE, seed, amounts, tmp_path, tmp_path / "work") for seed in (0, 0, 1))
    assert first == same
    assert first.train != other.train
    assert (first.heldout, first.kept, first.replayed) == (other.heldout, other.kept, other.replayed)
    counts = [len(path.read_text().splitlines()) for path in (first.train, first.heldout, first.kept, first.replayed)]
    assert counts == [10, 2, 4, 6], "five examples are cut from each row"
    write(tmp_path / "data/tinystories/train.norm.jsonl", ["val 3"])
    with pytest.raises(ValueError, match="kept back are replayed too"):
        material(SHAKESPEARE, 0, amounts, tmp_path, tmp_path / "work")


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smallest_setting_and_again(tmp_path: Path, shared: Path) -> None:
    words = "-m benchmarks.forgetting --lessons gsm8k --seeds 0 --rows 16 --heldout 4 --kept 4 --replayed 8".split()
    words += ["--cures", "replay 10%", "blend 0.5", "--shared", str(shared), "--work", str(tmp_path / "work")]
    words += ["--results", str(tmp_path), "--images", str(tmp_path), "--processes", "1"]
    first, second = (
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "2 of 2: gsm8k, seed 0, replay 10%" in first.stderr
    assert " of " not in second.stderr, "what is done is not done again"
    for cure in (PLAIN, "replay 10%", "blend 0.5"):
        assert f"| {cure} " in first.stdout
    assert "- measured: replay 10%: " in first.stdout
    found = json.loads(next(tmp_path.glob("forgetting-*.json")).read_text())
    losses = {one["cure"]: one["after"] for one in found["measured"]}
    assert losses[PLAIN]["stories"] > losses["blend 0.5"]["stories"] > found["measured"][0]["before"]["stories"]
    assert str(tmp_path) not in json.dumps(found) + first.stdout
    assert ElementTree.parse(tmp_path / "forgetting-gsm8k.svg").getroot().tag.endswith("svg")
