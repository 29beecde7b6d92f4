"""Protocol cards: our side comes from what was run; every recipe's literal has the form."""

from __future__ import annotations

import pytest

from mae_bench import protocol
from mae_bench.errors import UserError
from mae_bench.recipes import keys, list_recipes, load_recipe

RECIPE = "classification/mini_finetune"
BOTH = {"random": 1.6e-4, "vit_large*": 3e-4, "*": 8e-5}


def card_of(monkeypatch: pytest.MonkeyPatch, literal: object, **run: object) -> protocol.Card:
    monkeypatch.setattr(protocol, "protocol_of", lambda name: literal)
    facts = {"values": {"solver": {"lr": 8e-5}}, "backbone": "vit_base_patch16", "init": "beit"}
    return protocol.card("a/b", **{**facts, **run})


def lines(card: protocol.Card) -> dict[str, protocol.Line]:
    return {line.name: line for line in card.lines}


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_has_a_protocol_of_the_right_form_or_none(recipe: str):
    known = set(keys(load_recipe(recipe)))
    found = protocol.read(recipe)
    named = {item.key for item in found.settings.values() if item.key}
    assert named <= known
    if found.settings:
        assert found.paper
        assert protocol.card(recipe, load_recipe(recipe), "vit_base_patch16", "random").lines


@pytest.mark.parametrize(
    ("init", "backbone", "paper", "differs"),
    [
        ("beit", "vit_base_patch16", "8e-05", False),
        ("random", "vit_base_patch16", "0.00016", True),
        ("beit", "vit_large_patch16", "0.0003", True),
    ],
)
def test_a_value_may_depend_on_init_and_backbone(monkeypatch, init, backbone, paper, differs):
    literal = {"settings": {"lr": {"key": "solver.lr", "paper": BOTH}}}
    line = lines(card_of(monkeypatch, literal, init=init, backbone=backbone))["lr"]
    assert (line.paper, line.ours, line.differs) == (paper, "8e-05", differs)


@pytest.mark.parametrize(
    ("ours", "paper", "differs"),
    [
        (0.1, 0.1 + 1e-17, False),
        (1, 1.0, False),
        ("AdamW", "adamw", False),
        ([0.9, 0.95], (0.9, 0.95), False),
        ([0.9, 0.95], [0.9, 0.999], True),
        (True, "yes", False),
        ("linear", "cosine", True),
        (1e-4, 1.1e-4, True),
        (7, None, None),
    ],
)
def test_what_differs(monkeypatch, ours, paper, differs):
    literal = {"settings": {"x": {"ours": ours, "paper": paper}}}
    assert lines(card_of(monkeypatch, literal))["x"].differs is differs


def test_no_value_in_the_recipe_is_the_paper_s_none(monkeypatch):
    literal = {"settings": {"amp": {"key": "solver.amp", "paper": "none"}}}
    line = lines(card_of(monkeypatch, literal, values={"solver": {"amp": None}}))["amp"]
    assert (line.ours, line.differs) == ("none", False)


def test_the_code_counts_where_the_paper_is_silent(monkeypatch):
    literal = {"settings": {"x": {"ours": 1, "code": 2}}}
    card = card_of(monkeypatch, literal)
    assert [line.name for line in card.differences] == ["x"]
    assert lines(card)["x"].paper == "not stated"


def test_a_difference_is_marked_on_the_side_it_is_from(monkeypatch):
    literal = {"settings": {"lr decay": {"ours": 0.65, "paper": 0.75, "code": 0.65}}}
    line = lines(card_of(monkeypatch, literal))["lr decay"]
    assert (line.not_paper, line.not_code, line.differs) == (True, False, True)


def test_our_side_is_what_was_run():
    values = load_recipe(RECIPE, {"solver.layer_decay": 0.75, "solver.weight_decay": 0.3})
    found = lines(protocol.card(RECIPE, values, "vit_mini_patch8", "random"))
    assert found["weight decay"].ours == "0.3" and found["weight decay"].differs
    assert found["layer-wise lr decay"].differs is False


def test_budget_and_trials(monkeypatch):
    literal = {"lr_trials": {"ours": {"random": 3, "*": 1}, "paper": "searched"}}
    values = {"solver": {"epochs": 100, "iterations": None, "batch_size": 64}}
    card = card_of(monkeypatch, literal, values=values, init="random")
    assert (card.budget, card.lr_trials) == ("100 epochs, batches of 64", 3)
    assert lines(card)["learning rates tried"].differs
    values = {"solver": {"epochs": 800, "iterations": 12, "batch_size": 4}}
    assert protocol.budget(values) == "12 iterations, batches of 4"
    assert protocol.budget({}) == ""


@pytest.mark.parametrize(
    ("literal", "message"),
    [
        ({"settings": {"x": {"paper": 1}}}, r"settings\.x.*either `key` or `ours`"),
        ({"settings": {"x": {"ours": 1, "papr": 1}}}, r"settings\.x\.papr"),
        ({"sources": "x"}, "at sources"),
    ],
)
def test_a_literal_of_another_form_is_refused(monkeypatch, literal, message):
    with pytest.raises(UserError, match=message):
        card_of(monkeypatch, literal)


def test_a_record_older_than_a_key(monkeypatch):
    literal = {"settings": {"x": {"key": "solver.new", "paper": 1}}}
    assert lines(card_of(monkeypatch, literal))["x"].ours == "not recorded"
