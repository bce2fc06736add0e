"""Published settings by architecture and by fusion type, as literal tables.

A recipe that leaves a value null gets the one from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusionrun.common.plugins import is_backbone

EXPERT_CLIP = 5.0  # largest gradient norm of the experts in a row
HEAD_CLIP = 1.0  # of fusion module and global head, and of an expert that trains alone


@dataclass(frozen=True)
class ExpertDefaults:
    """Training of an expert before fusion: SGD with Nesterov momentum 0.9, cosine to 0."""

    lr: float
    weight_decay: float
    batch_size: int
    augmentation: str  # a name of data.augmentation.policies.AUGMENTATIONS
    mixup_alpha: float  # if the recipe prefers mixup to cutmix
    label_smoothing: float
    dropout: float  # while the expert trains alone; in a fusion model the architecture's own


@dataclass(frozen=True)
class FusionDefaults:
    """Training of a row: AdamW, rates before they are adapted to the feature size."""

    experts_lr: float
    head_lr: float  # of the fusion module and of the global head
    weight_decay: float
    augmentation: str
    mixup_alpha: float
    label_smoothing: float


EXPERT_DEFAULTS: Mapping[str, ExpertDefaults] = {
    "densenet": ExpertDefaults(0.1, 1e-4, 64, "randaugment", 0.2, 0.05, 0.2),
    "resnet": ExpertDefaults(0.1, 1e-4, 128, "color_jitter", 0.4, 0.1, 0.0),
    "improved_wide_resnet": ExpertDefaults(0.1, 5e-4, 128, "randaugment_strong", 0.2, 0.05, 0.3),
    "resnext": ExpertDefaults(0.1, 5e-4, 128, "trivialaugment", 0.2, 0.05, 0.3),
}

FUSION_DEFAULTS: Mapping[str, FusionDefaults] = {
    "multiplicative": FusionDefaults(1e-4, 5e-4, 1e-4, "color_jitter", 0.2, 0.1),
    "multiplicativeAddition": FusionDefaults(1e-4, 1e-3, 1e-4, "randaugment_strong", 0.3, 0.08),
    "multiplicativeShifted": FusionDefaults(1e-4, 5e-4, 1e-4, "color_jitter", 0.2, 0.1),
    "TransformerBase": FusionDefaults(5e-5, 2e-4, 5e-4, "trivialaugment", 0.2, 0.05),
    "concatenation": FusionDefaults(1e-4, 1e-3, 1e-4, "randaugment_strong", 0.3, 0.08),
    "simpleAddition": FusionDefaults(1e-4, 1e-3, 1e-4, "color_jitter", 0.2, 0.1),
    # not published: as the types that they begin as or are like
    "alignedMultiplicative": FusionDefaults(1e-4, 5e-4, 1e-4, "color_jitter", 0.2, 0.1),
    "alignedAddition": FusionDefaults(1e-4, 1e-3, 1e-4, "color_jitter", 0.2, 0.1),
    "gated": FusionDefaults(1e-4, 1e-3, 1e-4, "randaugment_strong", 0.3, 0.08),
    "meanLogits": FusionDefaults(1e-4, 1e-3, 1e-4, "color_jitter", 0.2, 0.1),
}


# of an architecture or a fusion type that a user brings; another library's backbone mostly comes
# trained, and a rate of 0.1 would undo that
PLUGIN_EXPERT = EXPERT_DEFAULTS["resnet"]
BACKBONE_EXPERT = replace(PLUGIN_EXPERT, lr=0.01)
PLUGIN_FUSION = FUSION_DEFAULTS["concatenation"]

# of every fusion type where types are to be compared alike (fusion.recipe: shared). Each value lies
# between the published ones, so that none of the types is far from its own: the experts' rate,
# decay and mixup of most types; a rate of the heads, their middle, at most 2.5 times another's;
# TrivialAugment, stronger than color_jitter and weaker than randaugment_strong; so the smoothing
SHARED_FUSION = FusionDefaults(1e-4, 5e-4, 1e-4, "trivialaugment", 0.2, 0.08)


def expert_defaults(model: str) -> ExpertDefaults:
    """As published for the architecture, or as it is for others' and for plug-ins."""
    others = BACKBONE_EXPERT if is_backbone(model) else PLUGIN_EXPERT
    return EXPERT_DEFAULTS.get(model, others)


def fusion_defaults(fusion: str | None) -> FusionDefaults:
    """As published for the fusion type, or as it is for plug-ins; None: as all types share it."""
    return SHARED_FUSION if fusion is None else FUSION_DEFAULTS.get(fusion, PLUGIN_FUSION)


def adapted_rates(fusion: str | None, feature_dim: int) -> tuple[float, float]:
    """(experts' rate, rate of fusion module and global head) for features of size D.

    D > 1000: experts x0.7, heads x0.8; D < 100: x1.3 and x1.2. Then TransformerBase with D > 500:
    experts x0.8 more; multiplicative and alignedMultiplicative with D < 500: experts x1.1 more;
    None, what all types share: nothing more.
    """
    defaults = fusion_defaults(fusion)
    experts, heads = defaults.experts_lr, defaults.head_lr
    if feature_dim > 1000:
        experts, heads = experts * 0.7, heads * 0.8
    elif feature_dim < 100:
        experts, heads = experts * 1.3, heads * 1.2
    if fusion == "TransformerBase" and feature_dim > 500:
        experts *= 0.8
    if fusion in ("multiplicative", "alignedMultiplicative") and feature_dim < 500:
        experts *= 1.1
    return experts, heads
