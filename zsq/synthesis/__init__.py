"""A run: checked and announced, then plan minus what is done -> method -> shards -> manifest."""
