"""An assembled model as a folder that loads like a row's."""

import shutil
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fusionrun.common.atomic_files import write_atomically
from fusionrun.common.version import __version__
from fusionrun.components.assemble import SHARED, Assembled
from fusionrun.components.manifest import Manifest, component_paths, describe, write_manifest
from fusionrun.components.store import save_component, state_hash
from fusionrun.study.paths import RowFiles
from fusionrun.training.checkpoint import has_checksums

NOT_MEASURED: Mapping[str, Any] = {"validation": {}, "test": {}, "evaluated_on": None}


def save_assembled(
    assembled: Assembled, directory: Path, measured: Mapping[str, Any] = NOT_MEASURED
) -> None:
    """Copies of the components, then the manifest that vouches for them. Raises OSError.

    `measured` has the accuracies on `validation` and `test` in percent, and what they were
    `evaluated_on`.
    """
    files = RowFiles(directory, csv=Path())
    experts, fusion, parts = assembled.experts, assembled.fusion, assembled.parts
    adapted = assembled.adapters is not None
    copies = component_paths(files, len(experts), adapted=adapted)
    origins = {}
    for part, (name, path) in zip(parts, copies.items(), strict=True):
        if has_checksums(part.path):
            with part.path.open("rb") as content:
                write_atomically(path, partial(shutil.copyfileobj, content))
        else:  # such as an exported one
            save_component(path, part.module, part.info)
        said = ("model", "fusion", "expert", "epoch", "val_accuracy")
        origins[name] = {
            "file": str(part.path),
            "sha256": part.sha256,
            "row": part.row,
            **{key: getattr(part.info, key) for key in said},
        }
    architectures = dict.fromkeys(part.info.model for part in experts)
    members = [f"{part.info.model} {part.info.expert}" for part in experts]
    manifest = Manifest(
        model="+".join(architectures),
        members=members if len(architectures) > 1 else [],
        fusion=fusion.info.fusion,
        num_experts=len(experts),
        feature_dim=fusion.info.feature_dim,
        **{name: getattr(fusion.info, name) for name in SHARED},
        val_accuracy=measured["validation"].get("fused"),
        settings={},
        weights=state_hash(assembled.model.state_dict()),
        validation=measured["validation"],
        test=measured["test"],
        assembled={
            "by": str(assembled.plan.path),
            "at": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            "versions": {"fusionrun": __version__, "torch": torch.__version__},
            "from": origins,
            "evaluated_on": measured["evaluated_on"],
        },
        components=describe(files, copies),
    )
    write_manifest(files.manifest, manifest)
