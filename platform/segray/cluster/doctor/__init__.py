"""Whether a cluster is fit for what a Config asks of it: looked into before a run, or by the command `doctor`."""
