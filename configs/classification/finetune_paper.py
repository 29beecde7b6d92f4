"""End-to-end fine-tuning on ImageNet-1K as the paper's Table 9 has it.

Behind the paper's ablations (Table 1, Figures 5, 7 and 9): raw pixels, 800 epochs. The class token
is what its TPU code classifies with. `model.trained_blocks` trains the last blocks only (Figure 9).

Source: arXiv:2111.06377 Table 9, A.1. Where the table is silent: crops of scale 0.08-1, two
operations of RandAugment, min_lr 1e-6 and the head's initialisation of facebookresearch/mae.
Differs: bfloat16 mixed precision; the authors' TPU code has no explicit one.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": 0.875,
        "augmentation": "random",
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.0,
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "pool": "token",
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
        "epochs": 100,
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
    ({"backbone": "vit_large*"}, {"solver.epochs": 50}),
    ({"backbone": "vit_huge*"}, {"model.drop_path_rate": 0.2, "solver.epochs": 50}),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
protocol = {
    "paper": "arXiv:2111.06377 Table 9, A.1",
    "code": "facebookresearch/mae FINETUNE.md, main_finetune.py",
    "settings": {
        "optimizer": {"key": "solver.optimizer", "paper": "adamw", "code": "adamw"},
        "betas": {"key": "solver.betas", "paper": [0.9, 0.999], "code": [0.9, 0.999]},
        "weight decay": {"key": "solver.weight_decay", "paper": 0.05, "code": 0.05},
        "base learning rate": {
            "key": "solver.base_lr",
            "paper": 1e-3,
            "code": {"vit_base*": 5e-4, "*": 1e-3},
        },
        "layer-wise decay": {
            "key": "solver.layer_decay",
            "paper": 0.75,
            "code": {"vit_base*": 0.65, "*": 0.75},
        },
        "batch": {"key": "solver.batch_size", "paper": 1024, "code": 1024},
        "epochs": {
            "key": "solver.epochs",
            "paper": {"vit_base*": 100, "*": 50},
            "code": {"vit_base*": 100, "*": 50},
        },
        "warm-up epochs": {"key": "solver.warmup_epochs", "paper": 5, "code": 5},
        "drop path": {
            "key": "model.drop_path_rate",
            "paper": {"vit_huge*": 0.2, "*": 0.1},
            "code": {"vit_base*": 0.1, "vit_large*": 0.2, "vit_huge*": 0.3},
        },
        "RandAugment": {"ours": "9, 0.5", "paper": "9, 0.5", "code": "9, 0.5"},
        "random erasing": {"key": "data.erasing", "code": 0.25},
        "label smoothing": {"key": "model.label_smoothing", "paper": 0.1, "code": 0.1},
        "mixup": {"key": "model.mixup", "paper": 0.8, "code": 0.8},
        "cutmix": {"key": "model.cutmix", "paper": 1.0, "code": 1.0},
        "pooling": {"key": "model.pool", "paper": "token", "code": "mean"},
        "precision": {"key": "solver.amp", "code": "float16"},
    },
}
