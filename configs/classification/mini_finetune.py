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
        "augmentation": "random",
        "rand_augment": "",
        "erasing": 0.0,
        "val_images": None,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "pool": "mean",
        "frozen": False,
        "trained_blocks": None,
        "drop_path_rate": 0.1,
        "mixup": 0.0,
        "cutmix": 0.0,
        "label_smoothing": 0.1,
        "head_std": 2e-5,
        "ema_decay": None,
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

protocol = {
    "paper": "arXiv:2111.06377 Table 9",
    "code": "facebookresearch/mae FINETUNE.md, main_finetune.py",
    "lr_trials": {"ours": 1},
    "settings": {
        "optimizer": {"key": "solver.optimizer", "paper": "adamw", "code": "adamw"},
        "betas": {"key": "solver.betas", "paper": [0.9, 0.999], "code": [0.9, 0.999]},
        "weight decay": {"key": "solver.weight_decay", "paper": 0.05, "code": 0.05},
        "base lr, per 256 images": {"key": "solver.base_lr", "paper": 1e-3, "code": 5e-4},
        "layer-wise lr decay": {"key": "solver.layer_decay", "paper": 0.75, "code": 0.65},
        "batch": {"key": "solver.batch_size", "paper": 1024, "code": 1024},
        "length": {
            "ours": "220 iterations",
            "paper": "100 epochs (B), 50 (L, H)",
            "code": "100 epochs (B), 50 (L, H)",
        },
        "image size": {"key": "data.image_size", "paper": 224, "code": 224},
        "drop path": {"key": "model.drop_path_rate", "paper": 0.1, "code": 0.1},
        "label smoothing": {"key": "model.label_smoothing", "paper": 0.1, "code": 0.1},
        "RandAugment, mixup, cutmix": {"ours": "none", "paper": "9 / 0.5, 0.8, 1.0"},
        "features": {"ours": "mean of patches", "paper": "class token", "code": "mean of patches"},
    },
}
