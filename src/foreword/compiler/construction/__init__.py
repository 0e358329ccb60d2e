"""How a prefix is made from a target: one file for each way, all behind `contract.Construction`."""
