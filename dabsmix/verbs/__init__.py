"""What a user does: pretrain, transfer, embed, quickstart. Each file is one verb, read top to bottom.

They put the other rooms together, so a verb may import everything; no other room imports a verb. The command line and
the functions of ``import dabsmix`` call these and nothing else.
"""
