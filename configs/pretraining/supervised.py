"""Supervised pretraining from scratch on ImageNet-1K, the "scratch, our impl." row.

Source: arXiv:2111.06377 A.2, Table 11; the schedule's length and drop path by size. Where the table
is silent: crops of scale 0.08-1, RandAugment's two operations with deviation 0.5 and no erasing, as
in facebookresearch/mae's fine-tuning. Differs: bfloat16 mixed precision; the authors' TPU code has
no explicit one.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": 0.875,
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "drop_path_rate": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "ema_decay": 0.9999,
    },
    "solver": {
        "epochs": 300,
        "iterations": None,
        "batch_size": 4096,
        "base_lr": 1e-4,
        "min_lr": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.95],
        "weight_decay": 0.3,
        "layer_decay": 1.0,
        "warmup_epochs": 20,
        "warmup_iterations": None,
        "amp": "bfloat16",
        "activation_checkpointing": False,
        "compile": False,
        "accumulation": 1,
        "num_workers": 8,
        "prefetch": 2,
        "save_every": 1000,
    },
}
variants = [
    ({"backbone": "vit_large*"}, {"solver.epochs": 200, "model.drop_path_rate": 0.2}),
    ({"backbone": "vit_huge*"}, {"solver.epochs": 200, "model.drop_path_rate": 0.2}),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
