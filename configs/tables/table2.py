"""MAE Table 2: what mask tokens in the encoder, and a deep decoder, cost in pretraining."""

from configs.tables._costs import column
from mae_bench.records import Row, Table

PUBLISHED = "Table 2 wall-clock"
BACKBONES = ("vit_large_patch16", "vit_huge_patch14")


def _row(init: str, title: str, encoder_mask_token: str, decoder_depth: int) -> Row:
    setting = {"encoder_mask_token": encoder_mask_token, "decoder_depth": decoder_depth}
    return Row(init=init, title=title, ablation=setting)


TABLE = Table(
    name="table2",
    title="Wall-clock time of MAE pretraining",
    source="arXiv:2111.06377 Table 2",
    note=(
        "Hours: 800 epochs of the training set on one device, from the median of some steps, "
        "without loading (the paper: 128 TPU-v3 cores). Speed-up: over the same encoder with mask "
        "tokens and 8 decoder blocks, measured step by step in turn. Times are measured: another "
        "run gives others."
    ),
    rows=(
        _row("mae-pixel/mask-tokens", "encoder w/ mask tokens, 8 decoder blocks", "with", 8),
        _row("mae-pixel", "encoder w/o, 8 decoder blocks", "without", 8),
        _row("mae-pixel/decoder-depth-1", "encoder w/o, 1 decoder block", "without", 1),
    ),
    columns=(
        column("hours", "hours", PUBLISHED, "wall-clock", BACKBONES),
        column("speed-up", "speedup", PUBLISHED, "speedup", BACKBONES),
    ),
)
