"""A trained study in a notebook: ask its models, take them apart, fuse their experts anew.

    fusionrun train demo
    python examples/load_and_fuse.py            # or the output directory of another study

Each `# %%` begins a cell, in editors that know them.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import fusionrun

# %% A study is its output directory; images come as the recipe says, uint8 (N, 3, H, W)
study = fusionrun.open_study(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
data = study.load_data()


def accuracy(probabilities: Tensor) -> str:
    """On the test images."""
    right = probabilities.argmax(dim=1) == data.test_labels
    return f"{100 * right.double().mean():.2f} %"


for result in study.results:  # what `fusionrun train` measured
    gain = "" if result.gain is None else f", {result.gain:+.2f} over averaging"
    print(f"{result.name:48}{result.fused:6.2f} %{gain}")

# %% A row's model, which normalises images by itself
row = next(row for row in study.rows if not row.is_single)
model = study.load_model(row)
print(f"\n{row.name}\nfused                    {accuracy(model.predict(data.test_images))}")
first = model.predict(data.test_images[:1])[0]
best = int(first.argmax())
print(f"the first test image is  {data.classes[best]!r}, with probability {first[best]:.2f}")

# %% Its experts alone, each from its own file, and the cheap alternative: their mean
files = study.paths.row(row.model, row.variant)
experts = [fusionrun.load_expert(files.expert(k)) for k in range(study.recipe.experts.count)]
answers = torch.stack([expert.predict(data.test_images) for expert in experts])
for k, probabilities in enumerate(answers):
    print(f"expert {k}                 {accuracy(probabilities)}")
print(f"mean of probabilities    {accuracy(answers.mean(dim=0))}")

# %% Another fusion on top of the same experts, which stay as they are. It learns from images that
# the experts never saw in their own training, the holdout; never from the test set.
torch.manual_seed(0)
fusion = fusionrun.build_fusion("simpleAddition", len(experts), experts[0].feature_dim)
mine = fusionrun.FusionModel(experts, fusion, len(data.classes)).eval()
splits = study.recipe.data.splits_dir or study.paths.splits
holdout = torch.from_numpy(np.load(f"{splits}/fusion_holdout_indices.npy"))
mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
with torch.no_grad():  # the experts' features (N, E, D) don't change, so once is enough
    batches = data.train_images[holdout].split(256)
    features = torch.cat([mine((batch / 255 - mean) / std).features for batch in batches])
labels = data.train_labels[holdout]
head = nn.Sequential(mine.fusion, mine.global_head).train()
optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
for _ in range(10):
    for chosen in torch.randperm(len(labels)).split(32):
        loss = nn.functional.cross_entropy(head(features[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"simpleAddition, by hand  {accuracy(mine.predict(data.test_images))}")
