"""Fine-tuning on a user's own labelled images: a start, ours.

As `classification/finetune`, for some thousand images on one device: batches of 32, 50 epochs.
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
        "epochs": 50,
        "iterations": None,
        "batch_size": 32,
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
        "num_workers": 2,
        "prefetch": 2,
        "save_every": 200,
    },
}
variants = [
    # The miniature's encoder at its own size, with the lr of `mini_finetune`.
    (
        {"backbone": "*_mini_*"},
        {"data.image_size": 64, "solver.base_lr": 2e-2, "solver.layer_decay": 0.75},
    ),
    (
        {"backbone": "vit_large*"},
        {"model.drop_path_rate": 0.2, "solver.base_lr": 1e-3, "solver.layer_decay": 0.75},
    ),
    (
        {"backbone": "vit_huge*"},
        {"model.drop_path_rate": 0.3, "solver.base_lr": 1e-3, "solver.layer_decay": 0.75},
    ),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
