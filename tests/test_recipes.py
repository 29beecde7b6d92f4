"""Recipes are data: readable without their engine, overridden only where a key exists."""

import pytest

from mae_bench import recipes
from mae_bench.errors import UserError
from mae_bench.recipes import LOWEST, keys, list_recipes, load_recipe, parse_override, set_key

# Frozen features are scored, not trained.
TRAINED = [name for name in list_recipes() if not name.startswith("frozen/")]


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_loads_and_smoke_makes_it_two_iterations(name: str) -> None:
    full, smoke = load_recipe(name), load_recipe(name, smoke=True)
    assert smoke["solver"]["iterations"] == 2
    # None: as many as the epochs make.
    assert full["solver"]["iterations"] is None or full["solver"]["iterations"] > 2
    assert set(keys(full)) == set(keys(smoke))


def test_loading_gives_a_fresh_copy() -> None:
    name = list_recipes()[0]
    before = load_recipe(name)
    load_recipe(name)["solver"]["iterations"] = -1
    assert load_recipe(name) == before


def test_overrides_beat_smoke() -> None:
    name = list_recipes()[0]
    assert load_recipe(name, {"solver.iterations": 7}, smoke=True)["solver"]["iterations"] == 7


def test_variants_apply_to_their_backbones_and_inits(monkeypatch: pytest.MonkeyPatch) -> None:
    literals = {
        "recipe": {"solver": {"lr": 1.0, "epochs": 100}},
        "variants": [
            ({"backbone": "vit_large*"}, {"solver.epochs": 50}),
            ({"backbone": "vit_large*", "init": "random"}, {"solver.lr": 2.0}),
        ],
        "smoke": {"solver.epochs": 1},
    }
    monkeypatch.setattr(recipes, "_literals", lambda name: literals)

    def solver(**given: object) -> dict[str, object]:
        return load_recipe("x", **given)["solver"]

    assert solver() == {"lr": 1.0, "epochs": 100}
    assert solver(backbone="vit_base", init="random") == {"lr": 1.0, "epochs": 100}
    assert solver(backbone="vit_large_patch16") == {"lr": 1.0, "epochs": 50}
    large = {"backbone": "vit_large_patch16", "init": "random"}
    assert solver(**large) == {"lr": 2.0, "epochs": 50}
    assert solver(**large, smoke=True) == {"lr": 2.0, "epochs": 1}
    assert solver(**large, overrides={"solver.lr": 3}) == {"lr": 3.0, "epochs": 50}


@pytest.mark.parametrize("name", list_recipes())
def test_every_variant_sets_keys_that_exist(name: str) -> None:
    for conditions, changes in recipes._literals(name).get("variants", []):
        assert set(conditions) <= {"backbone", "init"}
        values = load_recipe(name)
        for key, value in changes.items():
            set_key(values, key, value, name)


def lengths(name: str, overrides: dict[str, object], **given: object) -> list[object]:
    solver = load_recipe(name, overrides, **given)["solver"]
    units = ("iterations", "epochs", "warmup_iterations", "warmup_epochs")
    return [solver[unit] for unit in units]


def test_of_two_lengths_the_later_one_counts() -> None:
    """Silently, iterations once won over the epochs that a user asked for."""
    epochs = {"solver.epochs": 5}
    assert lengths("segmentation/upernet", epochs) == [None, 5, 1500, None]
    assert lengths("segmentation/upernet", epochs, smoke=True) == [None, 5, 1, None]
    warm = {**epochs, "solver.warmup_epochs": 0.5}
    assert lengths("segmentation/upernet", warm) == [None, 5, None, 0.5]
    assert lengths("pretraining/mini_tokenizer", {}, setting=epochs) == [None, 5, 50, None]
    assert lengths("segmentation/own_data", epochs) == [None, 5, None, 2.5]
    steps = {"solver.iterations": 7}
    assert lengths("segmentation/own_data", steps) == [7, None, None, 2.5]
    assert lengths("segmentation/own_data", {}, smoke=True) == [2, None, 1, None]
    assert lengths("pretraining/mae", steps, init="mae-pixel/epochs-400") == [7, None, None, 40]
    # Given up on purpose, in either order.
    for both in ({"solver.iterations": None, **epochs}, {**epochs, "solver.iterations": None}):
        assert lengths("segmentation/upernet", both) == [None, 5, 1500, None]


@pytest.mark.parametrize("other", ["solver.epochs", "solver.iterations"])
def test_two_lengths_at_once_are_refused(other: str) -> None:
    both = {other: 5, "solver.iterations": 5, "solver.epochs": 5}
    with pytest.raises(UserError, match=r"=5 and solver\.\w+=5 of recipe .* give one of them"):
        load_recipe("segmentation/own_data", both)
    # Here they are two things: the steps that are timed, and what they are extrapolated to.
    timed = load_recipe("pretraining/wallclock", both)["solver"]
    assert (timed["iterations"], timed["epochs"]) == (5, 5)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown recipe 'detection/mimi'.*Did you mean detection/"
    ):
        load_recipe("detection/mimi")


VALUES = {"a": {"rate": 0.5, "steps": 3, "flag": True, "limit": None, "name": "x", "list": [1]}}


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("a.rate", 2, 2.0),
        ("a.steps", 4, 4),
        ("a.flag", False, False),
        ("a.limit", 5, 5),
        ("a.name", None, None),
        ("a.list", [2, 3], [2, 3]),
    ],
)
def test_set_key(key: str, value: object, stored: object) -> None:
    values = {"a": dict(VALUES["a"])}
    set_key(values, key, value, "r")
    found = values["a"][key.partition(".")[2]]
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("key", "value"),
    [("a.steps", 1.5), ("a.steps", "3"), ("a.steps", True), ("a.flag", 1), ("a.rate", True)],
)
def test_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=r"of recipe r is of type \w+; of type \w+ is needed"):
        set_key({"a": dict(VALUES["a"])}, key, value, "r")


@pytest.mark.parametrize("value", [-1, 0, None, True])
@pytest.mark.parametrize("key", ["solver.iterations", "solver.batch_size", "solver.save_every"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_no_training_can_do_is_refused(name: str, key: str, value: object) -> None:
    if key not in keys(load_recipe(name)):
        assert name.endswith("wallclock"), "only what is merely timed saves nothing"
        return
    in_epochs = "solver.warmup_epochs" in keys(load_recipe(name))
    if value is None and key == "solver.iterations" and in_epochs:
        assert load_recipe(name, {key: None})["solver"]["iterations"] is None
        return
    with pytest.raises(UserError, match=rf"override {key}={value} of recipe {name}.* is needed"):
        load_recipe(name, {key: value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_numbers_are_finite(value: str) -> None:
    key, number = parse_override(f"a.rate={value}")
    with pytest.raises(UserError, match=r"override a\.rate=.* of recipe r: a number is needed"):
        set_key({"a": dict(VALUES["a"])}, key, number, "r")


def test_lowest_numbers_are_of_keys_that_exist() -> None:
    known = {key for name in list_recipes() for key in keys(load_recipe(name))}
    assert set(LOWEST) <= known


@pytest.mark.parametrize("key", ["a.stps", "steps", "a", "a.steps.more", "b.rate", ""])
def test_unknown_key_lists_all(key: str) -> None:
    with pytest.raises(UserError, match=r"unknown override key .*Known: a\.flag, .*a\.steps"):
        set_key({"a": dict(VALUES["a"])}, key, 1, "r")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=1", 1),
        ("k=1e-3", 1e-3),
        ("k=[1, 2]", [1, 2]),
        ("k=true", True),
        ("k=None", None),
        ("k=null", None),
        ("k=adamw", "adamw"),
        ("k=a=b", "a=b"),
        ("k=", ""),
    ],
)
def test_parse_override(text: str, value: object) -> None:
    key, found = parse_override(text)
    assert (key, found, type(found)) == ("k", value, type(value))


@pytest.mark.parametrize("text", ["novalue", "=1", ""])
def test_parse_override_refuses(text: str) -> None:
    with pytest.raises(UserError, match="not of the form KEY=VALUE"):
        parse_override(text)
