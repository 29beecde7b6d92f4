"""End-to-end fine-tuning on ImageNet-1K as the official repository does it.

Behind the paper's Table 3: base lr, layer decay and drop path of the released commands, which
differ from the paper's own Table 9 (`finetune_paper`). Without weights (init `random`) the recipe
is that of training from scratch, with averaged weights.

Source: facebookresearch/mae FINETUNE.md, main_finetune.py; arXiv:2111.06377 Tables 9 and 11.
Differs: bfloat16 instead of fp16, in which ViT-H can overflow; the repository has no part for
training from scratch, so what Table 11 leaves open is as in `pretraining/supervised`.

At 448 px (ViT-H) give data.image_size=448 and data.crop_ratio=1.0; the authors' recipe for it was
never published.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": 0.875,
        "augmentation": "random",
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.25,
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
        "epochs": 100,
        "iterations": None,
        "batch_size": 1024,
        "accumulation": 1,
        "base_lr": 5e-4,
        "min_lr": 1e-6,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        "layer_decay": 0.65,
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
    (
        {"backbone": "vit_large*"},
        {
            "model.drop_path_rate": 0.2,
            "solver.epochs": 50,
            "solver.base_lr": 1e-3,
            "solver.layer_decay": 0.75,
        },
    ),
    (
        {"backbone": "vit_huge*"},
        {
            "model.drop_path_rate": 0.3,
            "solver.epochs": 50,
            "solver.base_lr": 1e-3,
            "solver.layer_decay": 0.75,
        },
    ),
    # The "scratch, our impl." row: no weights to keep, so Table 11 and A.2, with averaged weights.
    (
        {"init": "random"},
        {
            "data.erasing": 0.0,
            "model.pool": "token",
            "model.drop_path_rate": 0.1,
            "model.head_std": 0.01,
            "model.ema_decay": 0.9999,
            "solver.epochs": 300,
            "solver.batch_size": 4096,
            "solver.base_lr": 1e-4,
            "solver.min_lr": 0.0,
            "solver.betas": [0.9, 0.95],
            "solver.weight_decay": 0.3,
            "solver.layer_decay": 1.0,
            "solver.warmup_epochs": 20,
        },
    ),
    (
        {"init": "random", "backbone": "vit_large*"},
        {"model.drop_path_rate": 0.2, "solver.epochs": 200},
    ),
    (
        {"init": "random", "backbone": "vit_huge*"},
        {"model.drop_path_rate": 0.2, "solver.epochs": 200},
    ),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
protocol = {
    "paper": "arXiv:2111.06377 Table 9, A.1; Table 11, A.2 without weights",
    "code": "facebookresearch/mae FINETUNE.md, main_finetune.py",
    "settings": {
        "optimizer": {"key": "solver.optimizer", "paper": "adamw", "code": "adamw"},
        "betas": {
            "key": "solver.betas",
            "paper": {"random": [0.9, 0.95], "*": [0.9, 0.999]},
            "code": {"random": None, "*": [0.9, 0.999]},
        },
        "weight decay": {
            "key": "solver.weight_decay",
            "paper": {"random": 0.3, "*": 0.05},
            "code": {"random": None, "*": 0.05},
        },
        "base learning rate": {
            "key": "solver.base_lr",
            "paper": {"random": 1e-4, "*": 1e-3},
            "code": {"random": None, "vit_base*": 5e-4, "*": 1e-3},
        },
        "layer-wise decay": {
            "key": "solver.layer_decay",
            "paper": {"random": None, "*": 0.75},
            "code": {"random": None, "vit_base*": 0.65, "*": 0.75},
        },
        "batch": {
            "key": "solver.batch_size",
            "paper": {"random": 4096, "*": 1024},
            "code": {"random": None, "*": 1024},
        },
        "epochs": {
            "key": "solver.epochs",
            "paper": {"random": {"vit_base*": 300, "*": 200}, "vit_base*": 100, "*": 50},
            "code": {"random": None, "vit_base*": 100, "*": 50},
        },
        "warm-up epochs": {
            "key": "solver.warmup_epochs",
            "paper": {"random": 20, "*": 5},
            "code": {"random": None, "*": 5},
        },
        "drop path": {
            "key": "model.drop_path_rate",
            "paper": {"random": {"vit_base*": 0.1, "*": 0.2}, "vit_huge*": 0.2, "*": 0.1},
            "code": {"random": None, "vit_base*": 0.1, "vit_large*": 0.2, "vit_huge*": 0.3},
        },
        "RandAugment": {"ours": "9, 0.5", "paper": "9, 0.5", "code": "9, 0.5"},
        "random erasing": {"key": "data.erasing", "code": {"random": None, "*": 0.25}},
        "label smoothing": {"key": "model.label_smoothing", "paper": 0.1, "code": 0.1},
        "mixup": {"key": "model.mixup", "paper": 0.8, "code": 0.8},
        "cutmix": {"key": "model.cutmix", "paper": 1.0, "code": 1.0},
        "pooling": {"key": "model.pool", "paper": "token", "code": {"random": None, "*": "mean"}},
        "average of weights": {"key": "model.ema_decay", "paper": {"random": 0.9999, "*": None}},
        "precision": {"key": "solver.amp", "code": "float16"},
    },
}
