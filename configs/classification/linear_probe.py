"""Linear probe on ImageNet-1K.

LARS without weight decay, a BatchNorm without affine parameters before the head, the class token
behind the encoder's norm, crops and flips only. The repository says that 50 epochs are enough for
ViT-L and ViT-H; this is the paper's table.

Source: arXiv:2111.06377 Table 10, A.1; facebookresearch/mae main_linprobe.py. Differs: bfloat16
instead of fp16.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": 0.875,
        "augmentation": "single-draw",
        "rand_augment": "",
        "erasing": 0.0,
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "pool": "token",
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
        "epochs": 90,
        "iterations": None,
        "batch_size": 16384,
        "accumulation": 1,
        "base_lr": 0.1,
        "min_lr": 0.0,
        "optimizer": "lars",
        "betas": [0.9, 0.0],
        "weight_decay": 0.0,
        "layer_decay": 1.0,
        "warmup_epochs": 10,
        "warmup_iterations": None,
        "amp": "bfloat16",
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 8,
        "prefetch": 2,
        "save_every": 200,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
protocol = {
    "paper": "arXiv:2111.06377 Table 10, A.1",
    "code": "facebookresearch/mae FINETUNE.md, main_linprobe.py",
    "settings": {
        "optimizer": {"key": "solver.optimizer", "paper": "lars", "code": "lars"},
        "momentum": {"ours": 0.9, "paper": 0.9, "code": 0.9},
        "weight decay": {"key": "solver.weight_decay", "paper": 0, "code": 0},
        "base learning rate": {"key": "solver.base_lr", "paper": 0.1, "code": 0.1},
        "batch": {"key": "solver.batch_size", "paper": 16384, "code": 16384},
        "epochs": {"key": "solver.epochs", "paper": 90, "code": {"vit_base*": 90, "*": 50}},
        "warm-up epochs": {"key": "solver.warmup_epochs", "paper": 10, "code": 10},
        "augmentation": {
            "ours": "single-draw random crop, flip",
            "code": "single-draw random crop, flip",
        },
        "feature": {"key": "model.pool", "paper": "token", "code": "token"},
        "BatchNorm without affine": {"key": "model.frozen", "paper": True, "code": True},
        "precision": {"key": "solver.amp", "code": "float16"},
    },
}
