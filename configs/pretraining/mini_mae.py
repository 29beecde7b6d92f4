"""MAE pretraining on the miniature; every MAE init shares it and sets only `model.target`.

Differs from arXiv:2111.06377 Table 8 in everything that size dictates: crops of 48 px, patches of
8 px, a decoder of 1 block of width 64, a short schedule. As in the paper: AdamW with betas 0.9/0.95
and weight decay 0.05, linear warm-up and half a cosine, random resized crops of scale 0.2-1 and
flips, 75% random masking, loss on masked patches.
"""

recipe = {
    "data": {
        "image_size": 48,
        "augmentation": "random",
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 1.0,
        "val_images": 128,
        "cache": True,
        "max_broken": 10,
    },
    "model": {
        "target": "norm-pixel",
        "pca_coefficients": 96,
        "pca_images": 600,
        "mask_ratio": 0.75,
        "sampling": "random",
        "encoder_mask_tokens": False,
        "loss_on_all_patches": False,
        "decoder_width": 64,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "solver": {
        "epochs": None,
        "iterations": 1500,
        "batch_size": 128,
        "accumulation": 1,
        "base_lr": 3e-3,
        "min_lr": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "layer_decay": 1.0,
        "warmup_epochs": None,
        "warmup_iterations": 50,
        "amp": None,
        "activation_checkpointing": False,
        "compile": False,
        "num_workers": 0,
        "prefetch": 2,
        "save_every": 250,
        "picture_every": None,
    },
}
# As the ablations of arXiv:2111.06377 Sec. 4, in proportion: its 512 is 64 here, its 800 epochs are
# 1500 iterations.
variants = [
    ({"init": "*/decoder-width-128"}, {"model.decoder_width": 16}),
    ({"init": "*/decoder-width-256"}, {"model.decoder_width": 32}),
    ({"init": "*/decoder-width-512"}, {"model.decoder_width": 64}),
    ({"init": "*/decoder-width-768"}, {"model.decoder_width": 96}),
    ({"init": "*/decoder-width-1024"}, {"model.decoder_width": 128}),
    ({"init": "*/epochs-100"}, {"solver.iterations": 188}),
    ({"init": "*/epochs-200"}, {"solver.iterations": 375}),
    ({"init": "*/epochs-400"}, {"solver.iterations": 750}),
    ({"init": "*/epochs-1600"}, {"solver.iterations": 3000}),
]
smoke = {"solver.iterations": 2, "solver.warmup_iterations": 1, "data.val_images": 16}
