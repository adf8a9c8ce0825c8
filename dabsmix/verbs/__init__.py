"""What a user does: pretrain, transfer, embed, bench, report, quickstart. A verb is read from top to bottom.

Verbs put the other rooms together, so they may import every room, and no other room imports them. The command line and
the functions of ``import dabsmix`` call them and nothing else.
"""
