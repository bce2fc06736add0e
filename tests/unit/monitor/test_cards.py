"""Which GPUs a launch uses, from what its ranks and their machines' tools tell."""

from dataclasses import replace

from fusionrun.monitor.cards import cards_of, devices_of
from fusionrun.monitor.record import Record
from tests.unit.monitor.test_table import card

H100, OTHER = card(0).gpu, card(1).gpu


def rank(uuid: str, host: str = "a", device: str = "NVIDIA H100, bf16", **more: object) -> Record:
    return replace(Record(host=host, device=device, gpu_uuid=uuid), **more)  # type: ignore[arg-type]


def test_one_rank_of_a_machine_tells_of_all_its_gpus() -> None:
    """Those that no rank uses are somebody else's."""
    third = replace(H100, index=2, uuid="GPU-2")
    records = [rank("1", gpus=(H100, OTHER, third)), rank("0"), rank("1")]
    assert [(c.host, c.ranks, c.gpu) for c in cards_of(records)] == [
        ("a", (0, 2), OTHER),
        ("a", (1,), H100),
    ]
    assert devices_of(records) == "2 × NVIDIA H100, bf16"


def test_machines_have_gpus_of_their_own() -> None:
    hot = replace(H100, temperature=90.0)
    records = [rank("0", gpus=(H100,)), rank("0", "b", gpus=(hot,)), rank("0", "c"), None]
    assert [(c.host, c.ranks) for c in cards_of(records)] == [("a", (0,)), ("b", (1,))]
    assert devices_of(records) == "3 × NVIDIA H100, bf16"


def test_machines_of_one_name_are_told_apart_by_their_gpus() -> None:
    records = [rank("0", gpus=(H100,)), rank("1", gpus=(OTHER,))]
    assert [(c.ranks, c.gpu) for c in cards_of(records)] == [((0,), H100), ((1,), OTHER)]


def test_slices_are_counted_and_shown_as_their_gpu() -> None:
    divided = replace(H100, mig=True, utilisation=None)
    records = [rank("77", gpus=(divided,)), rank("78")]
    assert [c.ranks for c in cards_of(records)] == [(0, 1)]
    assert devices_of(records) == "2 × NVIDIA H100, bf16"


def test_devices_of_several_kinds() -> None:
    records = [
        rank("0"),
        rank("1", device="Tesla V100, fp16"),
        rank("", device="CPU, fp32"),
        rank("2"),
        Record(),
        rank("", device="CPU, fp32"),
    ]
    assert devices_of(records) == "2 × NVIDIA H100, bf16; 1 × Tesla V100, fp16; CPU, fp32"
    assert cards_of(records) == ()
    assert devices_of([]) == devices_of([None]) == ""
