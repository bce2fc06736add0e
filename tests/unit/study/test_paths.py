"""Where experts are found that somebody else's code named."""

from pathlib import Path

import pytest

from fusionrun.study.recipe import RecipeError
from fusionrun.study.study import Study
from tests.unit.study.test_study import plan

COUNT = 4
NON_IID = "data.split=non_iid"


def study_of(folder: Path, names: list[str], *overrides: str) -> Study:
    """One that finds files of these names in the folder of its experts."""
    for name in names:
        path = folder / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    given = f"experts.checkpoint_dir={folder / 'given'}"
    return plan(folder, given, f"experts.count={COUNT}", *overrides)


def found(study: Study, model: str = "densenet") -> list[str]:
    paths = [study.expert_file(model, k) for k in range(COUNT)]
    return [str(path.relative_to(study.checkpoint_dir)) for path in paths if path.exists()]


def numbered(name: str, first: int = 0) -> list[str]:
    return [name.format(k=k) for k in range(first, first + COUNT)]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("densenet/expert_{k}_best.pth", ()),
        ("densenet/expert_{k}_best.safetensors", ()),
        ("densenet121/expert_{k}_best.pth", ()),
        ("best_iid_densenet121_expert_{k}.pth", ()),
        ("best_iid_densenet_expert_{k}.pth", ()),
        ("best_iid_densenet121_expert_{k}.safetensors", ()),
        ("best_noniid_densenet121_expert_{k}.pth", (NON_IID,)),
        ("best_noniid_densenet121_expert_{k}.pth", ()),  # refused later: by its outputs
        ("densenet121-member{k}.pt", ("experts.pattern={model}-member{k}.pt",)),
        ("a/densenet-{k}/best.ckpt", ("experts.pattern='a/{model}-{k}/best.ckpt'",)),
        ("net_{k}.pth", ("experts.pattern=net_{k}.pth",)),
        ("densenet/net_0{k}.pth", ("experts.pattern={model}/net_{k:02d}.pth",)),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_files_of_other_names_numbered_from_0_or_1(
    tmp_path: Path, name: str, overrides: tuple[str, ...], first: int
) -> None:
    study = study_of(tmp_path, numbered(name, first), *overrides)
    assert found(study) == numbered(name, first)


def test_names_of_all_four_architectures_in_one_folder(tmp_path: Path) -> None:
    named = {
        "densenet": "densenet121",
        "resnet": "resnet18",
        "improved_wide_resnet": "wideresnet28_10",
        "resnext": "preact_resnext29_8x64d",
    }
    name = "best_{kind}_{model}_expert_{{k}}.pth"
    kinds = {"data.split=iid": "iid", NON_IID: "noniid"}
    files = [
        each
        for kind in kinds.values()
        for model in named.values()
        for each in numbered(name.format(kind=kind, model=model))
    ]
    for split, kind in kinds.items():
        study = study_of(tmp_path, files, split)
        for model, theirs in named.items():
            assert found(study, model) == numbered(name.format(kind=kind, model=theirs))


def test_the_studys_own_experts_come_first_and_missing_ones_are_written_there(
    tmp_path: Path,
) -> None:
    theirs = numbered("best_iid_densenet121_expert_{k}.pth")
    study = study_of(tmp_path, ["densenet/expert_2_best.pth", *theirs[:3]])
    assert found(study) == [*theirs[:2], "densenet/expert_2_best.pth"]
    assert study.expert_file("densenet", 3) == tmp_path / "given/densenet/expert_3_best.pth"


@pytest.mark.parametrize(
    ("numbers", "meant"),
    [([1, 2], [1, 2]), ([0, 1, 2, 3, 4], [0, 1, 2, 3]), ([1, 2, 4], [1, 2]), ([4], [])],
)
def test_half_done_experts_of_ours_are_numbered_from_0(
    tmp_path: Path, numbers: list[int], meant: list[int]
) -> None:
    name = "densenet/expert_{}_best.pth"
    study = study_of(tmp_path, [name.format(k) for k in numbers])
    assert found(study) == [name.format(k) for k in meant]


@pytest.mark.parametrize(("numbers", "certain"), [([0, 2], True), ([4], True), ([1, 2], False)])
def test_numbers_that_tell_not_which_is_first(
    tmp_path: Path, numbers: list[int], certain: bool
) -> None:
    study = study_of(tmp_path, [f"best_iid_densenet121_expert_{k}.pth" for k in numbers])
    (files,) = study.expert_sets("densenet")
    assert files.is_certain is certain


@pytest.mark.parametrize(
    "pattern", ["net.pth", "{model}.pth", "{k}{x}.pth", "{k", "{k.real}", "{}"]
)
def test_a_pattern_that_names_no_experts(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"experts\.pattern: found .*\{k\}, and \{model\}"):
        plan(tmp_path, f"experts.pattern={pattern}")
