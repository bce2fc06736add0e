"""The fusions against their formulas written out, their symmetries, and wrong arguments."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import NO_OUTPUT
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, FusionModule, FusionOutput, build_fusion
from fusionrun.fusions.aligned import AlignmentMap
from fusionrun.fusions.gated import Gated

N, E, D = 3, 4, 16
ALL = sorted(FUSIONS)  # for what any fusion must do
OF_FEATURES = sorted({*FUSIONS} - {"meanLogits"})  # these have norms or weights, a tail and dropout
SYMMETRIC = (
    "TransformerBase",
    "alignedAddition",
    "alignedMultiplicative",
    "gated",
    "multiplicative",
    "multiplicativeAddition",
    "multiplicativeShifted",
    "simpleAddition",
)
WITH_WEIGHTS = ("multiplicativeAddition", "simpleAddition", "alignedAddition")
RAW = ("simpleAddition", "alignedAddition")  # features without norms
ALIGNED = {"alignedMultiplicative": "multiplicative", "alignedAddition": "simpleAddition"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to waiting between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_fusion(name: str) -> FusionModule:
    """In double precision and eval mode, no parameter left where it starts."""
    torch.manual_seed(0)
    fusion = build_fusion(name, E, D).double().eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(0.3 + 0.5 * torch.randn_like(parameter))
    return fusion


def random_features() -> Tensor:
    return 0.4 + 2 * torch.randn(
        N, E, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at_1024", "at_640", "at_512"),
    [
        ("multiplicative", 2_107_392, 825_600, 529_408),
        ("multiplicativeAddition", 2_107_396, 825_604, 529_412),
        ("multiplicativeShifted", 2_107_392, 825_600, 529_408),
        ("TransformerBase", 6_305_792, 2_466_560, 1_580_032),
        ("concatenation", 5_253_120, 2_054_400, 1_315_840),
        ("simpleAddition", 2_099_204, 820_484, 525_316),
        # E maps of D * D + D more, and a gate of E * (E * D) + E
        ("alignedMultiplicative", 6_305_792, 2_466_560, 1_580_032),
        ("alignedAddition", 6_297_604, 2_461_444, 1_575_940),
        ("gated", 2_123_780, 835_844, 537_604),
        ("meanLogits", 0, 0, 0),
    ],
)
def test_full_size(name: str, at_1024: int, at_640: int, at_512: int) -> None:
    with torch.device("meta"):
        fusions = [build_fusion(name, 4, dim) for dim in (1024, 640, 512)]
    sizes = [sum(p.numel() for p in fusion.parameters()) for fusion in fusions]
    assert sizes == [at_1024, at_640, at_512]


@pytest.mark.parametrize(
    ("expert", "fusion", "parameters"),
    [
        ("densenet", "simpleAddition", 30_396_408),
        ("densenet", "concatenation", 33_550_324),
        ("densenet", "TransformerBase", 34_602_996),
        ("improved_wide_resnet", "TransformerBase", 148_678_196),
        ("improved_wide_resnet", "concatenation", 148_266_036),
    ],
)
def test_whole_model_size(expert: str, fusion: str, parameters: int) -> None:
    with torch.device("meta"):
        experts = [build_expert(expert, 100) for _ in range(4)]
        model = FusionModel(experts, build_fusion(fusion, 4, experts[0].feature_dim), 100)
    assert sum(p.numel() for p in model.parameters()) == parameters


# --- the formulas, one vector at a time ----------------------------------------------------------

State = dict[str, Tensor]


def multiply(vectors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, vectors)


def add(vectors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, vectors)


def layer_norm(vector: Tensor, s: State, expert: int) -> Tensor:
    centred = vector - vector.sum() / D
    deviation = ((centred * centred).sum() / D + 1e-5).sqrt()
    return centred / deviation * s["norms.weight"][expert] + s["norms.bias"][expert]


def softmax(weights: Tensor) -> list[Tensor]:
    return [weight.exp() / weights.exp().sum() for weight in weights]


def two_layers(vector: Tensor, s: State) -> Tensor:
    hidden = (s["tail.0.weight"] @ vector + s["tail.0.bias"]).clamp(min=0)
    return s["tail.3.weight"] @ hidden + s["tail.3.bias"]


def attend(tokens: list[Tensor], s: State) -> list[Tensor]:
    """8-head self-attention over the E tokens, query by query."""
    projected = [s["attention.in_proj_weight"] @ t + s["attention.in_proj_bias"] for t in tokens]
    queries, keys, values = zip(*(p.split(D) for p in projected), strict=True)
    size = D // 8
    mixed = []
    for query in queries:
        heads = []
        for h in range(8):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys])
            shares = softmax(scores)
            heads.append(add(a * v[part] for a, v in zip(shares, values, strict=True)))
        mixed.append(torch.cat(heads))
    return [s["attention.out_proj.weight"] @ m + s["attention.out_proj.bias"] for m in mixed]


def expected_multiplicative(f: Tensor, s: State) -> Tensor:
    return two_layers(multiply(layer_norm(f[k], s, k) for k in range(E)), s)


def expected_shifted(f: Tensor, s: State) -> Tensor:
    return two_layers(multiply(1 + layer_norm(f[k], s, k) for k in range(E)), s)


def expected_multiplicative_addition(f: Tensor, s: State) -> Tensor:
    normed = [layer_norm(f[k], s, k) for k in range(E)]
    shares = softmax(s["weights"])
    total = add(share * v for share, v in zip(shares, normed, strict=True))
    return two_layers(multiply(normed) + total, s)


def expected_transformer(f: Tensor, s: State) -> Tensor:
    return two_layers(add(attend([layer_norm(f[k], s, k) for k in range(E)], s)) / E, s)


def expected_concatenation(f: Tensor, s: State) -> Tensor:
    return two_layers(torch.cat([layer_norm(f[k], s, k) for k in range(E)]), s)


def expected_simple_addition(f: Tensor, s: State) -> Tensor:
    return two_layers(add(share * f[k] for k, share in enumerate(softmax(s["weights"]))), s)


def mapped(f: Tensor, s: State) -> list[Tensor]:
    return [s[f"maps.{k}.weight"] @ f[k] + s[f"maps.{k}.bias"] for k in range(E)]


def expected_aligned_multiplicative(f: Tensor, s: State) -> Tensor:
    return two_layers(multiply(layer_norm(v, s, k) for k, v in enumerate(mapped(f, s))), s)


def expected_aligned_addition(f: Tensor, s: State) -> Tensor:
    pairs = zip(softmax(s["weights"]), mapped(f, s), strict=True)
    return two_layers(add(share * v for share, v in pairs), s)


def expected_gated(f: Tensor, s: State) -> Tensor:
    normed = [layer_norm(f[k], s, k) for k in range(E)]
    shares = softmax(s["gate.weight"] @ torch.cat(normed) + s["gate.bias"])
    return two_layers(add(share * v for share, v in zip(shares, normed, strict=True)), s)


def expected_mean_logits(logits: Tensor, s: State) -> Tensor:
    return add(logits) / E


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multiplicative", expected_multiplicative),
        ("multiplicativeShifted", expected_shifted),
        ("multiplicativeAddition", expected_multiplicative_addition),
        ("TransformerBase", expected_transformer),
        ("concatenation", expected_concatenation),
        ("simpleAddition", expected_simple_addition),
        ("alignedMultiplicative", expected_aligned_multiplicative),
        ("alignedAddition", expected_aligned_addition),
        ("gated", expected_gated),
        ("meanLogits", expected_mean_logits),
    ],
)
def test_formula(name: str, expected: Callable[[Tensor, State], Tensor]) -> None:
    fusion, features = random_fusion(name), random_features()
    by_hand = torch.stack([expected(f, fusion.state_dict()) for f in features])
    torch.testing.assert_close(fusion(features), by_hand)


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_that_of_the_formula(name: str) -> None:
    fusion = random_fusion(name)
    features = random_features()[:1].requires_grad_()
    assert torch.autograd.gradcheck(fusion, (features,), fast_mode=True)


@pytest.mark.parametrize("name", ["multiplicative", "multiplicativeAddition"])
def test_gradient_survives_zeros_in_the_product(name: str) -> None:
    """With expert 0 normed to exact zeros, the product's only gradient left is expert 0's."""
    fusion = random_fusion(name)
    parameters = dict(fusion.named_parameters())
    with torch.no_grad():
        parameters["norms.weight"][0] = 0
        parameters["norms.bias"][0] = 0
    (bias_gradient,) = torch.autograd.grad(
        fusion(random_features()).sum(), [parameters["norms.bias"]]
    )
    assert bias_gradient.isfinite().all()
    assert bias_gradient[0].abs().min() > 0
    assert (bias_gradient[1:] == 0).all() == (name == "multiplicative")


# --- symmetries --------------------------------------------------------------------------------

ORDER = [2, 0, 3, 1]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_fresh_fusion_ignores_the_order_of_experts(name: str) -> None:
    fusion = build_fusion(name, E, D).double().eval()  # equal norms, equal weights
    features = random_features()
    torch.testing.assert_close(fusion(features[:, ORDER]), fusion(features))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_order_is_free_when_the_parameters_move_along(name: str) -> None:
    fusion, features = random_fusion(name), random_features()
    before = fusion(features)
    assert (fusion(features[:, ORDER]) - before).abs().max() > 1e-3
    with torch.no_grad():
        for key, parameter in fusion.named_parameters():
            if key in ("norms.weight", "norms.bias", "weights", "gate.bias"):
                parameter.copy_(parameter[ORDER])
            elif key == "gate.weight":  # from E x D, of each expert's features, to E
                parameter.copy_(parameter.view(E, E, D)[ORDER][:, ORDER].flatten(start_dim=1))
        for kind in ("weight", "bias"):
            maps = [getattr(m, kind) for m in fusion.modules() if isinstance(m, AlignmentMap)]
            for parameter, moved in zip(
                maps, [maps[k].clone() for k in ORDER if maps], strict=True
            ):
                parameter.copy_(moved)
    torch.testing.assert_close(fusion(features[:, ORDER]), before)


def test_concatenation_tells_experts_apart() -> None:
    fusion, features = build_fusion("concatenation", E, D).double().eval(), random_features()
    assert (fusion(features[:, ORDER]) - fusion(features)).abs().max() > 1e-3


@pytest.mark.parametrize("name", OF_FEATURES)
def test_scale_of_an_expert_matters_without_norms_only(name: str) -> None:
    fusion, features = random_fusion(name), random_features()
    for module in fusion.modules():
        if isinstance(module, AlignmentMap):
            nn.init.zeros_(module.bias)
    scaled = features * torch.tensor([1.0, 100.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    change = (fusion(scaled) - fusion(features)).abs().max()
    assert change > 1 if name in RAW else change < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_each_sample_is_fused_alone(name: str) -> None:
    fusion, features = random_fusion(name), random_features()
    alone = torch.cat([fusion(features[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(fusion(features), alone)


# --- initial state and dropout -------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_FEATURES)
def test_initial_parameters(name: str) -> None:
    torch.manual_seed(0)
    fusion = build_fusion(name, 3, 64)
    state = fusion.state_dict()
    assert ("norms.weight" in state) == (name not in RAW)
    assert ("weights" in state) == (name in WITH_WEIGHTS)
    for key in state:
        if key in ("norms.weight", "weights"):
            assert (state[key] == 1).all()
        elif key.endswith("bias") or key == "gate.weight":
            assert (state[key] == 0).all()
        elif key.startswith("maps"):
            assert torch.equal(state[key], torch.eye(64))
    linears = [m for m in fusion.get_submodule("tail").modules() if isinstance(m, nn.Linear)]
    for linear in linears:
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert len(linears) == 2


@pytest.mark.parametrize(("name", "base"), ALIGNED.items())
def test_aligned_fusion_begins_as_its_base_type_bit_for_bit(name: str, base: str) -> None:
    """Outputs, gradients, and what the generator draws next: the global head starts the same."""
    found = []
    for kind in (name, base):
        torch.manual_seed(0)
        fusion = build_fusion(kind, E, D)
        drawn = torch.rand(3)
        features = random_features().float().requires_grad_()
        torch.manual_seed(1)  # of the dropout
        fused = fusion(features)
        fused.square().sum().backward()
        gradients = [weight.grad for key, weight in fusion.named_parameters() if "maps" not in key]
        found.append([drawn, fused, features.grad, *gradients])
    assert all(torch.equal(ours, its) for ours, its in zip(*found, strict=True))


@pytest.mark.parametrize("name", ALIGNED)
def test_every_map_learns_from_the_first_step(name: str) -> None:
    fusion = build_fusion(name, E, D)
    fusion(random_features().float()).square().sum().backward()
    maps = [weight.grad for key, weight in fusion.named_parameters() if "maps" in key]
    assert len(maps) == 2 * E
    assert all(gradient is not None and gradient.any() for gradient in maps)


def test_a_fresh_gate_weighs_all_experts_the_same_and_learns_from_the_first_step() -> None:
    fusion, features = build_fusion("gated", E, D).eval(), random_features().float()
    assert isinstance(fusion, Gated)
    normalised = fusion.norms(features)
    assert torch.equal(fusion.shares(normalised), torch.full((N, E), 1 / E))
    torch.testing.assert_close(fusion(features), fusion.tail(normalised.mean(dim=1)))
    fusion(features).square().sum().backward()
    assert fusion.gate.weight.grad is not None and (fusion.gate.weight.grad != 0).all(dim=1).all()


def test_a_gates_weights_are_of_each_image_its_own_and_sum_to_one() -> None:
    fusion = random_fusion("gated")
    assert isinstance(fusion, Gated)
    shares = fusion.shares(fusion.norms(random_features()))
    assert shares.shape == (N, E) and (shares > 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(N, dtype=torch.float64))
    assert (shares[0] - shares[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", OF_FEATURES)
def test_dropout_of_a_fifth_in_training_only(name: str) -> None:
    fusion = build_fusion(name, E, D)
    features = random_features().float()
    assert {m.p for m in fusion.modules() if isinstance(m, nn.Dropout)} == {0.2}
    attention = [m.dropout for m in fusion.modules() if isinstance(m, nn.MultiheadAttention)]
    assert attention == ([0.2] if name == "TransformerBase" else [])
    assert not torch.equal(fusion(features), fusion(features))
    fusion.eval()
    assert torch.equal(fusion(features), fusion(features))


# --- the model ---------------------------------------------------------------------------------


def resnets(count: int, width: int = 8, num_classes: int = 5) -> list[nn.Module]:
    return [build_expert("resnet", num_classes, blocks=(1, 1), width=width) for _ in range(count)]


def test_model_wires_experts_fusion_and_head() -> None:
    torch.manual_seed(0)
    experts = resnets(3)
    model = FusionModel(experts, build_fusion("concatenation", 3, 16), 5).eval()
    images = torch.randn(2, 3, 16, 16)
    output = model(images)
    assert isinstance(output, FusionOutput)
    for k, expert in enumerate(experts):
        features, logits = expert(images)
        assert torch.equal(output.features[:, k], features)
        assert torch.equal(output.expert_logits[:, k], logits)
    fused = model.fusion(output.features)
    by_hand = fused @ model.global_head.weight.T + model.global_head.bias
    torch.testing.assert_close(output.logits, by_hand)
    assert {key.split(".")[0] for key in model.state_dict()} == {"experts", "fusion", "global_head"}


def test_global_head_starts_xavier_uniform() -> None:
    torch.manual_seed(0)
    model = FusionModel(resnets(2, 64, 50), build_fusion("simpleAddition", 2, 128), 50)
    bound = math.sqrt(6 / (128 + 50))
    assert model.global_head.weight.abs().max() <= bound
    assert model.global_head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert (model.global_head.bias == 0).all()


def test_experts_of_different_architectures_mix_when_sizes_agree() -> None:
    experts = [
        build_expert("resnet", 5, blocks=(1, 1, 1), width=16),
        build_expert("improved_wide_resnet", 5, depth=10, widen=1),
    ]
    model = FusionModel(experts, build_fusion("multiplicative", 2, 64), 5)
    assert model(torch.randn(2, 3, 16, 16)).features.shape == (2, 2, 64)


def test_features_of_different_sizes_meet_in_linear_adapters() -> None:
    torch.manual_seed(0)
    experts = [*resnets(1), *resnets(1, width=16)]
    model = FusionModel(experts, build_fusion("concatenation", 2, 32), 5).eval()
    images = torch.randn(2, 3, 16, 16)
    output = model(images)
    (narrow, logits), (wide, _) = (expert(images) for expert in experts)
    adapter = model.adapters[0]
    assert isinstance(adapter, nn.Linear)
    assert isinstance(model.adapters[1], nn.Identity) and model.is_adapted
    bound = math.sqrt(6 / (16 + 32))
    assert 0.9 * bound < adapter.weight.abs().max() <= bound and (adapter.bias == 0).all()
    assert torch.equal(output.features[:, 1], wide)
    torch.testing.assert_close(output.features[:, 0], narrow @ adapter.weight.T)
    assert torch.equal(output.expert_logits[:, 0], logits)  # which don't pass the adapter
    names = {key for key in model.state_dict() if key.startswith("adapters")}
    assert names == {"adapters.0.weight", "adapters.0.bias"}


def test_detached_experts_get_no_gradient_through_their_adapters() -> None:
    experts = [*resnets(1), *resnets(1, width=16)]
    model = FusionModel(experts, build_fusion("concatenation", 2, 32), 5, detached=True)
    model(torch.randn(2, 3, 16, 16)).logits.sum().backward()
    assert model.adapters[0].weight.grad is not None
    assert all(parameter.grad is None for parameter in model.experts.parameters())


def test_adapters_leave_models_without_any_as_they_were() -> None:
    torch.manual_seed(0)
    model = FusionModel(resnets(2), build_fusion("concatenation", 2, 16), 5)
    after = torch.rand(1)
    torch.manual_seed(0)
    again = [*resnets(2), build_fusion("concatenation", 2, 16)], nn.Linear(16, 5)
    nn.init.xavier_uniform_(again[1].weight)
    assert torch.equal(model.global_head.weight, again[1].weight)
    assert torch.equal(after, torch.rand(1)) and not model.is_adapted


# --- logits in place of features -----------------------------------------------------------------


def test_mean_of_logits_is_of_those_experts_that_have_an_output() -> None:
    """Of classes apart it is each expert's own answer; nobody's class stays without one."""
    logits = torch.tensor([[[3.0, 1.0, NO_OUTPUT, NO_OUTPUT], [NO_OUTPUT, 5.0, 7.0, NO_OUTPUT]]])
    logits.requires_grad_()
    fused = build_fusion("meanLogits", 2, D)(logits)
    assert torch.equal(fused, torch.tensor([[3.0, 3.0, 7.0, NO_OUTPUT]]))
    fused[:, :3].sum().backward()
    assert torch.equal(logits.grad, torch.tensor([[[1.0, 0.5, 0, 0], [0, 0.5, 1, 0]]]))


def test_a_model_of_mean_logits_has_the_experts_weights_alone() -> None:
    """Their features don't have to meet, nor is anything drawn for a head."""
    torch.manual_seed(0)
    experts = [*resnets(1), *resnets(1, width=16)]
    following = torch.rand(3)
    torch.manual_seed(0)
    experts = [*resnets(1), *resnets(1, width=16)]
    model = FusionModel(experts, build_fusion("meanLogits", 2, 32), 5)
    assert torch.equal(torch.rand(3), following)
    assert {key.split(".")[0] for key in model.state_dict()} == {"experts"} and not model.is_adapted
    images = torch.randn(2, 3, 16, 16)
    output = model(images)
    assert torch.equal(output.logits, output.expert_logits.mean(dim=1))
    assert torch.equal(output.features, output.expert_logits)  # what the fusion read
    output.logits.square().sum().backward()
    assert all(weight.grad is not None for weight in model.experts.parameters())


def test_detached_experts_get_no_gradient_through_their_mean() -> None:
    model = FusionModel(resnets(2), build_fusion("meanLogits", 2, 16), 5, detached=True)
    output = model(torch.randn(2, 3, 16, 16))
    assert not output.logits.requires_grad and output.expert_logits.requires_grad


# --- wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ("multiplicatve", 4, 64),
            ["unknown fusion 'multiplicatve'", "concatenation", "did you mean 'multiplicative'"],
        ),
        (("transformerbase", 4, 64), ["did you mean 'TransformerBase'"]),
        (("simple_addition", 4, 64), ["did you mean 'simpleAddition'"]),
        ((None, 4, 64), ["unknown fusion None"]),
        ((["concatenation"], 4, 64), ["unknown fusion ['concatenation']"]),
        (("TransformerBase", 4, 60), ["TransformerBase", "8 attention heads", "D = 60"]),
        (("concatenation", 0, 64), ["'concatenation': num_experts", "found 0"]),
        (("concatenation", "4", 64), ["num_experts", "whole number", "found '4'"]),
        (("simpleAddition", 4, -1), ["'simpleAddition': feature_dim", "found -1"]),
        (("multiplicative", 4, 64.0), ["feature_dim", "found 64.0"]),
        (("multiplicative", True, 64), ["num_experts", "found True"]),
    ],
)
def test_a_wrong_argument_is_named(arguments: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build_fusion(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("shape", [(2, 1, D), (2, E + 1, D), (2, E, D + 8), (E, D)])
def test_a_wrong_shape_of_features_is_named(name: str, shape: tuple[int, ...]) -> None:
    fusion = build_fusion(name, E, D)
    with pytest.raises(ValueError) as caught:
        fusion(torch.randn(shape))
    assert f"(N, {E}, {D})" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 1, D), (2, E + 1, D), (E, D)])
def test_a_wrong_shape_of_logits_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        build_fusion("meanLogits", E, D)(torch.randn(shape))
    assert f"logits of shape (N, {E}, C)" in str(caught.value) and str(shape) in str(caught.value)


def test_a_model_whose_parts_do_not_fit_is_refused() -> None:
    fusion = build_fusion("multiplicative", 2, 16)
    with pytest.raises(ValueError, match="built for 2 experts, found 3"):
        FusionModel(resnets(3), fusion, 5)
    with pytest.raises(ValueError, match=r"say their feature_dim, found \[16, None\]"):
        FusionModel([*resnets(1), nn.Identity()], fusion, 5)
    with pytest.raises(ValueError, match=r"must have 6 classes, found \[5, 5\]"):
        FusionModel(resnets(2), fusion, 6)
