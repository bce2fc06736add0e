"""What makes a result the same experiment's."""

import pytest

from fusionrun.training.errors import TaskError
from fusionrun.training.identity import Identity, of_data, others_in, upgraded, weights_in

DEFAULTS = {"fusion.mixing": "cutmix", "fusion.new": None, "models.resnet.blocks": [2, 2]}


def test_every_difference_is_named_and_nothing_else() -> None:
    own = Identity({"a": 1, "b": 3, "d": 4}, {})
    with pytest.raises(TaskError) as caught:
        own.require_same("file", {"a": 1, "b": 2, "c": 3})
    text = str(caught.value)
    assert text.startswith("file: was made with other settings (")
    for words in ("b: 2 there, 3 in", "c: 3 there, None in", "d: None there, 4 in"):
        assert words in text
    assert "a: " not in text
    own.require_same("file", {"a": 1, "b": 3, "d": 4})


def test_an_absent_field_equals_its_default() -> None:
    whole = {"seed": 1, "fusion.mixing": "cutmix", "fusion.new": None}
    for here, there in ((whole, {"seed": 1}), ({"seed": 1}, whole)):
        assert Identity(here, DEFAULTS).differences(there) == []
    changed = Identity({"seed": 1, "fusion.new": 3}, DEFAULTS).differences({"seed": 1})
    assert changed == ["fusion.new: None there, 3 in this recipe"]
    assert Identity({"seed": 1}, DEFAULTS).differences({**whole, "fusion.mixing": "none"}) == [
        "fusion.mixing: 'none' there, 'cutmix' in this recipe"
    ]


def test_tuples_are_the_lists_that_files_hold() -> None:
    assert not Identity({"models.resnet.blocks": (2, 2)}, DEFAULTS).differences({})
    assert not Identity({"models.resnet.blocks": (1,)}, {}).differences(
        {"models.resnet.blocks": [1]}
    )


def test_paths_and_hardware_knobs_are_not_compared() -> None:
    own = Identity({"seed": 1}, {}, ("fusion.micro_batch",))
    assert not own.differences({"seed": 1, "fusion.micro_batch": 32})


@pytest.mark.parametrize("name", ["data.fingerprint", "data.split_hash", "experts.weights"])
def test_what_an_older_version_did_not_know_is_compared_where_both_do(name: str) -> None:
    assert not Identity({name: ["x"]}, {}).differences({})
    assert not Identity({}, {}).differences({name: ["x"]})
    assert Identity({name: ["x"]}, {}).differences({name: ["y"]})


def test_a_plug_in_is_its_code_and_not_its_place() -> None:
    own = Identity({"plugins.mine": "Gated (source aaa)"}, {})
    assert not own.differences({"plugins.mine": "Gated (source aaa)"})
    assert own.differences({"plugins.mine": "Gated (source bbb)"})
    assert not own.differences({"plugins.mine": "old/folder/parts.py:Gated"})  # of version 0.1
    assert own.differences({"plugins.mine": "old/folder/parts.py:Other"})


def test_other_epochs_are_refused_with_the_reason() -> None:
    with pytest.raises(TaskError, match=r"learning rates .* scheduled over all its epochs"):
        Identity({"fusion.epochs": 9}, {}).require_same("file", {"fusion.epochs": 3})


def test_starting_experts_of_version_0_1_are_known_by_their_weights() -> None:
    sources = ["a/expert_0_best.pth (epoch 2, validation 25.00 %, weights 1f83c75f51b3)"]
    assert weights_in(sources) == ["1f83c75f51b3"]
    assert upgraded({"experts": sources})["experts.weights"] == ["1f83c75f51b3"]
    moved = [sources[0].replace("a/", "b/")]
    assert not Identity({"experts.weights": ["1f83c75f51b3"]}, {}).differences({"experts": moved})


def test_of_data() -> None:
    assert of_data({"data.name": "x", "seed": 1}) == {"data.name": "x"}


def test_what_sources_say_of_experts_is_read_back() -> None:
    """As manifests of every version list them, wherever the files lie."""
    ours = "given (copy)/expert_0_best.pth (epoch 3, validation 25.00 %, weights abc0)"
    other = "trained with other settings (seed: 1 there, 2 in this recipe)"
    sources = [
        ours,
        ours.replace("weights", f"{other}, weights"),
        ours.replace("weights", f"{other}, weights"),
        "a.pth (not saved by fusionrun, weights abc3)",
        "b.pth (not saved by fusionrun: under 'net'; left out classes, weights abc4)",
        "expert_5_best.pth (epoch 3, weights abc5)",
    ]
    assert others_in(", ".join(f"resnet {k}" for k in range(6)), sources) == (
        f"resnet 1, resnet 2: {other}",
        "resnet 3: not saved by fusionrun",
        "resnet 4: not saved by fusionrun: under 'net'; left out classes",
    )
    assert weights_in(sources) == ["abc0", "abc0", "abc0", "abc3", "abc4", "abc5"]
    assert others_in("resnet 0", []) == ()
