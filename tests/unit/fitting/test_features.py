"""Features of a unit in memory and in a mapped file."""

import pytest
import torch

from zsq.core.errors import StorageError
from zsq.core.runtime import Runtime
from zsq.fitting import features
from zsq.fitting.features import Features, fits_in_memory


def values(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4), (7,), (6, 8)])
def test_rows_are_what_was_written(shape, resident):
    wanted = values(10, *shape)
    kept = Features(10, shape, Runtime(), resident)
    for start in (0, 4, 8):
        kept.write(start, wanted[start : start + 4])
    index = torch.tensor([9, 0, 4, 4])
    assert torch.equal(kept.rows(index), wanted[index])
    if len(shape) == 3:
        assert kept.rows(index).is_contiguous(memory_format=torch.channels_last)


def test_what_is_too_large_lies_in_a_file_that_is_gone_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = Features(4, (2, 3, 3), Runtime(), resident=False)
    assert not list(tmp_path.iterdir()), "a killed run must leave nothing behind"
    kept.write(0, values(4, 2, 3, 3))
    assert torch.equal(kept.rows(torch.arange(4)), values(4, 2, 3, 3))


def test_limit_counts_all_features(monkeypatch):
    monkeypatch.setattr(features, "RESIDENT_BYTES", 4 * 10 * (12 + 8))
    assert fits_in_memory(10, [(3, 2, 2), (8,)]) and not fits_in_memory(10, [(3, 2, 2), (9,)])


def test_a_full_disk_is_one_line(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"no room for .* GiB of features .*TMPDIR"):
        Features(4, (2, 3, 3), Runtime(), resident=False)
