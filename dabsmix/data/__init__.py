"""What a data set is to the harness, and how it gets from files to batches: download, cache, splits, batches, audit.

`domain` is the contract that every file in ``domains/`` fulfils. This room may import the ground floor alone (`spec`,
`errors`, `terminal`, `files`, `distributed`, `training`): it knows no model, no algorithm and no score.
"""
