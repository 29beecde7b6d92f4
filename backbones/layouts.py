"""The known checkpoint formats, one after the other; see `backbones.formats`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from backbones.formats import BEIT_PARTS, EVERY_PART, PLAIN, SAME, Format, Spelling
from backbones.positions import sincos_order

CLASSIFIER = "classifier, not used here"
INDEX = "index of the relative positions, computed here"
MASK_TOKEN = "mask token of the pretraining, not used here"
DETECTOR = "detector around the backbone, not used here"
SEGMENTOR = "segmentor around the backbone, not used here"
PRETRAINING = "head of the pretraining, not used here"
INPUT = "normalisation of the images, not part of the encoder"

HEAD = r"(?:head|head_dist)\..*"
POSITION_INDEX = r"(?:.*\.)?relative_position_index"

_DECODER_STEMS = (
    *("mask_token", "decoder_embed", "decoder_pos_embed", "decoder_norm", "decoder_pred"),
    "decoder_blocks.#",
)
DECODER = Spelling(tuple((stem, stem) for stem in _DECODER_STEMS))


def fixed_positions(order: str) -> Callable[[Mapping[str, Tensor]], str]:
    """Check of files whose sine-cosine tables are fixed: none has a known slip in it.

    Args:
        order: what `sincos_order` calls the right tables.
    """

    def check(weights: Mapping[str, Tensor]) -> str:
        for name in ("pos_embed", "decoder_pos_embed"):
            found = sincos_order(weights[name]) if name in weights else None
            if found not in {order, None}:
                return (
                    f"its {name} is a sine-cosine table in the order {found!r}; files of this "
                    f"format have {order!r}. Its grid was transposed or its sines and cosines "
                    "exchanged, or it is another method's file and needs that one's --format"
                )
        return ""

    return check


MAE = Format(
    about="MAE, encoder only (mae_pretrain_vit_*)",
    source="facebookresearch/mae models_mae.py",
    needs={"cls_token": "cls_token", "pos_embed": "pos_embed", r"norm\.weight": "norm.weight"},
    check=fixed_positions("mae"),
)
MAE_FULL = Format(
    about="MAE, encoder and decoder (mae_pretrain_vit_*_full, mae_visualize_vit_*)",
    source="facebookresearch/mae models_mae.py",
    decoder=DECODER,
    # The published file with GAN loss has no such keys; training states of one do.
    left_out={r"(?:discriminator|gan|perceptual|lpips)\w*\..*": "GAN loss, not used here"},
    needs={
        **MAE.needs,
        r"decoder_embed\.weight": "decoder_embed.weight",
        r"decoder_pred\.weight": "decoder_pred.weight",
        "mask_token": "mask_token",
    },
    check=fixed_positions("mae"),
)
MAE_FINETUNED = Format(
    about="MAE fine-tuned as a classifier (mae_finetuned_vit_*)",
    source="facebookresearch/mae models_vit.py, with global pooling",
    parts=("tokens", "patches", "blocks"),
    left_out={HEAD: CLASSIFIER, r"fc_norm\..*": "norm after pooling, not used here"},
    needs={"cls_token": "cls_token", r"fc_norm\.weight": "fc_norm.weight", HEAD: "head.weight"},
)
TIMM = Format(
    about="timm, plain ViT, DeiT III or BEiT",
    source="timm models/vision_transformer.py, models/beit.py",
    parts=(*PLAIN, *BEIT_PARTS, "distillation"),
    containers=("", "state_dict"),
    spelling=Spelling((
        ("blocks.#.gamma_1", "blocks.#.ls1.gamma"),
        ("blocks.#.gamma_2", "blocks.#.ls2.gamma"),
        *SAME.pairs,
    )),
    left_out={
        HEAD: CLASSIFIER,
        r"fc_norm\..*": "norm after pooling, not used here",
        POSITION_INDEX: INDEX,
        r"blocks\.\d+\.attn\.k_bias": "zeros: BEiT has no bias of the keys",
    },
)
DEIT = Format(
    about="DeiT, plain or distilled, and DeiT III",
    source="facebookresearch/deit models.py, models_v2.py",
    parts=(*PLAIN, "distillation", "layer scale"),
    left_out={HEAD: CLASSIFIER},
    needs={"cls_token": "cls_token", "pos_embed": "pos_embed", HEAD: "head.weight"},
)
BEIT = Format(
    about="BEiT, pretrained (shared table, or absolute positions) or fine-tuned (a table a block)",
    source="microsoft/unilm beit/modeling_pretrain.py, modeling_finetune.py",
    parts=(*PLAIN, *BEIT_PARTS),
    containers=("model", "module"),
    left_out={
        "mask_token": MASK_TOKEN,
        r"lm_head\..*": PRETRAINING,
        HEAD: CLASSIFIER,
        r"fc_norm\..*": "norm after pooling, not used here",
        POSITION_INDEX: INDEX,
    },
    needs={
        r"blocks\.0\.attn\.q_bias": "blocks.0.attn.q_bias",
        r"blocks\.0\.attn\.v_bias": "blocks.0.attn.v_bias",
        # Positions of one kind or the other; the relative kind comes with layer scale.
        r"pos_embed|.*relative_position_bias_table": "positions, absolute or relative",
        r"pos_embed|blocks\.0\.gamma_1": "layer scale (blocks.*.gamma_1)",
        r"pos_embed|blocks\.0\.gamma_2": "layer scale (blocks.*.gamma_2)",
    },
)
MOCO_V3 = Format(
    about="MoCo v3, the base encoder of a pretraining",
    source="facebookresearch/moco-v3 vits.py, moco/builder.py",
    containers=("state_dict",),
    prefixes=(r"(?:module\.)?base_encoder\.",),
    left_out={
        r"(?:module\.)?base_encoder\.head\..*": PRETRAINING,
        r"(?:module\.)?predictor\..*": PRETRAINING,
        r"(?:module\.)?momentum_encoder\..*": "momentum encoder, not used: the base encoder is",
    },
    needs={r"(?:module\.)?base_encoder\.cls_token": "module.base_encoder.cls_token"},
    check=fixed_positions("moco-v3"),
)
MOCO_V3_LINEAR = Format(
    about="MoCo v3, linear classifier on the frozen encoder",
    source="facebookresearch/moco-v3 main_lincls.py",
    containers=("state_dict",),
    prefixes=(r"module\.",),
    left_out={r"module\.head\..*": CLASSIFIER},
    needs={r"module\.cls_token": "module.cls_token", r"module\.head\..*": "module.head.weight"},
    check=fixed_positions("moco-v3"),
)
DINO = Format(
    about="DINO, the teacher of a training, or the backbone alone",
    source="facebookresearch/dino main_dino.py, vision_transformer.py",
    containers=("teacher", ""),
    prefixes=(r"teacher\.(?:module\.)?backbone\.", ""),
    left_out={
        r"teacher\.(?:module\.)?head\..*": PRETRAINING,
        r"student\..*": "student, not used: the teacher is",
    },
    needs={r"(?:teacher\.(?:module\.)?backbone\.)?cls_token": "cls_token"},
)

_OPENMMLAB = (
    ("blocks.#.norm1", "layers.#.ln1"),
    ("blocks.#.norm2", "layers.#.ln2"),
    ("blocks.#.mlp.fc1", "layers.#.ffn.layers.0.0"),
    ("blocks.#.mlp.fc2", "layers.#.ffn.layers.1"),
    ("blocks.#", "layers.#"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("norm", "ln1"),
    *((name, name) for name in ("cls_token", "dist_token", "pos_embed", "rel_pos_bias")),
)
_OPENMMLAB_DECODER = Spelling((
    ("decoder_blocks.#.norm1", "neck.decoder_blocks.#.ln1"),
    ("decoder_blocks.#.norm2", "neck.decoder_blocks.#.ln2"),
    ("decoder_blocks.#.mlp.fc1", "neck.decoder_blocks.#.ffn.layers.0.0"),
    ("decoder_blocks.#.mlp.fc2", "neck.decoder_blocks.#.ffn.layers.1"),
    ("decoder_blocks.#", "neck.decoder_blocks.#"),
    ("decoder_norm", "neck.ln1"),
    *((name, f"neck.{name}") for name in ("mask_token", "decoder_embed", "decoder_pos_embed")),
    ("decoder_pred", "neck.decoder_pred"),
))
MMPRETRAIN = Format(
    about="mmpretrain and mmselfsup: MAE, MoCo v3, BEiT, classifiers",
    source="open-mmlab/mmpretrain models/backbones/vision_transformer.py, beit.py at ee7f2e8",
    parts=(*PLAIN, *BEIT_PARTS, "distillation"),
    containers=("state_dict", ""),
    spelling=Spelling(
        _OPENMMLAB,
        aliases=(
            ("blocks.#.gamma_1", "layers.#.attn.gamma1.weight"),
            ("blocks.#.gamma_2", "layers.#.ffn.gamma2.weight"),
        ),
    ),
    prefixes=(r"backbone\.", ""),
    decoder=_OPENMMLAB_DECODER,
    left_out={
        r"(?:backbone\.)?ln2\..*": "norm after pooling, not used here",
        r"(?:backbone\.)?mask_token": MASK_TOKEN,
        r"neck\.(?!decoder_|mask_token|ln1\.).*": PRETRAINING,
        r"head\..*": "head of the pretraining or classifier, not used here",
        r"momentum_encoder\..*": "momentum encoder, not used: the base encoder is",
        r"target_generator\..*": "target of the pretraining, not used here",
        r"data_preprocessor\..*": INPUT,
        POSITION_INDEX: INDEX,
    },
    needs={r"(?:backbone\.)?patch_embed\.projection\.weight": "patch_embed.projection.weight"},
)
MMSEG = Format(
    about="mmsegmentation: MAE, BEiT, ViT, or our encoders in a segmentor",
    source="open-mmlab/mmsegmentation models/backbones/mae.py, beit.py, vit.py",
    parts=EVERY_PART,
    containers=("state_dict", ""),
    spelling=Spelling(
        _OPENMMLAB,
        aliases=(  # its VisionTransformer, which has PyTorch's attention
            ("blocks.#.attn.qkv.weight", "layers.#.attn.attn.in_proj_weight"),
            ("blocks.#.attn.qkv.bias", "layers.#.attn.attn.in_proj_bias"),
            ("blocks.#.attn.proj", "layers.#.attn.attn.out_proj"),
        ),
    ),
    prefixes=(r"backbone\.", ""),
    inside=r"backbone\.encoder\.",
    left_out={
        r"backbone\.pyramid\..*": SEGMENTOR,
        r"(?:decode_head|auxiliary_head)\..*": SEGMENTOR,
        r"neck\.(?:up|down)sample_\dx\..*": SEGMENTOR,
        r"data_preprocessor\..*": INPUT,
        POSITION_INDEX: INDEX,
    },
    needs={
        r"(?:backbone\.)?patch_embed\.projection\.weight|backbone\.encoder\..*": (
            "patch_embed.projection.weight"
        )
    },
)
DETECTRON2 = Format(
    about="detectron2: ViTDet, or our encoders in a detector",
    source="detectron2 modeling/backbone/vit.py, projects/ViTDet",
    parts=EVERY_PART,
    prefixes=(r"backbone\.(?:bottom_up\.)?net\.",),
    inside=r"backbone\.(?:bottom_up\.)?encoder\.",
    left_out={
        r"backbone\.(?:simfp_\d|fpn_\w+)\..*": DETECTOR,
        r"backbone\.(?:bottom_up\.)?pyramid\..*": DETECTOR,
        r"(?:proposal_generator|roi_heads|sem_seg_head)\..*": DETECTOR,
        r"pixel_(?:mean|std)": INPUT,
    },
    needs={r"backbone\..*": "names that begin with backbone."},
)
MAE_BENCH = Format(
    about="what MAE-bench writes (backbone.safetensors)",
    source="backbones/checkpoints.py",
    parts=EVERY_PART,
    containers=(),
)
