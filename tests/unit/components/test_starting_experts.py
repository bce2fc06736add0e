"""What a study starts from, and what of it is said."""

from dataclasses import replace
from pathlib import Path

import torch

from fusionrun.components.starting_experts import load_experts, with_origin_notes
from fusionrun.components.store import state_hash
from fusionrun.launch.resume import expert_weights, require_own
from fusionrun.study.context import open_context
from fusionrun.study.paths import expert_file
from fusionrun.study.rows import Member
from fusionrun.study.stored import stored_study
from fusionrun.training.checkpoint import load
from fusionrun.training.identity import HASH_DIGITS, weights_in
from tests.tiny import copy_study


def test_other_peoples_experts_are_the_same_experts(trained_study: Path, tmp_path: Path) -> None:
    """Wrapped as another tool does, with settings of its own: the same identity, and it is said."""
    study = stored_study(copy_study(trained_study, tmp_path / "out"))
    context = open_context(study, torch.device("cpu"), 1, progress=lambda text: None)
    assert with_origin_notes(context).data.notes == context.data.notes
    members = [Member("resnet", k) for k in range(2)]
    experts, before = load_experts(context, members)
    for k in range(2):
        path = expert_file(study.checkpoint_dir, "resnet", k)
        state = {f"module.{name}": value for name, value in load(path)["state_dict"].items()}
        torch.save({"model": state, "settings": {"lr": 0.1}, "classes": 4}, path)
    require_own(study)
    again, sources = load_experts(context, members)
    assert [state_hash(a.state_dict()) for a in again] == [
        state_hash(e.state_dict()) for e in experts
    ]
    found = [expert_weights(study, member) for member in members]
    assert weights_in(sources) == weights_in(before) == found
    assert all(len(each) == HASH_DIGITS for each in weights_in(sources))
    (note,) = with_origin_notes(context).data.notes
    assert note == (
        f"{study.checkpoint_dir}/resnet: 2 experts not saved by fusionrun: under 'model'; without "
        f"'module.' in its names; left out settings, classes"
    )


def test_experts_of_another_recipe_are_told(trained_study: Path, tmp_path: Path) -> None:
    """Ours, in a folder that the user names, from fewer epochs: free to be used, never unsaid."""
    stored = stored_study(copy_study(trained_study, tmp_path / "out"))
    folder = stored.checkpoint_dir
    experts = replace(stored.recipe.experts, epochs=9, checkpoint_dir=str(folder))
    study = replace(stored, recipe=replace(stored.recipe, experts=experts))
    context = open_context(study, torch.device("cpu"), 1, progress=lambda text: None)
    notes = with_origin_notes(context).data.notes
    text = "2 experts trained with other settings (experts.epochs: 2 there, 9 in this recipe)"
    assert f"{folder}/resnet: {text}" in notes
