"""UperNet as BEiT's repository has it at 512 px; the differences from `upernet`.

ViT-B from pretraining (lr 7e-4), ViT-L after intermediate fine-tuning (lr 2e-5, layer decay 0.95).
Positions are relative only; positions and tables are decayed, as the exemption never met their
names; fp16.

Source: microsoft/unilm beit/semantic_segmentation/configs/beit/upernet, `_pt` and `_pt2ft`.
"""

base = "segmentation/upernet"

variants = [
    ({}, {"solver.decay_rule": "beit-seg", "solver.amp": "float16", "solver.lr": 7e-4}),
    (
        {"backbone": "*_large_patch*"},
        {"solver.lr": 2e-5, "solver.layer_decay": 0.95, "model.drop_path_rate": 0.2},
    ),
    ({"backbone": "vit_base_patch16"}, {"model.architecture": "beit_base_patch16"}),
    ({"backbone": "vit_large_patch16"}, {"model.architecture": "beit_large_patch16"}),
    ({}, {"model.layer_scale": None, "reference.curve": None}),
]

protocol = {
    "settings": {
        "no weight decay": {
            "ours": "one-dimensional; positions and class token by a name that never matches",
            "code": "one-dimensional; positions and class token by a name that never matches",
        },
        "learning rate": {"key": "solver.lr", "code": {"*large*": 2e-5, "*base*": 7e-4}},
        "layer-wise lr decay": {
            "key": "solver.layer_decay",
            "code": {"*large*": 0.95, "*base*": 0.65},
        },
        "layer scale": {
            "ours": {"*large*": 1e-5, "*base*": 0.1},
            "code": {"*large*": 1e-6, "*base*": 0.1},
        },
    },
}

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import config_of  # noqa: E402

globals().update(config_of("segmentation/upernet_beit", backbone="vit_base_patch16"))
