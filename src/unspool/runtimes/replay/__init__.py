"""Pass replay: a forward pass is traced once as a `torch.fx.Graph` and then runs without the module tree."""
