"""Labels that are slips of others."""

from fulltune.data.labels import Labels


def found(counts: dict[str | int, int]) -> set[tuple[str, str]]:
    labels = Labels()
    for label, count in counts.items():
        for number in range(count):
            labels.add(label, f"{label}:{number}")
    return {(where, fault.code) for where, fault in labels.faults()}


def test_slips_are_named_with_what_they_mean() -> None:
    slips = {"Spam": 1, "spam ": 1, "hma": 2, 0: 1}
    assert found({"spam": 40, "ham": 60, **slips}) == {
        ("Spam:0", "label"),
        ("spam :0", "label"),
        ("hma:0", "label"),
        ("hma:1", "label"),
        ("0:0", "type"),
    }


def test_classes_that_are_meant_are_left_alone() -> None:
    assert found({"spam": 40, "Spam": 30}) == set(), "as frequent as the other: a class, however odd"
    assert found({"on": 90, "no": 1, "A1": 90, "1A": 1}) == set()
    assert found({0: 50, 1: 50, 10: 1}) == set()
    assert found({"grade 12": 90, "grade 21": 1}) == set(), "numbers are no misspellings of each other"
    assert found({}) == set()


def test_every_row_of_a_slip_is_told_once() -> None:
    named = {(f"Spam:{number}", "label") for number in range(30)}
    assert found({"spam": 100, "Spam": 30}) == named
    labels = Labels()
    for number in range(50):
        labels.add("spam", str(number))
    for label in ("Spam", "psam", "SPAM"):
        labels.add(label, "a row of several labels")
    assert [where for where, _ in labels.faults()] == ["a row of several labels"]
