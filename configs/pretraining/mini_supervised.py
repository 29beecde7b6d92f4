"""Supervised pretraining on the miniature, for about the compute of the MAE runs.

It sees every patch of an image where MAE's encoder sees a quarter, so it gets fewer images.

Differs from arXiv:2111.06377 Table 11 in size and schedule, and leaves out RandAugment, mixup,
cutmix and EMA: at this length they only slow the fit.
"""

recipe = {
    "data": {
        "image_size": 48,
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 1.0,
        "rand_augment": "",
        "val_images": 600,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "drop_path_rate": 0.0,
        "label_smoothing": 0.1,
        "mixup": 0.0,
        "cutmix": 0.0,
        "ema_decay": 0.0,
    },
    "solver": {
        "epochs": None,
        "iterations": 1000,
        "batch_size": 64,
        "accumulation": 1,
        "base_lr": 4e-3,
        "min_lr": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "layer_decay": 1.0,
        "warmup_epochs": None,
        "warmup_iterations": 100,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 0,
        "prefetch": 2,
        "save_every": 250,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
