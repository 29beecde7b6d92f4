"""UperNet with MAE's ViT-B as one of its authors stated it for facebookresearch/long_seq_mae.

lr 8e-5, layer decay 0.8, drop path 0.1, 160k iterations of 16 images; what he does not state is as
in `upernet`.

Source: R. Hu in facebookresearch/long_seq_mae#1.
"""

base = "segmentation/upernet"

variants = [({}, {"solver.lr": 8e-5, "solver.layer_decay": 0.8, "reference.curve": None})]

protocol = {
    "settings": {
        "learning rate": {"key": "solver.lr", "code": {"*base*": 8e-5}},
        "layer-wise lr decay": {"key": "solver.layer_decay", "code": {"*base*": 0.8}},
    },
}

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import config_of  # noqa: E402

globals().update(config_of("segmentation/upernet_fair", backbone="vit_base_patch16"))
