"""Recipes at paper scale against the published values, and the tables that use them."""

import pytest
import torch
from tiny_classification import write_set

from mae_bench.job import Job
from mae_bench.plan import Planner, load_tables, plan_transfer
from mae_bench.recipes import list_recipes, load_recipe
from tasks import TASKS, engine

B, L, H = "vit_base_patch16", "vit_large_patch16", "vit_huge_patch14"
TABLES = ("table3", "table6", "table12", "fig9")


@pytest.mark.parametrize(
    ("recipe", "backbone", "lr", "layer_decay", "epochs", "drop_path"),
    [
        ("finetune", B, 2e-3, 0.65, 100, 0.1),
        ("finetune", L, 4e-3, 0.75, 50, 0.2),
        ("finetune", H, 4e-3, 0.75, 50, 0.3),
        ("finetune_paper", B, 4e-3, 0.75, 100, 0.1),
        ("finetune_paper", L, 4e-3, 0.75, 50, 0.1),
        ("finetune_paper", H, 4e-3, 0.75, 50, 0.2),
        ("linear_probe", B, 6.4, 1.0, 90, 0.0),
        ("linear_probe", H, 6.4, 1.0, 90, 0.0),
    ],
)
def test_published_values(recipe, backbone, lr, layer_decay, epochs, drop_path):
    """arXiv:2111.06377 Tables 9 and 10; facebookresearch/mae FINETUNE.md."""
    found = load_recipe(f"classification/{recipe}", backbone=backbone, init="mae-norm-pixel")
    solver = found["solver"]
    assert engine.scaled_lr(solver["base_lr"], solver["batch_size"]) == pytest.approx(lr)
    assert (solver["layer_decay"], solver["epochs"]) == (layer_decay, epochs)
    assert found["model"]["drop_path_rate"] == drop_path
    assert found["data"]["erasing"] == (0.25 if recipe == "finetune" else 0.0)
    assert found["model"]["pool"] == ("mean" if recipe == "finetune" else "token")


@pytest.mark.parametrize(("backbone", "epochs"), [(B, 300), (L, 200), (H, 200)])
def test_from_scratch_it_is_the_recipe_of_supervised_pretraining(backbone, epochs):
    found = load_recipe("classification/finetune", backbone=backbone, init="random")
    other = load_recipe("pretraining/supervised", backbone=backbone)
    assert found["solver"]["epochs"] == epochs
    for section in ("model", "solver"):
        shared = found[section].keys() & other[section].keys()
        assert {k: found[section][k] for k in shared} == {k: other[section][k] for k in shared}


def test_all_recipes_have_the_same_keys():
    """What is overridden in one can be overridden in all."""

    def shape(name):
        return {section: set(values) for section, values in load_recipe(name).items()}

    epochs = {"epochs", "warmup_epochs"}
    first = shape("classification/finetune")
    for name in list_recipes():
        if name.startswith("classification/"):
            found = shape(name)
            assert found["data"] == first["data"] and found["model"] == first["model"], name
            assert found["solver"] | epochs == first["solver"] | epochs, name


def test_own_images_are_read_at_the_size_of_the_encoder():
    for recipe in ("classification/own_data", "frozen/paper"):
        for backbone, size in (("vit_mini_patch8", 64), (B, 224)):
            assert load_recipe(recipe, backbone=backbone)["data"]["image_size"] == size


def test_figure_9_trains_what_it_says():
    columns = load_tables(["fig9"])[0].columns
    tuned = [column.scales["paper"].overrides.get("model.trained_blocks") for column in columns]
    assert tuned == [None, 0.5, 1, 2, 4, 6, 12, 18, None]
    assert [column.x for column in columns] == [0, 0.5, 1, 2, 4, 6, 12, 18, 24]
    recipes = [column.scales["paper"].recipe.rpartition("/")[2] for column in columns]
    assert recipes == ["linear_probe"] + ["finetune_paper"] * 8
    mini = [column.scales.get("mini") for column in columns]
    assert [s and s.overrides.get("model.trained_blocks") for s in mini] == [
        *(None, 0.5, 1, 2, None),
        *[None] * 4,
    ]
    assert [s is not None for s in mini] == [True] * 5 + [False] * 4


def settings():
    """Every different (task, recipe, overrides) of the tables at paper scale; 448 px once."""
    found = {}
    for table in load_tables(TABLES):
        for column in table.columns:
            setting = column.scales["paper"]
            # How long a point trains makes no difference here.
            overrides = {k: v for k, v in setting.overrides.items() if k != "solver.epochs"}
            large = "data.image_size" in overrides
            recipe = "any recipe" if large else setting.recipe
            found.setdefault((column.task, recipe, str(overrides)), setting)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", settings(), ids=lambda what: " ".join(what[1:]))
def test_every_setting_trains_on_a_stand_in(tmp_path, what):
    """Two steps on a folder of images, with a small encoder and small batches."""
    torch.set_num_threads(1)
    setting, task = settings()[what], what[0]
    large = "data.image_size" in setting.overrides
    overrides = {"solver.batch_size": 2, "solver.num_workers": 0}
    if task == "frozen":
        overrides |= {"model.neighbours": 2, "model.shots": [1]}
    else:
        overrides |= {"solver.iterations": 2, "solver.warmup_iterations": 1}
    if not large:
        overrides["data.image_size"] = 32
    stand_in = setting.model_copy(
        update={
            "dataset": f"imagefolder:{write_set(tmp_path / 'images', train=2, val=1, classes=2)}",
            # 18 trained blocks need an encoder that has them; they are split on its width alone.
            "backbones": ("vit_tiny_patch16" if large else "vit_mini_patch8",),
            "overrides": {
                key: min(value, 4) if key == "model.trained_blocks" and value else value
                for key, value in setting.overrides.items()
            },
        }
    )
    planner = Planner("paper", tmp_path, overrides, False, {})
    (planned,) = plan_transfer(planner, task, stand_in, "random", 0).runs
    folder = tmp_path / "run"
    folder.mkdir()
    outcome = TASKS[task](Job(planned.run, folder, tmp_path))
    assert outcome.metrics and all(0 <= m.value <= 100 for m in outcome.metrics.values())
