"""The discrete VAE behind `mae-dvae-token` on the miniature, one id per 8 px patch."""

recipe = {
    "data": {
        "image_size": 48,
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 1.0,
        "val_images": 128,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "stride": 8,
        "num_codes": 128,
        "width": 64,
        "depth": 0,
        # Gumbel-softmax temperature falls from 1 to this, exponentially. arXiv:2102.12092 goes to
        # 1/16 over far more steps; here a warmer end left fewer codes unused.
        "final_temperature": 0.25,
        # Weight of the KL term per id beside a mean squared error per pixel value.
        "prior": 1e-3,
    },
    "solver": {
        "epochs": None,
        "iterations": 700,
        "batch_size": 32,
        "accumulation": 1,
        "base_lr": 4e-2,
        "min_lr": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "layer_decay": 1.0,
        "warmup_epochs": None,
        "warmup_iterations": 50,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 0,
        "prefetch": 2,
        "save_every": 100,
    },
}
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
