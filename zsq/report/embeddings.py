"""What a report on an embedding network says beside its figures."""

INTERVALS = (
    "Brackets hold 95 % intervals from a bootstrap over the identities: how far a value would move with "
    "other people. All students share the draws, so their differences are paired. How far a value would move "
    "with other images of the same sources is not known: there is one shard set per source."
)

METRICS = (
    "cosine: how alike the embeddings of student and teacher are, mean over images, times 100. tar@1e-3: the "
    "share of pairs of one person that are accepted, where at most one in a thousand pairs of two persons is "
    "accepted too. auc: area under the ROC curve. eer: the error rate where both kinds of error are equally "
    "frequent; lower is better, so its gap has the other sign. accuracy: the share of pairs that are decided "
    "right, mean over both kinds of pairs, by a threshold chosen on other people. All pairs of evaluation "
    "images count; for accuracy, those within a fold, and no person is in two folds."
)

REVEALED = (
    "What a synthetic face may reveal: the images were made from what the network stores of its training "
    "images, so making them is a model inversion attack. Statistics of millions of faces say little of one "
    "person. But a network may have memorised a person whom it saw often, and a synthetic image may then "
    "show that person's features. That no image was read does not rule this out. Whoever has the training "
    "images can measure it: `zsq audit` looks for synthetic images that are suspiciously near to a training "
    "image, in pixels and in embeddings, and tests whether training images are nearer to the set than "
    "images that the network never saw."
)
