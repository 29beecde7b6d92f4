"""Linear probe on frozen features of the miniature.

As in arXiv:2111.06377 Table 10: LARS without weight decay, BatchNorm without affine parameters,
crops and flips only. Differs: mean-pooled features instead of the class token, a short schedule.
"""

recipe = {
    "data": {
        "image_size": 64,
        "crop_scale": [0.35, 1.0],
        "crop_ratio": 1.0,
        "val_images": None,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "pool": "mean",
        "frozen": True,
        "drop_path_rate": 0.0,
        "label_smoothing": 0.0,
        "head_std": 0.01,
    },
    "solver": {
        "iterations": 150,
        "batch_size": 32,
        "accumulation": 1,
        "base_lr": 0.8,
        "min_lr": 0.0,
        "optimizer": "lars",
        "betas": [0.9, 0.0],
        "weight_decay": 0.0,
        "layer_decay": 1.0,
        "warmup_iterations": 15,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 0,
        "prefetch": 2,
        "save_every": 100,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 32}
