"""Ranks, groups and collectives: the only room that may say torch.distributed."""
