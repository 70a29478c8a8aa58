"""What counts as a change between the recipe that a run began with and the one it goes on with."""

from fulltune.recipe.changes import Change, differences

_BEGAN = {"train": {"steps": 3}, "optim": {"name": "sgd"}}


def test_a_field_that_the_older_version_did_not_know_had_the_default() -> None:
    """Else an update of fulltune would make another run of every run that is not done."""
    now = {"train": {"steps": 3, "kl_top": 64, "compile": False}, "optim": {"name": "sgd"}}
    assert differences(_BEGAN, now) == ()
    now["train"]["kl_top"] = 32
    assert differences(_BEGAN, now) == (Change("train.kl_top", 64, 32),)


def test_what_a_default_changed_under_a_run_is_a_change() -> None:
    """What was written down counts, not what the default is today."""
    now = {"train": {"steps": 3}, "optim": {"name": "adamw"}}
    assert differences(_BEGAN, now) == (Change("optim.name", "sgd", "adamw"),)
    assert differences(now, {"optim": {"name": "adamw"}}) == (Change("train.steps", 3, None),)


def test_what_data_depends_on_has_no_defaults() -> None:
    [change] = differences({}, {"train": {"compile": False}}, settings=False)
    assert change == Change("train.compile", None, False, is_setting=False)
