"""UperNet on the miniature ADE20K over a frozen encoder: `mini.py` with `freeze_backbone` set.

Ours, without a published counterpart: how much of the score is the pretrained features' own.
"""

recipe = {
    "data": {
        "image_size": 96,  # px of the short side before jitter; the long side at most 4 times that
        "crop_size": 64,  # px
        "scale_range": [
            0.75,
            1.5,
        ],  # 0.5 to 2 at 512 px; half of 96 px leaves too little of a thing
        "class_max_share": 0.75,  # of a crop that one class may cover
        "cache": True,  # keep the decoded images in memory
    },
    "model": {
        "taps": None,  # 0-based blocks; None for the last of each quarter
        "scales": [4, 2, 1, 0.5],
        "pool_scales": [1, 2, 3, 6],
        "channels": 32,  # of UPerHead; the encoder's width at paper scale
        "aux_channels": 32,
        "aux_weight": 0.4,
        "dropout": 0.1,
        "drop_path_rate": 0.0,
        "freeze_backbone": True,
    },
    "solver": {
        "iterations": 450,
        "batch_size": 8,
        "lr": 4e-3,  # absolute
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        "layer_decay": 0.5,
        "warmup_iterations": 45,
        "amp": None,
        "num_workers": 0,
        "save_every": 150,
    },
    "test": {
        "mode": "whole",  # or "slide", with windows of crop_size
        "stride": 42,  # px between windows
        "max_images": None,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "test.max_images": 4}

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import mmseg_config  # noqa: E402

globals().update(mmseg_config(recipe))
