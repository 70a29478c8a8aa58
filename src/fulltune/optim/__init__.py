"""How weights move: groups, optimizers, schedules, pulls."""
