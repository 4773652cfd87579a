"""Images made elsewhere -> shards: `sources.py` reads them, `run.py` writes the run."""
