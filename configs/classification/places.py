"""Fine-tuning on Places205 and Places365: not published; ours.

The paper fine-tunes with the setting of its Table 9, lr and number of epochs adjusted for each
dataset, and gives neither (arXiv:2111.06377 A.5). Ours: Table 9, 50 epochs for ViT-B and 25 for
ViT-L and ViT-H, since these sets are larger than ImageNet, and erasing 0.1. Nothing was searched.
The nearest documented recipe is DeiT-B's for iNaturalist, cited in `inat`.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": 0.875,
        "augmentation": "random",
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.1,
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "pool": "mean",
        "frozen": False,
        "trained_blocks": None,
        "drop_path_rate": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "head_std": 2e-5,
        "ema_decay": None,
    },
    "solver": {
        "epochs": 50,
        "iterations": None,
        "batch_size": 1024,
        "accumulation": 1,
        "base_lr": 1e-3,
        "min_lr": 1e-6,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        "layer_decay": 0.75,
        "warmup_epochs": 5,
        "warmup_iterations": None,
        "amp": "bfloat16",
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 8,
        "prefetch": 2,
        "save_every": 1000,
    },
}
variants = [
    ({"backbone": "vit_large*"}, {"solver.epochs": 25}),
    ({"backbone": "vit_huge*"}, {"model.drop_path_rate": 0.2, "solver.epochs": 25}),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
protocol = {
    "paper": "arXiv:2111.06377 A.5: Table 9, lr and epochs adjusted per dataset (not published)",
    "settings": {
        "optimizer": {"key": "solver.optimizer", "paper": "adamw"},
        "betas": {"key": "solver.betas", "paper": [0.9, 0.999]},
        "weight decay": {"key": "solver.weight_decay", "paper": 0.05},
        "base learning rate": {"key": "solver.base_lr"},
        "layer-wise decay": {"key": "solver.layer_decay", "paper": 0.75},
        "batch": {"key": "solver.batch_size", "paper": 1024},
        "epochs": {"key": "solver.epochs"},
        "warm-up epochs": {"key": "solver.warmup_epochs", "paper": 5},
        "drop path": {"key": "model.drop_path_rate", "paper": {"vit_huge*": 0.2, "*": 0.1}},
        "label smoothing": {"key": "model.label_smoothing", "paper": 0.1},
        "mixup": {"key": "model.mixup", "paper": 0.8},
        "cutmix": {"key": "model.cutmix", "paper": 1.0},
    },
}
