"""One flipped bit anywhere in a shard: its hash tells, and its own checksums tell unless nothing changed."""

import numpy as np
import pytest

from zsq.core.errors import ShardError
from zsq.core.imagespec import ImageSpec
from zsq.shards.reader import read_shard
from zsq.shards.schema import ShardContent, ShardProvenance
from zsq.shards.verify import verify_shard
from zsq.shards.writer import write_shard

NUM_IMAGES, NUM_CLASSES = 3, 4
SPEC = ImageSpec(channels=1, size=(4, 4), mean=(0.5,), std=(0.25,))
# Bytes; prime to eight, so that every region meets every bit.
STEP, STARTS = 7, (0, 2, 4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    random = np.random.default_rng(0)
    content = ShardContent(
        pixels=random.integers(0, 256, (NUM_IMAGES, *SPEC.shape), dtype=np.uint8),
        labels=random.integers(-1, NUM_CLASSES, NUM_IMAGES),
        logits=random.normal(size=(NUM_IMAGES, NUM_CLASSES)).astype(np.float32),
        bn_distance=random.random(NUM_IMAGES).astype(np.float32),
        targets=random.dirichlet(np.ones(NUM_CLASSES), NUM_IMAGES).astype(np.float16),
    )
    origin = ShardProvenance("t", "ab" * 32, SPEC, "dsg", {"lr": 0.1}, 1, (0, 1), 0, "none")
    path = tmp_path_factory.mktemp("flips") / "shard-00000.h5"
    entry = write_shard(path, content, origin)
    return path, entry, content, origin


def outcome(path, content, origin):
    """`refused`, `same`, or `changed`: read as something else than was written."""
    try:
        found, found_origin = read_shard(path)
    except ShardError as error:
        assert path.name in str(error)
        assert "\n" not in str(error)
        return "refused"
    pairs = zip(content.arrays(), found.arrays(), strict=True)
    same = found_origin == origin and all(np.array_equal(a, b) for (_, a), (_, b) in pairs)
    return "same" if same else "changed"


@pytest.mark.parametrize("start", STARTS)
def test_flip_in_every_region(start, written, tmp_path):
    source, entry, content, origin = written
    intact = source.read_bytes()
    path = tmp_path / "shard-00000.h5"
    outcomes = []
    for count, position in enumerate(range(start, len(intact), STEP)):
        data = bytearray(intact)
        data[position] ^= 1 << (count % 8)
        path.write_bytes(data)
        outcomes.append(outcome(path, content, origin))
        with pytest.raises(ShardError, match="sha256"):
            verify_shard(path, entry.sha256)
    assert "changed" not in outcomes
    assert outcomes.count("refused") > 0.5 * len(outcomes)


@pytest.mark.parametrize("name", ["pixels", "labels", "logits", "bn_distance", "targets"])
def test_every_bit_of_stored_values_counts(name, written, tmp_path):
    """Within the data itself nothing is ever read as it is not, hash or no hash."""
    source, _, content, origin = written
    intact = source.read_bytes()
    array = getattr(content, name)
    row = array.tobytes() if array.ndim == 1 else array[1].tobytes()
    place = intact.index(row)
    path = tmp_path / "shard-00000.h5"
    for bit in range(0, 8 * len(row), 5):
        data = bytearray(intact)
        data[place + bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        assert outcome(path, content, origin) == "refused"


def test_random_damage_never_ends_the_process(written, tmp_path):
    source, _, content, origin = written
    intact = source.read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "shard-00000.h5"
    for _ in range(200):
        data = np.frombuffer(intact, np.uint8).copy()
        start = random.integers(len(data))
        data[start : start + random.integers(1, 64)] = random.integers(256)
        path.write_bytes(data.tobytes())
        assert outcome(path, content, origin) in ("refused", "same")
