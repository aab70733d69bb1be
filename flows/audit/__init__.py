"""`videoopd audit`: each link of the chain from a checkpoint back to the pixels."""
