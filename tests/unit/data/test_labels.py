"""Labels that are slips of others."""

from fulltune.data.labels import Label, label_faults


def found(counts: dict[Label, int]) -> dict[Label, str]:
    return {label: fault.code for label, fault in label_faults(counts).items()}


def test_slips_are_named_with_what_they_mean() -> None:
    slips = {"Spam": 1, "spam ": 1, "hma": 2, 0: 1}
    assert found({"spam": 40, "ham": 60, **slips}) == {"Spam": "label", "spam ": "label", "hma": "label", 0: "type"}


def test_classes_that_are_meant_are_left_alone() -> None:
    assert found({"spam": 40, "Spam": 30}) == {}, "as frequent as the other: a class, however odd"
    assert found({"on": 90, "no": 1, "A1": 90, "1A": 1}) == {}
    assert found({0: 50, 1: 50, 10: 1}) == {}
    assert found({"grade 12": 90, "grade 21": 1}) == {}, "numbers are no misspellings of each other"
    assert found({}) == {}


def test_a_slip_may_stand_in_many_rows() -> None:
    assert found({"spam": 100, "Spam": 30}) == {"Spam": "label"}
