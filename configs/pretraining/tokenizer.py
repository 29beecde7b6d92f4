"""A discrete VAE of 8192 codes on ImageNet-1K, for token targets without DALL-E's encoder.

The MAE paper takes DALL-E's (give it with `--init tokenizer=FILE`); this recipe is ours, for those
who train their own. As there: 112 px images, one id per 8 px, temperature down to 1/16, AdamW and a
learning rate of 1e-4 at batch 512 (arXiv:2102.12092 App. A.2). Differs: ImageNet instead of 250 M
images, 150 k steps instead of 3 M, a smaller network, and see `tasks/pretraining/tokenizer.py`.
"""

recipe = {
    "data": {
        "image_size": 112,
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 0.875,
        "val_images": 5000,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "stride": 8,
        "num_codes": 8192,
        "width": 256,
        "depth": 2,
        "final_temperature": 0.0625,
        "prior": 1e-4,
    },
    "solver": {
        "epochs": None,
        "iterations": 150_000,
        "batch_size": 512,
        "base_lr": 5e-5,
        "min_lr": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 1e-4,
        "layer_decay": 1.0,
        "warmup_epochs": None,
        "warmup_iterations": 5000,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "accumulation": 1,
        "num_workers": 8,
        "prefetch": 2,
        "save_every": 1000,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
