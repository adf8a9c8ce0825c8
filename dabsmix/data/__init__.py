"""What a data set is to the harness, and how it gets from files to batches: download, cache, splits, batches, audit.

`domain` is the contract that every file in ``domains/`` fulfils. This room may import only the ground floor (`spec`,
`errors`, `terminal`, `files`, `distributed`, `training`): it knows no model, no algorithm and no score.
"""
