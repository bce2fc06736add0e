"""A card as nvidia-smi tells of it; tests change what they are about."""

from fusionrun.common.gpus import MIB, Gpu

H100 = Gpu(
    index=0,
    uuid="GPU-5f2a",
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    driver="580.159.03",
    memory_total=81559 * MIB,
    memory_used=0,
    utilisation=0.0,
    temperature=34.0,
    power=70.0,
    power_limit=700.0,
    compute_mode="Default",
    mig=False,
    ecc_errors=0,
    throttle="",
)
