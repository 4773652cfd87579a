"""Images made elsewhere -> shards: `blocks.py` reads them, `importing.py` writes the run."""
