"""Tensors in, tensors out: the network's parts, which know no files, names or labels' texts."""
