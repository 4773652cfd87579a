"""What a report on an embedding network says beside its figures."""

INTERVALS = (
    "Brackets are 95 % percentile intervals of a bootstrap over the identities, drawn alike for all "
    "students, so that differences are paired. They say how much the result would move with other people, "
    "not with other images of the same sources: with one shard set per source that is not known."
)

METRICS = (
    "cosine: between the embeddings of student and teacher, mean over images, times 100. tar@1e-3: true "
    "accept rate where at most one impostor pair in a thousand is accepted. auc: area under the ROC curve. "
    "eer: where false accepts equal false rejects; lower is better, so its gap has the other sign. accuracy: "
    "mean of the shares of genuine and impostor pairs decided right, by a threshold chosen on the other "
    "folds. All pairs of evaluation images count, for accuracy those within a fold; no identity is in two "
    "folds."
)

REVEALED = (
    "What a synthetic face may reveal: images made from a network's BN statistics come from a "
    "model-inversion attack. Statistics pooled over millions of faces say little of one person, but a "
    "network may have memorised an identity that it saw often, and a synthetic image may then show that "
    "person's features; that no image was read to make it is no proof of the contrary. `zsq audit` measures "
    "it for whoever has the training images: whether a synthetic image lies suspiciously near one of them, "
    "in pixels and in embeddings, and whether training images lie nearer to the set than held-out ones."
)
