"""Files with random weights in the layouts that other projects publish, at tiny sizes.

Each function takes the state dict of one of our encoders and returns what the project would save.
The names are written out here, not taken from `backbones.layouts`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import numpy as np
import torch

WIDTH = 96
DECODER_WIDTH = 32


def random_like(state: dict, seed: int = 0) -> dict:
    """The same names and shapes with random values, sine-cosine tables excepted."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value if name == "pos_embed" else torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }


def head(classes: int = 10) -> dict:
    return {"head.weight": torch.randn(classes, WIDTH), "head.bias": torch.randn(classes)}


def norm(name: str) -> dict:
    return {f"{name}.weight": torch.randn(WIDTH), f"{name}.bias": torch.randn(WIDTH)}


def without(state: dict, *starts: str) -> dict:
    return {name: value for name, value in state.items() if not name.startswith(starts)}


def arguments() -> argparse.Namespace:
    return argparse.Namespace(lr=np.float64(1e-3), model="mae_vit")


def mae(state):
    return {"model": dict(state)}


def mae_decoder(state):
    rows, inner = state["pos_embed"].shape[1], {"weight": (3, 1), "bias": (3,)}
    decoder = {
        "mask_token": torch.randn(1, 1, DECODER_WIDTH),
        "decoder_embed.weight": torch.randn(DECODER_WIDTH, WIDTH),
        "decoder_embed.bias": torch.randn(DECODER_WIDTH),
        "decoder_pos_embed": torch.randn(1, rows, DECODER_WIDTH),
        "decoder_pred.weight": torch.randn(192, DECODER_WIDTH),
        "decoder_pred.bias": torch.randn(192),
    }
    for kind in inner:
        decoder[f"decoder_norm.{kind}"] = torch.randn(DECODER_WIDTH)
        for i in range(2):
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                decoder[f"decoder_blocks.{i}.{part}.{kind}"] = torch.randn(inner[kind])
    return decoder


def mae_full(state):
    training = {"optimizer": {"state": {0: {"m": torch.ones(1)}}}, "epoch": 1, "args": arguments()}
    return {"model": {**state, **mae_decoder(state)}, **training}


def mae_gan(state):
    full = mae_full(state)
    full["model"] |= {"discriminator.conv.weight": torch.ones(1)}
    return full


def mae_finetuned(state):
    return {"model": {**without(state, "norm."), **norm("fc_norm"), **head()}}


def timm(state):
    return {**state, **head()}


def timm_layer_scale(state):
    names = {
        name: re.sub(r"gamma_(\d)", r"ls\1.gamma", name) for name in without(state, "rel_pos_bias")
    }
    return {names[name]: value for name, value in state.items()} | head()


def deit(state):
    return {"model": {**state, **head()}}


def deit_distilled(state):
    extra = {"head_dist.weight": torch.ones(2, WIDTH), "head_dist.bias": torch.ones(2)}
    return {"model": {**state, **head(), **extra}}


def deit3(state):
    """No position for the class token."""
    return {"model": {**state, "pos_embed": state["pos_embed"][:, 1:], **head()}}


def beit_pretrain(state):
    """One table for all blocks."""
    extra = {
        "mask_token": torch.ones(1, 1, WIDTH),
        "rel_pos_bias.relative_position_index": torch.zeros(65, 65, dtype=torch.long),
        "lm_head.weight": torch.ones(16, WIDTH),
        "lm_head.bias": torch.ones(16),
    }
    return {"model": {**state, **extra}}


def beit_finetuned(state):
    """A table for each block."""
    index = {
        f"blocks.{i}.attn.relative_position_index": torch.zeros(65, 65, dtype=torch.long)
        for i in range(4)
    }
    return {"model": {**without(state, "norm."), **index, **norm("fc_norm"), **head()}}


def beit_abs(state):
    extra = {"mask_token": torch.ones(1, 1, WIDTH), "lm_head.weight": torch.ones(16, WIDTH)}
    return {"model": {**state, **extra}}


def moco_v3(state):
    base = {f"module.base_encoder.{name}": value for name, value in state.items()}
    others = {f"module.momentum_encoder.{name}": value + 1 for name, value in state.items()}
    heads = {"module.base_encoder.head.0.weight": torch.ones(2), "module.predictor.0.weight": 1}
    heads["module.predictor.0.weight"] = torch.ones(2)
    return {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": {**base, **heads, **others},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
        "scaler": {"scale": 65536.0},
    }


def moco_v3_linear(state):
    return {
        "arch": "vit_base",
        "best_acc1": torch.tensor(76.7),
        "state_dict": {f"module.{name}": value for name, value in {**state, **head()}.items()},
    }


def dino(state):
    teacher = {f"backbone.{name}": value for name, value in state.items()}
    teacher["head.mlp.0.weight"] = torch.ones(2, WIDTH)
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    return {"student": student, "teacher": teacher, "epoch": 100, "args": arguments()}


def dino_backbone(state):
    return dict(state)


def openmmlab(state):
    renames = (
        (r"^blocks\.", "layers."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
    )
    named = {}
    for name, value in state.items():
        for old, new in renames:
            name = re.sub(old, new, name)
        named[name] = value
    return named


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def mmpretrain(state):
    neck = {
        re.sub(r"^ln1", "ln1", name.replace("decoder_norm", "ln1")): value
        for name, value in mae_decoder(state).items()
    }
    neck = {
        re
        .sub(r"\.norm([12])\.", r".ln\1.", name)
        .replace(".mlp.fc1.", ".ffn.layers.0.0.")
        .replace(".mlp.fc2.", ".ffn.layers.1."): value
        for name, value in neck.items()
    }
    preprocessor = {"data_preprocessor.mean": torch.ones(3), "data_preprocessor.std": torch.ones(3)}
    names = {**prefixed(openmmlab(state), "backbone."), **prefixed(neck, "neck."), **preprocessor}
    return {"meta": {"epoch": 300}, "state_dict": names}


def mmpretrain_deit3(state):
    named = {
        name.replace("gamma_1", "attn.gamma1.weight").replace("gamma_2", "ffn.gamma2.weight"): value
        for name, value in openmmlab(state).items()
    }
    classifier = {"head.layers.head.weight": torch.ones(10, WIDTH)}
    return {"meta": {}, "state_dict": {**prefixed(named, "backbone."), **classifier}}


SEGMENTOR = ("neck.upsample_4x.0.weight", "decode_head.conv_seg.weight", "auxiliary_head.convs.0.x")


def mmseg(state):
    inside = {name: torch.ones(1) for name in SEGMENTOR}
    return {"meta": {}, "state_dict": {**prefixed(openmmlab(state), "backbone."), **inside}}


def mmseg_vit(state):
    """mmseg's VisionTransformer has PyTorch's attention."""
    named = {
        name.replace("attn.qkv.", "attn.attn.in_proj_").replace(
            "attn.proj", "attn.attn.out_proj"
        ): v
        for name, v in openmmlab(state).items()
    }
    inside = {name: torch.ones(1) for name in SEGMENTOR}
    return {"meta": {}, "state_dict": {**prefixed(named, "backbone."), **inside}}


def mmseg_ours(state):
    named = {**prefixed(state, "backbone.encoder."), "backbone.pyramid.levels.0.0.weight": head()}
    named["backbone.pyramid.levels.0.0.weight"] = torch.ones(1)
    named["decode_head.conv_seg.weight"] = torch.ones(1)
    return {"meta": {}, "state_dict": named}


DETECTOR = (
    *("proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight", "pixel_mean"),
)


def vitdet(state):
    """ViTDet has neither class token nor final norm, but the class token's position."""
    names = prefixed(without(state, "cls_token", "norm."), "backbone.net.")
    inside = dict.fromkeys((*DETECTOR, "backbone.simfp_2.0.weight"), torch.ones(1))
    return {"model": {**names, **inside}, "iteration": 7}


def detectron2_ours(state):
    names = prefixed(state, "backbone.bottom_up.encoder.")
    around = (*DETECTOR, "backbone.fpn_lateral2.weight", "backbone.bottom_up.pyramid.levels.0.x")
    return {"model": {**names, **dict.fromkeys(around, torch.ones(1))}}


def save_pickle(tree: dict, path: Path) -> None:
    """As detectron2's model zoo: a pickle of NumPy arrays."""
    arrays = {name: value.numpy() for name, value in tree["model"].items()}
    with path.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "someone"}, file)
