"""End-to-end fine-tuning on the miniature (iNat, Places, ImageNet).

As in arXiv:2111.06377 Table 9: AdamW, layer-wise lr decay, mean-pooled features, label smoothing,
drop path. Differs in size and schedule, and leaves out RandAugment, erasing, mixup and cutmix: a
few hundred steps on a few hundred images do not need them.
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
        "frozen": False,
        "drop_path_rate": 0.1,
        "label_smoothing": 0.1,
        "head_std": 2e-5,
    },
    "solver": {
        "iterations": 220,
        "batch_size": 32,
        "accumulation": 1,
        "base_lr": 2e-2,
        "min_lr": 1e-6,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "warmup_iterations": 25,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 0,
        "prefetch": 2,
        "save_every": 100,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 32}
