import numpy as np
import pytest
import torch

from zsq.contract import QuantizedTensor
from zsq.measure.gap import gaps_from_rows, rows_from_runs
from zsq.report.data import ReportData

ACCURACY = {
    ("lsq-kd", "W4A4"): {"real": 87.0, "dsg": 86.0, "noise": 10.0},
    ("ptq", "W8A8"): {"real": 88.0, "dsg": 88.0, "noise": 87.0},
}


@pytest.fixture(scope="session")
def make_data():
    """Builds a ReportData: exact means, sets a quarter of a point apart."""

    def make(sets=3, synthetic="dsg", seeds=1, **changes):
        records = [
            {
                "source": synthetic if source == "dsg" else source,
                "shard_set": k,
                "seed": seed,
                "student": student,
                "bits": bits,
                "first_last": 8,
                "options": {},
                "num_images": 256,
                "metrics": {"accuracy": value + (k - (sets - 1) / 2) / 4, "agreement": value + 4},
                "seconds": 41.0,
            }
            for (student, bits), sources in ACCURACY.items()
            for source, value in sources.items()
            for k in range(sets)
            for seed in range(seeds)
        ]
        rows = rows_from_runs(records)
        random = np.random.default_rng(0)
        images = {
            source: torch.from_numpy(random.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8))
            for source in ("real", "noise", synthetic)
        }
        values = {
            "title": "A small report",
            "teacher": {
                "name": "cifar10:resnet20",
                "weights_sha256": "ab",
                "accuracy": 88.16,
                "num_outputs": 10,
            },
            "settings": {"count": 256, "method": {"lr": 0.1}},
            "rows": rows,
            "gaps": gaps_from_rows(rows),
            "layer_names": ["bn1", "layer1.0.bn1"],
            "bn_distance": {"real": [0.1, 0.2], synthetic: [0.3, float("nan")], "noise": [4.0, 5.0]},
            "cost": {synthetic: 250.0, "noise": 0.0},
            "sheets": images,
            "quantized_tensors": {
                "lsq-kd W4A4": [QuantizedTensor("layer1.0.conv1.weight", "weight", 4, 16, True)]
            },
        }
        return ReportData(**(values | changes))

    return make
