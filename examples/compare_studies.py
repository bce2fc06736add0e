"""What does one change of a recipe do? The study without it and with it, row by row.

    python examples/compare_studies.py demo fusion.alpha=0

Trains what isn't trained yet. Both studies start from the same experts, so the change is to be
one of fusion training.
"""

import sys

import fusionrun

# %% Two studies of the same rows
recipe, change = sys.argv[1:]
study = fusionrun.train(recipe)
folder = study.paths.output_dir
changed = fusionrun.train(
    recipe,
    change,
    f"output_dir={folder}_{change.replace('/', '_')}",
    f"experts.checkpoint_dir={folder / 'expert_checkpoints'}",
)

# %% Row by row on the same test images. A difference means something where many more images are
# right only on its side: of two equally good models neither would win so many.
data = study.load_data()
print(f"\n{'':40}{folder.name:>12}{change:>20}{'only first':>12}{'only second':>12}")
for row in study.rows:
    name = f"{row.model}/{row.variant}"
    one, other = (
        each.load_model(name).predict(data.test_images).argmax(dim=1) == data.test_labels
        for each in (study, changed)
    )
    accuracies = [100 * float(right.double().mean()) for right in (one, other)]
    only = int((one & ~other).sum()), int((other & ~one).sum())
    print(f"{name:40}{accuracies[0]:12.2f}{accuracies[1]:20.2f}{only[0]:12}{only[1]:12}")
