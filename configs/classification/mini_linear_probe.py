"""Linear probe on frozen features of the miniature.

As in arXiv:2111.06377 Table 10: no weight decay, BatchNorm without affine parameters, crops and
flips only. Differs: SGD, which the caption says works similarly at smaller batches (LARS's trust
ratio wants more steps than there are here), mean-pooled features instead of the class token, the
usual random crop, a short schedule.
"""

recipe = {
    "data": {
        "image_size": 64,
        "crop_scale": [0.35, 1.0],
        "crop_ratio": 1.0,
        "augmentation": "random",
        "rand_augment": "",
        "erasing": 0.0,
        "val_images": None,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "pool": "mean",
        "frozen": True,
        "trained_blocks": None,
        "drop_path_rate": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "label_smoothing": 0.0,
        "head_std": 0.01,
        "ema_decay": None,
    },
    "solver": {
        "iterations": 150,
        "batch_size": 32,
        "accumulation": 1,
        "base_lr": 0.8,
        "min_lr": 0.0,
        "optimizer": "sgd",
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
